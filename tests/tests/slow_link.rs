//! A guest that dirties memory faster than the link takes it is slowed until its standby has caught up. What goes over a slow link is
//! packed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use evertwin::config::FastPath;
use evertwin::lab::client::LoadOptions;
use evertwin::lab::events::Line;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::{Node, REPLICATION};
use evertwin_tests::lab::{SLOW, STEP};
use evertwin_tests::stage::{Stage, demand_clean, wait_for_more};

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

const PACKED: &str = "the link is slow: what goes over it is packed";
/// Bytes of text on a disk, behind zeroes that are for the guest.
const TEXT: u64 = 48 << 20;
const ZEROES: u64 = 4 << 20;
/// Of which so many go over the link before it is known how fast that is.
const PLAIN: u64 = 16 << 20;

/// Bytes that a whole copy of such a disk takes over a link of 800 Mbit/s. The guest then moves.
fn copied_over_a_slow_link(pack: bool) -> u64 {
    let fast_path = FastPath {
        pack,
        ..FastPath::default()
    };
    let mut stage = Stage::new(&PairConfig {
        memory: "64M".to_owned(),
        disk: Some(ZEROES + TEXT),
        timeout: Duration::from_secs(2),
        scrub_rate: Some("1G".to_owned()),
        fast_path,
        ..PairConfig::default()
    });
    let lines =
        (0..).flat_map(|line| format!("{line}: the pump ran at {} turns\n", line * 7).into_bytes());
    let text: Vec<u8> = lines.take(TEXT as usize).collect();
    let image = File::options()
        .write(true)
        .open(stage.lab.path("disk-a.img"));
    image.unwrap().write_all_at(&text, ZEROES).unwrap();
    let host = stage.pair.topology.a.clone();
    host.limit_outbound(REPLICATION, 800 / SLOW).unwrap();
    stage.protect();
    let sent = host.sent(REPLICATION).unwrap();

    let log = stage.twin(Node::A).log().lines();
    let told = log
        .iter()
        .any(|line| line.message().as_deref() == Some(PACKED));
    assert_eq!(told, pack);
    for what in [&["scrub"][..], &["scrub", "--memory"]] {
        let output = stage.operate(Node::A, what);
        assert!(output.status.success(), "{output:?}");
    }
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 100);
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    wait_for_more(&load, 100);
    demand_clean(load);
    sent
}

#[test]
fn what_goes_over_a_slow_link_is_packed() {
    let packed = copied_over_a_slow_link(true);
    let plain = copied_over_a_slow_link(false);
    println!("{packed} bytes, {plain} without packing");
    assert!(plain > TEXT);
    let rest = (TEXT - PLAIN) / 2;
    assert!(packed < PLAIN + rest, "{packed} of {plain} bytes");
}
