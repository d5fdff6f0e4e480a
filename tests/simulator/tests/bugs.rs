//! A sound core breaks nothing, a broken one does, and a seed repeats a run.

use evertwin_protocol::Bug;
use evertwin_simulator::{Schedule, run, shrink};

#[test]
fn a_sound_core_breaks_nothing() {
    for seed in 0..2_000 {
        let violation = run(&Schedule::generate(seed), None).violation;
        assert_eq!(violation, None, "seed {seed}");
    }
}

#[test]
fn a_seed_repeats_a_run() {
    for seed in 0..50 {
        let schedule = Schedule::generate(seed);
        assert_eq!(schedule, Schedule::generate(seed));
        let [one, other] = [0; 2].map(|_| format!("{:?}", run(&schedule, None)));
        assert_eq!(one, other, "seed {seed}");
    }
}

#[test]
fn a_failing_schedule_shrinks() {
    let bug = Some(Bug::StrikeFailedIsWon);
    let failing = (0..1_000).find_map(|seed| {
        let schedule = Schedule::generate(seed);
        let violation = run(&schedule, bug).violation?;
        (schedule.faults.len() > 3).then_some((schedule, violation))
    });
    let (schedule, violation) = failing.expect("the fault is found soon");
    let short = shrink(&schedule, bug, violation.invariant);
    assert!(short.faults.len() < schedule.faults.len(), "{short:#?}");
    let again = run(&short, bug).violation.expect("it still fails");
    assert_eq!(again.invariant, violation.invariant);
    assert_eq!(run(&short, None).violation, None);
}
