//! Makes a failing schedule as short as it gets.

use evertwin_protocol::Bug;

use crate::check::Invariant;
use crate::run::run;
use crate::schedule::{Fault, Schedule, Trouble, What};

/// Runs spent on one schedule, at most.
const MOST_RUNS: u32 = 3_000;

/// The shortest schedule found that breaks the same invariant: faults are left out, then
/// times are made shorter, as long as that helps.
pub fn shrink(schedule: &Schedule, bug: Option<Bug>, invariant: Invariant) -> Schedule {
    let mut shrinking = Shrinking {
        best: schedule.clone(),
        bug,
        invariant,
        runs: 0,
    };
    while shrinking.leave_out() | shrinking.simplify() | shrinking.shorten() {}
    let mut in_order = shrinking.best.clone();
    in_order.faults.sort_by_key(|fault| fault.at_us);
    shrinking.try_out(in_order);
    shrinking.best
}

struct Shrinking {
    best: Schedule,
    bug: Option<Bug>,
    invariant: Invariant,
    runs: u32,
}

impl Shrinking {
    fn try_out(&mut self, candidate: Schedule) -> bool {
        if candidate == self.best || self.runs == MOST_RUNS {
            return false;
        }
        self.runs += 1;
        let violation = run(&candidate, self.bug).violation;
        let fails = violation.is_some_and(|found| found.invariant == self.invariant);
        if fails {
            self.best = candidate;
        }
        fails
    }

    /// Leaves out runs of faults: halves first, single ones last.
    fn leave_out(&mut self) -> bool {
        let mut shorter = false;
        let mut size = self.best.faults.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < self.best.faults.len() {
                let mut candidate = self.best.clone();
                let end = (at + size).min(candidate.faults.len());
                candidate.faults.drain(at..end);
                if self.try_out(candidate) {
                    shorter = true;
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
        shorter
    }

    /// Makes the world plainer.
    fn simplify(&mut self) -> bool {
        let changes: [fn(&mut Schedule); 5] = [
            |schedule| schedule.last_blow = false,
            |schedule| schedule.window = 1,
            |schedule| schedule.reconnect_us = 0,
            |schedule| schedule.second_us = 100,
            |schedule| schedule.heal_us = schedule.heal_us * 3 / 4,
        ];
        let mut simpler = false;
        for change in changes {
            let mut candidate = self.best.clone();
            change(&mut candidate);
            simpler |= self.try_out(candidate);
        }
        simpler
    }

    /// Shortens the times of each fault.
    fn shorten(&mut self) -> bool {
        let mut shorter = false;
        for index in 0..self.best.faults.len() {
            for change in [shorten_span as fn(&mut Fault) -> bool, sooner] {
                let mut candidate = self.best.clone();
                if candidate.faults.get_mut(index).is_some_and(change) {
                    shorter |= self.try_out(candidate);
                }
            }
        }
        shorter
    }
}

fn sooner(fault: &mut Fault) -> bool {
    fault.at_us = fault.at_us * 7 / 8 / 100 * 100;
    true
}

/// Takes a half of the fault's length, in round numbers. False if it has none.
fn shorten_span(fault: &mut Fault) -> bool {
    let span = match &mut fault.what {
        What::Crash { back_us, .. } => match back_us {
            Some(back_us) => back_us,
            None => return false,
        },
        What::Arbiter {
            trouble: Trouble::ActsLate { by_us } | Trouble::Slow { by_us },
            for_us,
            ..
        } if *by_us > *for_us => by_us,
        What::Pause { for_us, .. }
        | What::Silence { for_us, .. }
        | What::Partition { for_us }
        | What::Slow { for_us, .. }
        | What::Arbiter { for_us, .. } => for_us,
        What::Cut
        | What::HalfCut { .. }
        | What::Suspicion { .. }
        | What::Damage { .. }
        | What::LoseEpoch { .. }
        | What::Stale { .. }
        | What::CaptureFails { .. }
        | What::TrackingFails { .. }
        | What::GuestExits { .. }
        | What::Operator { .. } => return false,
    };
    *span = *span / 2 / 100 * 100;
    true
}
