//! The lab's own network and judge, against a server that is known to be right: redis-server.

use std::time::Duration;

use evertwin::lab::client::{Load, LoadOptions};
use evertwin::lab::process::Process;
use evertwin::lab::topology::{GUEST, GUEST_KV, Node, TAP, Topology};

/// A redis-server in the guest's place on `node`: same address, other side of the same bridge.
fn redis(topology: &Topology, node: Node, directory: &std::path::Path) -> Process {
    let host = topology.host(node);
    host.ip(&[format!("address add {GUEST}/24 dev br0")])
        .unwrap();
    let mut command = host.command("redis-server");
    command.args([
        "--port",
        "6379",
        "--save",
        "",
        "--appendonly",
        "no",
        "--protected-mode",
        "no",
    ]);
    let mut server = Process::start(command, &format!("redis-{}", node.name()), directory).unwrap();
    server
        .wait_for_console("Ready to accept connections", Duration::from_secs(10))
        .unwrap();
    server
}

#[test]
fn a_real_server_is_judged_clean_from_both_hosts() {
    let directory = tempfile::tempdir().unwrap();
    for node in [Node::A, Node::B] {
        let topology = Topology::new().unwrap();
        let server = redis(&topology, node, directory.path());
        let stream = topology
            .client
            .connect(GUEST_KV, Duration::from_secs(5))
            .unwrap();
        let load = Load::start(stream, LoadOptions::default()).unwrap();
        assert!(
            load.wait_until(Duration::from_secs(20), |seen| seen.acked >= 20_000),
            "{:?}",
            load.progress()
        );
        let verdict = load.finish();
        assert!(verdict.is_clean(), "{verdict:?}");
        drop(server);
    }
}

#[test]
fn a_killed_server_loses_the_connection() {
    let directory = tempfile::tempdir().unwrap();
    let topology = Topology::new().unwrap();
    let mut server = redis(&topology, Node::A, directory.path());
    let stream = topology
        .client
        .connect(GUEST_KV, Duration::from_secs(5))
        .unwrap();
    let load = Load::start(stream, LoadOptions::default()).unwrap();
    assert!(load.wait_until(Duration::from_secs(20), |seen| seen.acked >= 1000));
    server.kill();
    let verdict = load.finish();
    assert!(
        !verdict.is_clean() && verdict.progress.broken.is_some(),
        "{verdict:?}"
    );
}

#[test]
fn the_hosts_reach_each_other_and_have_their_tap() {
    let topology = Topology::new().unwrap();
    let ping = |from: Node| {
        let mut command = topology.host(from).command("ping");
        command.args([
            "-c",
            "1",
            "-W",
            "1",
            &from.peer().address().ip().to_string(),
        ]);
        command.output().unwrap().status.success()
    };
    assert!(ping(Node::A) && ping(Node::B));
    topology.set_replication_link(false).unwrap();
    assert!(!ping(Node::A) && !ping(Node::B));
    topology.set_replication_link(true).unwrap();
    assert!(ping(Node::A));
    for node in [Node::A, Node::B] {
        topology
            .host(node)
            .ip(&[format!("link show {TAP}")])
            .unwrap();
    }
    let error = topology
        .a
        .ip(&["link show nonesuch".to_owned()])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("nonesuch") && !error.contains('\n'),
        "{error}"
    );
}
