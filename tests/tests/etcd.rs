//! Failover with the arbiter in an etcd on a third machine.

use std::time::Duration;

use evertwin::lab::client::LoadOptions;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::etcd::EtcdHost;
use evertwin_tests::lab::TestLab;
use evertwin_tests::stage::{Stage, demand_clean, wait_for_more};

/// A protected pair whose arbiter is an etcd on a machine of its own.
fn protected() -> (EtcdHost, Stage) {
    let lab = TestLab::new();
    let etcd = EtcdHost::start(&lab);
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
    etcd.process.freeze();
    wait_for_more(&load, 200);
    stage.twin(Node::A).kill();
    let acked = load.progress().acked;
    stage.wait_for(Node::B, "the arbiter can't be asked; trying again");
    std::thread::sleep(Duration::from_secs(1));
    assert!(!stage.twin(Node::B).has_event_since(0, "promoted"));
    assert!(load.progress().acked <= acked + 16, "{:?}", load.progress());
    etcd.process.thaw();
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
