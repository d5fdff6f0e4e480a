//! A running guest's protection is taken away and given back: nobody notices, and nobody takes over meanwhile (I2).

use std::process::Output;
use std::time::Duration;

use evertwin::lab::client::LoadOptions;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::{SLOW, STEP};
use evertwin_tests::stage::{Stage, demand_clean, wait_for_more};

const WAITS: &str = "the peer wants no standby now: waiting";

/// A protected pair.
fn pair(protection: &str) -> Stage {
    Stage::protected(&PairConfig {
        memory: "64M".to_owned(),
        protection: Some(protection.to_owned()),
        ..PairConfig::default()
    })
}

/// Writes the level into the configuration. The hosts of the lab share theirs; real ones have one each.
fn write_level(stage: &Stage, to: &str) {
    let file = stage.pair.directory().join("vm.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let place = lines
        .iter_mut()
        .find(|line| line.starts_with("protection = "));
    *place.unwrap() = format!("protection = \"{to}\"");
    std::fs::write(&file, lines.join("\n")).unwrap();
}

/// Has a guest go on at another level.
fn change_level(stage: &Stage, node: Node, to: &str) {
    write_level(stage, to);
    let changed = stage.operate(node, &["level"]);
    assert!(changed.status.success(), "{changed:?}");
    assert!(status(stage, node).contains(&format!("level  {to}: ")));
}

/// Has the standby leave, and its guest go on without protection.
fn unprotect(stage: &Stage, primary: Node, standby: Node) {
    let left = stage.operate(standby, &["leave"]);
    assert!(left.status.success(), "{left:?}");
    stage.wait_for_role(primary, "solo");
    change_level(stage, primary, "none");
    assert_eq!(stage.role(primary).as_deref(), Some("unprotected"));
}

/// Starts a standby of this level, which is not wanted.
fn start_unwanted(stage: &mut Stage, node: Node, level: &str) {
    write_level(stage, level);
    stage.pair.start(node).unwrap();
    stage.wait_for(node, WAITS);
    let said = status(stage, node);
    assert!(
        said.contains("waits  ") && said.contains("evertwin level"),
        "{said}"
    );
}

fn status(stage: &Stage, node: Node) -> String {
    said(&stage.operate(node, &["status"]))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Demands that a guest never ran there.
fn demand_idle(stage: &mut Stage, node: Node) {
    assert_eq!(stage.role(node).as_deref(), Some("starting"));
    let twin = stage.twin(node);
    for event in ["guest running", "promoted", "standby ready", "fenced"] {
        assert!(!twin.has_event_since(0, event), "{event}");
    }
    assert!(twin.console().lines().is_empty());
}

#[test]
fn protection_is_taken_away_and_given_back_under_load() {
    let mut stage = pair("ft");
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 100);
    stage.wait_for(
        Node::A,
        "both disks know a point: a later copy needs only what changes from here on",
    );
    write_level(&stage, "none");
    let refused = stage.operate(Node::A, &["level"]);
    let why = said(&refused);
    assert!(
        !refused.status.success() && why.contains("have the standby leave first"),
        "{why}"
    );
    unprotect(&stage, Node::A, Node::B);
    wait_for_more(&load, 300);

    start_unwanted(&mut stage, Node::B, "ft");
    wait_for_more(&load, 300);
    assert_eq!(stage.role(Node::A).as_deref(), Some("unprotected"));
    demand_idle(&mut stage, Node::B);

    // It has waited for nothing else.
    change_level(&stage, Node::A, "ft");
    stage.wait_for(Node::B, "standby ready");
    stage.wait_for_role(Node::A, "protected");
    let lines = stage.twin(Node::A).log().lines();
    let mut copies = lines
        .iter()
        .rev()
        .filter(|line| line.message().as_deref() == Some("disk copy"));
    let copy = copies.next().unwrap().field("copy").unwrap();
    assert_eq!(copy.as_str(), Some("delta"));
    assert!(!status(&stage, Node::B).contains("waits  "));
    wait_for_more(&load, 100);
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    wait_for_more(&load, 100);
    demand_clean(load);
}

#[test]
fn nobody_takes_an_unprotected_guest_over() {
    let mut stage = pair("ft");
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 100);
    unprotect(&stage, Node::A, Node::B);
    let grown = stage.operate(Node::A, &["grow", "--size", "128M"]);
    assert!(grown.status.success(), "{grown:?}");
    let image = stage.lab.path("disk-b.img");
    let image = std::fs::File::options().write(true).open(image).unwrap();
    image.set_len(128 << 20).unwrap();
    wait_for_more(&load, 300);
    start_unwanted(&mut stage, Node::B, "ft");
    let record = std::fs::read(stage.lab.path("arbiter")).unwrap();

    stage.twin(Node::A).kill();
    let acked = load.progress().acked;
    drop(load);
    // Many times as long as a standby takes, and once more from its start.
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(3) * SLOW);
        demand_idle(&mut stage, Node::B);
        stage.pair.start(Node::B).unwrap();
        stage.wait_for(
            Node::B,
            "waiting for the peer: it may hold the guest's newest state",
        );
    }
    assert_eq!(std::fs::read(stage.lab.path("arbiter")).unwrap(), record);

    // The host that had it goes on from its own disk: a plain VM at first, then a twin again.
    for level in ["none", "ft"] {
        write_level(&stage, level);
        stage.pair.start(Node::A).unwrap();
        stage
            .twin(Node::A)
            .wait_for_console("ready", STEP)
            .unwrap_or_else(|error| panic!("{error}"));
        let newest = acked / 2;
        let known = stage.lab.redis(&["GET", &format!("key:{newest}")]);
        assert_eq!(known, newest.to_string(), "of {acked} acknowledged writes");
        if level == "none" {
            demand_idle(&mut stage, Node::B);
            stage.twin(Node::A).terminate();
            stage.twin(Node::A).wait_for_exit(STEP).unwrap();
        }
    }
    stage.wait_for(Node::B, "standby ready");
    stage.await_same_images(["disk-a.img", "disk-b.img"]);
}

