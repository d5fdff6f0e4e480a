//! The replication link carries nothing in one direction: one twin hears the other, and is not heard.

use evertwin::lab::client::LoadOptions;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::{Node, REPLICATION};
use evertwin_tests::stage::{Stage, demand_clean, wait_for_more};

#[test]
fn a_primary_that_is_not_heard_leaves_one_guest_speaking() {
    let (mut fenced, mut alone) = (0, 0);
    for _ in 0..2 {
        match cut_from(Node::A) {
            Node::A => alone += 1,
            Node::B => fenced += 1,
        }
    }
    println!("the primary went on alone {alone} times, and was fenced {fenced} times");
}

#[test]
fn a_standby_that_is_not_heard_leaves_one_guest_speaking() {
    let (mut fenced, mut alone) = (0, 0);
    for _ in 0..2 {
        match cut_from(Node::B) {
            Node::A => alone += 1,
            Node::B => fenced += 1,
        }
    }
    println!("the primary went on alone {alone} times, and was fenced {fenced} times");
}

/// Cuts what a node says on the replication link, demands that one guest speaks and that the pair is protected again
/// once the cut has healed. Gives the twin that won; which one does is for the arbiter to say.
fn cut_from(silenced: Node) -> Node {
    let mut stage = Stage::protected(&PairConfig {
        memory: "64M".to_owned(),
        ..PairConfig::default()
    });
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    let before = stage.twin(Node::A).log().len();
    let host = stage.pair.topology.host(silenced).clone();
    host.cut_outbound(REPLICATION)
        .unwrap_or_else(|error| panic!("{error}"));
    // More than a gated primary could have on its way.
    wait_for_more(&load, 1000);
    let alone = stage.twin(Node::A).has_event_since(before, "solo");
    if alone {
        // The other twin has made up its mind, too.
        stage.wait_for(Node::B, "the primary is gone; this twin may not take over");
    }
    let promoted = stage.twin(Node::B).has_event_since(0, "promoted");
    assert!(
        alone != promoted,
        "solo on a: {alone}, promoted on b: {promoted}"
    );
    let winner = if alone { Node::A } else { Node::B };
    if promoted {
        stage.wait_for(Node::A, "fenced");
    }
    let silent = stage.frames_from_guest(winner.peer());
    wait_for_more(&load, 500);
    assert_eq!(stage.frames_from_guest(winner.peer()), silent);

    host.heal_outbound(REPLICATION)
        .unwrap_or_else(|error| panic!("{error}"));
    if promoted {
        // A fenced twin ends.
        stage
            .pair
            .start(Node::A)
            .unwrap_or_else(|error| panic!("{error}"));
    }
    stage.wait_for_role(winner, "protected");
    stage.wait_for_role(winner.peer(), "standby");
    wait_for_more(&load, 200);
    demand_clean(load);
    winner
}
