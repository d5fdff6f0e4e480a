//! A guest that dirties memory faster than the link takes it is slowed until its standby has caught up.

use std::time::Duration;

use evertwin::lab::events::Line;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::{Node, REPLICATION};
use evertwin_tests::lab::{SLOW, STEP};
use evertwin_tests::stage::Stage;

const SLOWED: &str = "the guest dirties memory faster than the link takes it: slowed until the standby has caught up";
const FULL_SPEED: &str = "the guest runs at full speed again";
const ROUNDS_OVER: &str = "sync rounds are over: the first epoch carries the rest";

/// Pages with which a sync's rounds are over, unless they never come to so few.
const FEW: u64 = 1024;

/// The numbers that the events of this name gave, in order, with their places in the log.
fn numbers(log: &[Line], event: &str, field: &str) -> Vec<(usize, u64)> {
    let of_event = |line: &Line| line.message().as_deref() == Some(event);
    let events = log.iter().enumerate().filter(|(_, line)| of_event(line));
    events
        .map(|(place, line)| (place, line.field(field).unwrap().as_u64().unwrap()))
        .collect()
}

#[test]
fn a_guest_that_outruns_the_link_is_protected() {
    let mut stage = Stage::new(&PairConfig {
        // It goes round 1600 pages without a rest, in a fraction of the time that the link takes for them.
        cmdline: "workload=dirty pages=200 period_us=1 pattern=seq work=5000".to_owned(),
        memory: "64M".to_owned(),
        disk: None,
        timeout: Duration::from_secs(2),
        ..PairConfig::default()
    });
    let host = stage.pair.topology.a.clone();
    host.limit_outbound(REPLICATION, 60 / SLOW).unwrap();
    stage.pair.start(Node::A).unwrap();
    stage.twin(Node::A).wait_for_console("ready", STEP).unwrap();
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::A, SLOWED);
    stage.wait_for(Node::A, "protected");

    let log = stage.twin(Node::A).log().lines();
    let slowed = numbers(&log, SLOWED, "speed_percent");
    let speeds: Vec<u64> = slowed.iter().map(|(_, speed)| *speed).collect();
    println!("at {speeds:?} % of its speed");
    assert_eq!(speeds[0], 80);
    assert!(speeds.is_sorted_by(|a, b| a > b), "{speeds:?}");
    let over = numbers(&log, ROUNDS_OVER, "pages");
    let [(over, left)] = over[..] else {
        panic!("{over:?}");
    };
    // At full speed it would have dirtied them all in each round, to the last.
    assert!(left <= FEW, "{left} pages were left to the first epoch");
    let is_full_speed = |line: &Line| line.message().as_deref() == Some(FULL_SPEED);
    let full_speed = log.iter().rposition(is_full_speed);
    let last_slowed = slowed.last().map(|(place, _)| *place);
    assert!(last_slowed < Some(over) && Some(over) < full_speed);

    host.heal_outbound(REPLICATION).unwrap();
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    let b = stage.twin(Node::B);
    let from = b.console().len();
    for _ in 0..2 {
        let report = |line: &Line| line.text.contains("dirty: rounds=");
        let line = b.console().wait(from, STEP, report).unwrap();
        assert!(line.text.contains("errors=0"), "{}", line.text);
    }
}
