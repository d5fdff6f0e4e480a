use std::time::Duration;

use super::*;

fn times(ms: &[u64]) -> Samples {
    let mut samples = Samples::default();
    ms.iter()
        .for_each(|ms| samples.add(Duration::from_millis(*ms)));
    samples
}

fn against(ms: u64, floor_ms: u64) -> Row {
    Row::new("row", &times(&[ms])).floor("floor", &times(&[floor_ms]))
}

#[test]
fn every_demand_has_to_be_met() {
    let row = |p50, p99| {
        Row::new("row", &times(&[10, 10, 10, 90]))
            .p50_within(Duration::from_millis(p50))
            .p99_within(Duration::from_millis(p99))
    };
    assert!(row(11, 91).reached());
    assert!(!row(9, 91).reached() && !row(11, 80).reached());
    let verdicts: Vec<_> = row(9, 91).demands.iter().map(|d| d.reached).collect();
    assert_eq!(verdicts, [false, true]);
}

#[test]
fn a_demand_may_depend_on_the_floor() {
    assert!(against(120, 80).times_floor_at_most(1.51).reached());
    assert!(!against(120, 80).times_floor_at_most(1.49).reached());
    assert!(against(99, 80).speed_at_least(0.8).reached());
    assert!(!against(102, 80).speed_at_least(0.8).reached());
    assert!(against(73, 80).times_floor_at_least(0.9).reached());
    assert!(!against(71, 80).times_floor_at_least(0.9).reached());
}

#[test]
fn figures_that_are_not_there_reach_nothing() {
    let empty = Samples::default();
    let limit = Duration::from_secs(1);
    assert!(!Row::new("row", &empty).p50_within(limit).reached());
    let no_floor = Row::new("row", &times(&[1])).floor("floor", &empty);
    assert!(!no_floor.times_floor_at_most(1e9).reached());
    let nothing = Row::new("row", &empty).floor("floor", &times(&[1]));
    assert!(!nothing.times_floor_at_most(1e9).reached());
    assert!(!Row::new("row", &times(&[1])).speed_at_least(0.0).reached());
    let bytes = Row::new("row", &times(&[1])).floor("floor", &Samples::of(Unit::Bytes));
    assert_eq!(bytes.ratio(), None);
}

#[test]
fn a_row_without_demands_or_with_a_failure_is_not_reached() {
    assert!(!Row::new("row", &times(&[1])).reached());
    let failed = Row::failed("row", "no guest");
    assert!(!failed.reached());
    assert_eq!(failed.verdict(), "FAILED");
    assert!(!failed.p50_at_most(1.0).reached());
}

#[test]
fn a_demand_says_what_it_wants() {
    let row = against(2, 1).p50_within(Duration::from_millis(1));
    let row = row.times_floor_at_least(0.5);
    let targets: Vec<_> = row.demands.iter().map(Demand::target).collect();
    assert_eq!(targets, ["p50 <= 1.00 ms", "p50 / floor >= 0.500x"]);
    assert_eq!(row.demands[0].verdict(), "NOT reached");
}
