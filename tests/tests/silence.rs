//! A primary of which nothing is heard any more: its host is gone, or only its process stands still.

use evertwin::lab::client::LoadOptions;
use evertwin::lab::events::Line;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::{Node, REPLICATION};
use evertwin_tests::stage::{Stage, demand_clean, wait_for_more};

/// A busy pair of which the primary stands still from now on; with `host`, so does the host's whole network.
fn silenced(host: bool) -> (Stage, evertwin::lab::client::Load) {
    let mut stage = Stage::protected(&PairConfig::default());
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    if host {
        let network = stage.pair.topology.host(Node::A);
        let cut = network.cut_outbound(REPLICATION);
        cut.unwrap_or_else(|error| panic!("{error}"));
    }
    stage.twin(Node::A).freeze();
    stage.wait_for(Node::B, "promoted");
    wait_for_more(&load, 200);
    (stage, load)
}

/// Why a twin gave its link up first.
fn reason(stage: &mut Stage, node: Node) -> Option<String> {
    let lines = stage.twin(node).log().lines();
    let down = |line: &&Line| line.message().as_deref() == Some("link down");
    let line = lines.iter().find(down)?;
    let fields: serde_json::Value = serde_json::from_str(&line.text).ok()?;
    Some(fields["reason"].as_str()?.to_owned())
}

#[test]
fn a_host_that_does_not_answer_is_gone() {
    let (mut stage, load) = silenced(true);
    let why = reason(&mut stage, Node::B);
    assert_eq!(why.as_deref(), Some("the peer's host does not answer"));
    demand_clean(load);
}

#[test]
fn a_process_that_stands_still_on_a_host_that_answers_has_time() {
    let (mut stage, load) = silenced(false);
    let why = reason(&mut stage, Node::B);
    assert_eq!(why.as_deref(), Some("the peer is silent"));
    demand_clean(load);
}