#[test]
fn a_guest_that_may_be_elsewhere_is_not_started_alone() {
    let mut stage = pair("ft");
    write_level(&stage, "none");
    let refused = |stage: &mut Stage, node: Node, why: &str| {
        stage.pair.start(node).unwrap();
        let ended = stage.twin(node).wait_for_exit(STEP).unwrap();
        let lines = stage.twin(node).log().lines();
        let said = lines.last().is_some_and(|line| line.text.contains(why));
        assert!(ended.code() == Some(1) && said, "{ended}: {lines:?}");
    };
    stage.twin(Node::B).kill();
    stage.wait_for(Node::A, "solo");
    refused(
        &mut stage,
        Node::B,
        "does not say that node `b` alone has this guest",
    );
    // The other way round: the one that is down may have been taken over.
    write_level(&stage, "ft");
    stage.pair.start(Node::B).unwrap();
    stage.wait_for_role(Node::A, "protected");
    stage.twin(Node::A).kill();
    stage.twin(Node::B).kill();
    write_level(&stage, "none");
    refused(
        &mut stage,
        Node::A,
        "does not say that node `a` alone has this guest",
    );
}

#[test]
fn a_twin_that_dials_keeps_standbys_out_as_well() {
    let mut stage = pair("ft");
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 100);
    let exchanged = stage.operate(Node::A, &["switchover"]);
    assert!(exchanged.status.success(), "{exchanged:?}");
    stage.wait_for_role(Node::B, "protected");
    for (from, to) in [("ft", "ha"), ("ha", "ft")] {
        unprotect(&stage, Node::B, Node::A);
        start_unwanted(&mut stage, Node::A, from);
        demand_idle(&mut stage, Node::A);
        wait_for_more(&load, 100);
        change_level(&stage, Node::B, to);
        stage.pair.start(Node::A).unwrap();
        stage.wait_for_role(Node::B, "protected");
        assert!(status(&stage, Node::B).contains(&format!("level  {to}: ")));
        wait_for_more(&load, 100);
    }
    stage.twin(Node::B).kill();
    stage.wait_for(Node::A, "promoted");
    wait_for_more(&load, 100);
    demand_clean(load);
}
