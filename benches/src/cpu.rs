//! A guest that only computes.

use std::time::{Duration, Instant};

use evertwin::lab::events::Line;
use evertwin::lab::process::Process;
use evertwin_tests::lab::STEP;

use crate::arms::{Arm, Setup, Undisturbed};
use crate::report::{Demand, Row, Samples, Unit};

const ROUNDS: usize = 3;
/// Reports of the guest that don't count, and those that do: one a second.
const WARM_UP: usize = 1;
const REPORTS: usize = 3;

/// Measures it in four arms.
#[must_use]
pub fn run() -> Row {
    let setup = Setup {
        cmdline: "workload=cpu work=1000000".into(),
        ..Setup::default()
    };
    let mut undisturbed = Undisturbed::default();
    let mut rates = Arm::ALL.map(|_| Samples::of(Unit::PerSecond));
    for _ in 0..ROUNDS {
        for arm in Arm::ALL {
            let mut round = Samples::of(Unit::PerSecond);
            round.push(undisturbed.measure(&setup, arm, |running| rate(running.guest())));
            rates[arm.index()].add_round(&round);
        }
    }
    let of = |arm: Arm| &rates[arm.index()];
    let over_bare = of(Arm::Protected).p50() / of(Arm::Bare).p50();
    let row = Row::new(
        "pieces of work of a guest that computes, protected",
        of(Arm::Protected),
    )
    .floor("the same guest, bare", of(Arm::Bare))
    .demand(Demand::at_least(
        "protected / bare, p50",
        Unit::Ratio,
        over_bare,
        0.98,
    ))
    .part("dirty logging only", of(Arm::Logging))
    .part("protected, no TLS", of(Arm::Plaintext))
    .detail(
        "pieces of a million steps in a second of the host's clock, between reports of the guest",
    )
    .commands(setup.all_commands());
    undisturbed.note(row)
}

/// Pieces per second between two reports, by the host's clock: the guest's may stand still with it.
fn rate(guest: &mut Process) -> f64 {
    let from = guest.console().len();
    let until = Instant::now() + STEP;
    loop {
        let lines = guest.console().lines();
        let reports = lines.iter().skip(from).filter_map(total);
        let reports: Vec<_> = reports.skip(WARM_UP).take(REPORTS + 1).collect();
        if let [(begun, before), .., (ended, after)] = reports[..]
            && reports.len() > REPORTS
        {
            return (after - before) as f64 / (ended - begun).as_secs_f64();
        }
        assert!(Instant::now() < until, "the guest does not report");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// When the guest reported, and the pieces of work that it had done by then.
fn total(line: &Line) -> Option<(Instant, u64)> {
    let fields = line.text.split_once("cpu: rate=")?.1;
    assert!(fields.ends_with(" errors=0"), "{}", line.text);
    let total = fields
        .split(' ')
        .find_map(|field| field.strip_prefix("total="));
    Some((line.at, total?.parse().ok()?))
}
