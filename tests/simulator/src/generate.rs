//! Makes a schedule of a seed.

use crate::random::Random;
use crate::schedule::{Command, Fault, Schedule, Trouble, What};

const KINDS: u64 = 18;

impl Schedule {
    /// The schedule of this seed.
    pub fn generate(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let heal_us = random.between(150, 600) * 1000;
        let mut schedule = Self {
            seed,
            arbiter: !random.chance(15),
            ha: false,
            window: random.between(1, 3),
            epoch_us: random.one_of(&[3_000, 5_000, 10_000]),
            step_us: random.one_of(&[2_000, 4_000, 8_000]),
            second_us: random.span(10, 40_000),
            heal_us,
            last_blow: random.chance(50),
            faults: Vec::new(),
            reconnect_us: 0,
        };
        // Each schedule has a taste of its own: few kinds of faults, so that the same kind
        // comes in rows, and now and then everything at once.
        let tastes = random.between(1, 5);
        let kinds: Vec<u64> = (0..tastes).map(|_| random.below(KINDS)).collect();
        let mut at_us = random.below(100_000);
        for _ in 0..random.between(1, 12) {
            let kind = if random.chance(15) {
                random.below(KINDS)
            } else {
                random.one_of(&kinds)
            };
            let what = what(&mut random, kind, heal_us);
            schedule.faults.push(Fault { at_us, what });
            if matches!(what, What::Operator { .. }) && random.chance(50) {
                schedule.faults.push(interruption(&mut random, at_us));
            }
            // Many faults come close together: most races are short.
            at_us += if random.chance(40) {
                random.below(6_000)
            } else {
                random.below(120_000)
            };
            if at_us >= heal_us {
                break;
            }
        }
        schedule.reconnect_us = random.one_of(&[0, 20_000, 30_000, 60_000]);
        schedule.ha = random.chance(30);
        schedule
    }
}

/// What an operator asked for has hardly begun, and a twin dies.
fn interruption(random: &mut Random, at_us: u64) -> Fault {
    let what = What::Crash {
        host: random.below(2) as usize,
        after: random.below(12),
        power: random.chance(40),
        silently: random.chance(50),
        back_us: random.chance(80).then(|| random.span(500, 200_000)),
    };
    Fault {
        at_us: at_us + random.below(4_000),
        what,
    }
}

fn what(random: &mut Random, kind: u64, longest: u64) -> What {
    let host = random.below(2) as usize;
    match kind {
        0 | 1 => What::Crash {
            host,
            after: random.span(1, 60) - 1,
            power: random.chance(40),
            silently: random.chance(50),
            back_us: random.chance(80).then(|| random.span(500, 200_000)),
        },
        2 => What::Pause {
            host,
            for_us: random.span(1_000, longest),
            guest: random.chance(60),
        },
        3 => What::Cut,
        4 => What::HalfCut { host },
        5 => What::Silence {
            from: host,
            for_us: random.span(1_000, longest),
            lost: random.chance(60),
        },
        6 => What::Partition {
            for_us: random.span(1_000, longest),
        },
        7 => What::Slow {
            from: host,
            for_us: random.span(10_000, longest),
            by_us: random.span(500, 80_000),
        },
        8 => match random.below(3) {
            0 => What::Damage { to: host },
            1 => What::LoseEpoch { from: host },
            _ => What::Stale { to: host },
        },
        9..=12 => What::Arbiter {
            host,
            for_us: random.span(5_000, longest),
            trouble: match random.below(7) {
                0 => Trouble::LosesQuestions,
                1 | 2 => Trouble::LosesAnswers,
                3 | 4 => Trouble::ActsLate {
                    by_us: random.span(1_000, 200_000),
                },
                5 => Trouble::Slow {
                    by_us: random.span(1_000, 100_000),
                },
                _ => Trouble::Blank,
            },
        },
        13 => match random.below(3) {
            0 => What::CaptureFails {
                host,
                times: random.between(1, 12),
            },
            1 => What::TrackingFails { host },
            _ => What::GuestExits { host },
        },
        14 => What::Stale { to: host },
        15 => What::Suspicion { host },
        _ => What::Operator {
            host,
            command: random.one_of(&[
                Command::Switchover,
                Command::Switchover,
                Command::Switchover,
                Command::Leave,
                Command::Promote,
                Command::Stop,
            ]),
        },
    }
}
