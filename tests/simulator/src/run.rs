//! One schedule, from its beginning to its end.

use std::panic::{AssertUnwindSafe, catch_unwind};

use evertwin_protocol::Bug;

use crate::check::{Invariant, Violation};
use crate::schedule::Schedule;
use crate::world::{Tally, World};

/// What became of a schedule.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What happened in it.
    pub tally: Tally,
    /// The first violation, if there was one.
    pub violation: Option<Violation>,
}

/// Runs a schedule, with a deliberate fault in the core or none.
pub fn run(schedule: &Schedule, bug: Option<Bug>) -> Outcome {
    run_with(schedule, bug, false)
}

/// The same, and prints what happens.
pub fn run_traced(schedule: &Schedule, bug: Option<Bug>) -> Outcome {
    run_with(schedule, bug, true)
}

fn run_with(schedule: &Schedule, bug: Option<Bug>, trace: bool) -> Outcome {
    let mut world = World::new(schedule, bug, trace);
    // A broken world is not looked at any more but for its verdict.
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    if ended.is_err() && world.violation.is_none() {
        world.judge(Err((Invariant::Panic, "see above".to_owned())));
    }
    Outcome {
        tally: world.tally,
        violation: world.violation,
    }
}
