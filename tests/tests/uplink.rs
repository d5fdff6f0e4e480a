//! A host whose uplink has lost its carrier: the guest goes where there is one, and its clients notice a pause.

use std::time::{Duration, Instant};

use evertwin::lab::client::LoadOptions;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::{Node, UPLINK};
use evertwin_tests::lab::STEP;
use evertwin_tests::stage::{Stage, demand_clean, run_for, wait_for_more};

const LEAVES: &str = "an uplink has no carrier here: the guest goes on at the peer";
const BACK: &str = "an uplink has its carrier back";

/// A protected pair whose uplinks are watched.
fn watched(protection: Option<&str>) -> Stage {
    let stage = Stage::protected(&PairConfig {
        memory: "64M".to_owned(),
        uplink: Some(UPLINK.to_owned()),
        protection: protection.map(str::to_owned),
        ..PairConfig::default()
    });
    for (node, peer) in [(Node::A, "b"), (Node::B, "a")] {
        await_status(&stage, node, "uplink lan0 has carrier");
        await_status(&stage, node, &format!("uplink of {peer} has carrier"));
    }
    stage
}

/// A client that waits for longer than it takes until a guest has left a host, and its own next attempt behind that.
fn patient() -> LoadOptions {
    LoadOptions {
        patience: Duration::from_secs(90),
        ..LoadOptions::default()
    }
}

/// Waits until `evertwin status` of a twin says this.
fn await_status(stage: &Stage, node: Node, wanted: &str) {
    let until = Instant::now() + STEP;
    loop {
        let output = stage.operate(node, &["status"]);
        if String::from_utf8_lossy(&output.stdout).contains(wanted) {
            return;
        }
        assert!(Instant::now() < until, "{node:?}, {wanted}: {output:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn plug(stage: &Stage, node: Node, in_: bool) {
    let plugged = stage.pair.topology.set_uplink(node, in_);
    plugged.unwrap_or_else(|error| panic!("{error}"));
}

fn left(stage: &mut Stage, node: Node) -> bool {
    stage.twin(node).has_event_since(0, LEAVES)
}

#[test]
fn a_guest_leaves_a_host_whose_uplink_has_lost_its_carrier() {
    let mut stage = watched(None);
    let load = stage.load(patient());
    wait_for_more(&load, 200);
    plug(&stage, Node::A, false);
    stage.wait_for(Node::A, LEAVES);
    stage.wait_for(Node::B, "promoted");
    wait_for_more(&load, 500);
    // Both sides know why, and that of the two only a's is lost.
    await_status(&stage, Node::A, "uplink lan0 has no carrier");
    await_status(&stage, Node::A, "uplink of b has carrier");
    await_status(&stage, Node::B, "uplink of a is lost: lan0");
    let status = stage.operate(Node::B, &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["uplinks"][0]["good"], true, "{status}");
    assert_eq!(status["peer_uplinks"]["good"], false, "{status}");
    // That a's is back is no reason to go again. That b's is lost then is one.
    plug(&stage, Node::A, true);
    stage.wait_for(Node::A, BACK);
    await_status(&stage, Node::B, "uplink of a has carrier");
    wait_for_more(&load, 200);
    assert_eq!(stage.role(Node::B).as_deref(), Some("protected"));
    plug(&stage, Node::B, false);
    stage.wait_for(Node::B, LEAVES);
    stage.wait_for(Node::A, "promoted");
    wait_for_more(&load, 200);
    let verdict = demand_clean(load);
    println!("two lost carriers: {}", verdict.summary());
}

#[test]
fn a_guest_stays_until_the_other_host_has_carrier() {
    let mut stage = watched(None);
    let load = stage.load(patient());
    wait_for_more(&load, 200);
    plug(&stage, Node::B, false);
    await_status(&stage, Node::A, "uplink of b is lost: lan0");
    wait_for_more(&load, 200);
    plug(&stage, Node::A, false);
    stage.wait_for(
        Node::A,
        "an uplink has no carrier here, and the guest stays: the peer's has none either",
    );
    run_for(&load, Duration::from_secs(3));
    assert!(!left(&mut stage, Node::A));
    assert_eq!(stage.role(Node::A).as_deref(), Some("protected"));
    plug(&stage, Node::B, true);
    let plugged = Instant::now();
    stage.wait_for(Node::B, BACK);
    stage.wait_for(Node::B, "promoted");
    assert!(plugged.elapsed() >= Duration::from_secs(9), "{plugged:?}");
    let resumed = load.wait_until(4 * STEP, |seen| {
        seen.last_answer.is_some_and(|answer| answer > plugged)
    });
    assert!(resumed, "{:?}", load.progress());
    wait_for_more(&load, 200);
    let verdict = demand_clean(load);
    println!("two lost carriers at once: {}", verdict.summary());
}

#[test]
fn a_guest_whose_memory_is_not_replicated_stays() {
    let mut stage = watched(Some("ha"));
    for node in [Node::A, Node::B] {
        let lost = format!("uplink of {} is lost: lan0", node.name());
        // Here nobody pulls a cable: the interface is switched off, or removed.
        let change = match node {
            Node::A => "link set lan0 down",
            Node::B => "link delete lan0",
        };
        let host = stage.pair.topology.host(node);
        host.ip(&[change.to_owned()]).unwrap();
        await_status(&stage, node, "uplink lan0 has no carrier");
        await_status(&stage, node.peer(), &lost);
    }
    stage.wait_for(
        Node::A,
        "an uplink has no carrier here, and the guest stays: its memory is not replicated, so it can't be handed over",
    );
    assert!(!left(&mut stage, Node::A));
    assert_eq!(stage.role(Node::A).as_deref(), Some("protected"));
    // It can't be started like that.
    stage.twin(Node::B).kill();
    stage.pair.start(Node::B).unwrap();
    let status = stage.twin(Node::B).wait_for_exit(STEP).unwrap();
    let lines = stage.twin(Node::B).log().lines();
    let named = |line: &str| line.contains("no interface lan0") && line.contains("tap0");
    let named = lines.iter().any(|line| named(&line.text));
    assert!(status.code() == Some(1) && named, "{status}: {lines:?}");
}

#[test]
fn a_carrier_that_is_back_within_a_second_changes_nothing() {
    let mut stage = watched(None);
    let load = stage.load(patient());
    wait_for_more(&load, 200);
    for _ in 0..6 {
        plug(&stage, Node::A, false);
        run_for(&load, Duration::from_millis(300));
        plug(&stage, Node::A, true);
        run_for(&load, Duration::from_millis(500));
    }
    wait_for_more(&load, 200);
    assert!(!left(&mut stage, Node::A));
    assert_eq!(stage.role(Node::A).as_deref(), Some("protected"));
    await_status(&stage, Node::A, "uplink lan0 has carrier");
    demand_clean(load);
}
