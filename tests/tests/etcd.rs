//! Failover with the arbiter in an etcd on a third machine.

use std::time::Duration;

use evertwin::lab::client::{Load, LoadOptions};
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::etcd::{Direction, EtcdHost};
use evertwin_tests::lab::{SLOW, TestLab};
use evertwin_tests::stage::{Stage, demand_clean, wait_for_more};

/// A protected pair whose arbiter is an etcd on a machine of its own.
fn protected() -> (EtcdHost, Stage) {
    protected_by(EtcdHost::start)
}

fn protected_by(start: fn(&TestLab) -> EtcdHost) -> (EtcdHost, Stage) {
    let lab = TestLab::new();
    let etcd = start(&lab);
    let config = PairConfig {
        memory: "64M".to_owned(),
        arbiter: Some(etcd.arbiter()),
        ..PairConfig::default()
    };
    let mut stage = Stage::in_lab(lab, &config);
    stage.protect();
    (etcd, stage)
}

#[test]
fn a_killed_primary_is_survived_and_protected_again() {
    let (etcd, mut stage) = protected();
    let before = etcd.record("demo");
    assert_eq!(
        before.standby.map(|node| node.to_string()),
        Some("b".into())
    );
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    wait_for_more(&load, 200);
    let after = etcd.record("demo");
    assert_eq!(after.generation, before.generation + 1);
    assert_eq!(after.releaser.as_str(), "b");

    // The repaired host joins again, and the guest survives the other one, too.
    stage
        .pair
        .start(Node::A)
        .unwrap_or_else(|error| panic!("{error}"));
    stage.wait_for(Node::A, "standby ready");
    wait_for_more(&load, 200);
    stage.twin(Node::B).kill();
    stage.wait_for(Node::A, "promoted");
    wait_for_more(&load, 200);
    demand_clean(load);
}

#[test]
fn while_the_arbiter_is_silent_nobody_takes_over() {
    let (etcd, mut stage) = protected();
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    // Protected, the pair does not need it.
    etcd.members[0].freeze();
    wait_for_more(&load, 200);
    stage.twin(Node::A).kill();
    let acked = load.progress().acked;
    stage.wait_for(Node::B, "the arbiter can't be asked; trying again");
    std::thread::sleep(Duration::from_secs(1));
    assert!(!stage.twin(Node::B).has_event_since(0, "promoted"));
    assert!(load.progress().acked <= acked + 16, "{:?}", load.progress());
    etcd.members[0].thaw();
    stage.wait_for(Node::B, "promoted");
    wait_for_more(&load, 200);
    demand_clean(load);
}

#[test]
fn a_cut_link_is_decided_by_etcd() {
    let (etcd, stage) = protected();
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    stage
        .pair
        .topology
        .set_replication_link(false)
        .unwrap_or_else(|error| panic!("{error}"));
    wait_for_more(&load, 200);
    demand_clean(load);
    assert!(etcd.record("demo").generation > 1);
}

#[test]
fn one_dead_member_of_three_is_not_missed() {
    let (mut etcd, mut stage) = protected_by(EtcdHost::cluster);
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    // The one that both twins ask first.
    etcd.members[0].kill();
    wait_for_more(&load, 200);
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    wait_for_more(&load, 200);
    stage
        .pair
        .start(Node::A)
        .unwrap_or_else(|error| panic!("{error}"));
    stage.wait_for(Node::A, "standby ready");
    wait_for_more(&load, 200);
    demand_clean(load);
    let record = etcd.record("demo");
    assert_eq!(record.releaser.as_str(), "b");
    assert_eq!(
        record.standby.map(|node| node.to_string()),
        Some("a".into())
    );
}

#[test]
fn without_most_members_a_protected_guest_goes_on_and_nobody_takes_over() {
    let (mut etcd, mut stage) = protected_by(EtcdHost::cluster);
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    for member in &mut etcd.members[1..] {
        member.kill();
    }
    wait_for_more(&load, 500);
    stage.twin(Node::A).kill();
    demand_silence(&mut stage, &load, Node::B);
    etcd.restart(1);
    stage.wait_for(Node::B, "promoted");
    wait_for_more(&load, 200);
    demand_clean(load);
    assert_eq!(etcd.record("demo").releaser.as_str(), "b");
}

#[test]
fn a_standby_without_a_path_to_etcd_does_not_take_over() {
    for direction in [Direction::ToEtcd, Direction::FromEtcd] {
        let (etcd, stage) = protected();
        survives_without_a_path(&etcd, stage, Node::B, direction, "promoted");
    }
}

#[test]
fn a_primary_without_a_path_to_etcd_holds_its_output_when_it_is_left_alone() {
    for direction in [Direction::ToEtcd, Direction::FromEtcd] {
        let (etcd, stage) = protected();
        survives_without_a_path(&etcd, stage, Node::A, direction, "solo");
    }
}

/// The survivor of the other twin's death can't reach etcd, or hear it: it releases nothing until it can.
fn survives_without_a_path(
    etcd: &EtcdHost,
    mut stage: Stage,
    survivor: Node,
    direction: Direction,
    goes_on: &str,
) {
    let before = etcd.record("demo");
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    etcd.set_path(&stage.pair.topology, survivor, direction, false);
    // Protected, the pair does not need it.
    wait_for_more(&load, 200);
    let from = stage.twin(survivor).log().len();
    stage.twin(survivor.peer()).kill();
    demand_silence(&mut stage, &load, survivor);
    assert!(!stage.twin(survivor).has_event_since(from, goes_on));
    etcd.set_path(&stage.pair.topology, survivor, direction, true);
    wait_for_more(&load, 200);
    assert!(stage.twin(survivor).has_event_since(from, goes_on));
    demand_clean(load);
    let after = etcd.record("demo");
    assert_eq!(after.generation, before.generation + 1);
    assert_eq!(after.releaser.as_str(), survivor.name());
}

/// The survivor of the other twin's death has nobody to ask: nothing leaves the guest.
fn demand_silence(stage: &mut Stage, load: &Load, survivor: Node) {
    stage.wait_for(survivor, "the arbiter can't be asked; trying again");
    let acked = load.progress().acked;
    std::thread::sleep(Duration::from_secs(1) * SLOW);
    assert!(!stage.twin(survivor).has_event_since(0, "promoted"));
    assert_eq!(load.progress().acked, acked);
}
