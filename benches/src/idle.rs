//! What a protected pair costs while its guest has nothing to do.

use std::fs;
use std::time::{Duration, Instant};

use evertwin::lab::topology::Node;

use crate::arms::{Arm, Setup};
use crate::delay::epoch;
use crate::report::{Demand, Row, Samples, Unit};

/// A guest that has just booted is not idle yet.
const SETTLE: Duration = Duration::from_secs(2);
const TIME: Duration = Duration::from_secs(8);
const LIMIT_PERCENT: f64 = 1.0;

/// Measures it.
///
/// # Panics
/// If the pair is not there.
#[must_use]
pub fn run() -> Row {
    let setup = Setup::default();
    let mut alone = setup.start(Arm::Bare);
    let bare = busy(&[alone.guest().id()])[0];
    drop(alone);
    let mut running = setup.start(Arm::Protected);
    let stage = running.stage().expect("a protected guest has a pair");
    let ids = [Node::A, Node::B].map(|node| stage.twin(node).id());
    std::thread::sleep(SETTLE);
    let before = epoch(stage, Node::A);
    let both = busy(&ids);
    let epochs = epoch(stage, Node::A) - before;
    let percent = |figure: f64| {
        let mut samples = Samples::of(Unit::Percent);
        samples.push(figure);
        samples
    };
    let demand = |what, figure| Demand::at_most(what, Unit::Percent, figure, LIMIT_PERCENT);
    Row::new(
        "processor time of an idle pair's primary, of one core",
        &percent(both[0]),
    )
    .floor("the same guest without a standby", &percent(bare))
    .demand(demand("primary", both[0]))
    .demand(demand("standby", both[1]))
    .demand(Demand::at_most("epochs", Unit::Count, epochs as f64, 0.0))
    .part("standby", &percent(both[1]))
    .detail(format!(
        "in {} s; the guest is a key-value server without a client",
        TIME.as_secs()
    ))
    .commands(setup.commands(Arm::Protected))
}

/// Percent of one processor that processes use over the time.
fn busy(ids: &[u32]) -> Vec<f64> {
    let begun = Instant::now();
    let before: Vec<_> = ids.iter().map(|id| used(*id)).collect();
    std::thread::sleep(TIME);
    let took = begun.elapsed();
    let after = ids.iter().map(|id| used(*id));
    let used = after
        .zip(before)
        .map(|(after, before)| after.saturating_sub(before));
    used.map(|used| 100.0 * used.as_secs_f64() / took.as_secs_f64())
        .collect()
}

/// Processor time of all threads of a process, to the nanosecond.
fn used(id: u32) -> Duration {
    let tasks = format!("/proc/{id}/task");
    let threads = fs::read_dir(&tasks).unwrap_or_else(|error| panic!("{tasks}: {error}"));
    let times = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(times.sum())
}
