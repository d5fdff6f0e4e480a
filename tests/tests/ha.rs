//! Pairs of which only the disks are replicated: one guest at a time, and nothing lost that it was told is written.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use evertwin::lab::client::{Load, LoadOptions};
use evertwin::lab::events::Line;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::process::Process;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::{SLOW, STEP, evertwin_binary};
use evertwin_tests::seed;
use evertwin_tests::stage::{Stage, demand_clean, run_for, wait_for_more};

/// What the pair has by itself: twice its timeout.
const LEASE: Duration = Duration::from_secs(SLOW as u64);

const STOPPED: &str = "the guest is stopped until it is clear whose it is";
const CONTINUED: &str = "the guest goes on";
const NOT_TAKING_OVER: &str = "the primary is gone; this twin may not take over";

/// The same, without anybody who decides who runs the guest but the operator.
fn without_arbiter() -> PairConfig {
    PairConfig {
        arbiter: Some("manual:notes-{node}".to_owned()),
        ..ha()
    }
}

fn ha() -> PairConfig {
    PairConfig {
        memory: "64M".to_owned(),
        protection: Some("ha".to_owned()),
        ..PairConfig::default()
    }
}

/// Waits for one of these events, and says when it came.
fn wait_for_any(process: &Process, from: usize, events: &[&str]) -> Line {
    let wanted = |line: &Line| {
        line.message()
            .is_some_and(|message| events.contains(&message.as_str()))
    };
    let found = process.log().wait(from, STEP, wanted);
    found.unwrap_or_else(|why| panic!("{events:?}: {why:?}"))
}

/// Whether the guest answers the client's pings.
fn answers(stage: &Stage) -> bool {
    let arguments = ["-c", "3", "-i", "0.2", "-W", "1", "10.77.0.2"];
    stage.lab.client_tool("ping", &arguments).status.success()
}

/// Demands that a guest that was booted anew knows all that the client had been told.
fn demand_known(stage: &mut Stage, node: Node, acked: u64) {
    let b = stage.twin(node);
    b.wait_for_console("ready", STEP)
        .unwrap_or_else(|error| panic!("{error}"));
    let known = stage.lab.redis(&["GET", "counter"]);
    let known: u64 = known.parse().unwrap_or(0);
    assert!(
        known >= acked.div_ceil(2),
        "the guest knows {known} of {acked} acknowledged writes"
    );
    let newest = acked / 2;
    let key = stage.lab.redis(&["GET", &format!("key:{newest}")]);
    assert_eq!(key, newest.to_string(), "of {acked} acknowledged writes");
}

/// What the client was told until now, when its connection ends.
fn told(load: Load) -> u64 {
    load.progress().acked
}

#[test]
fn a_killed_primarys_guest_boots_elsewhere_with_all_it_was_told_is_written() {
    let mut random = seed::generator();
    for _ in 0..3 {
        let mut stage = Stage::protected(&ha());
        let load = stage.load(LoadOptions {
            depth: random.usize(1..=16),
            ..LoadOptions::default()
        });
        wait_for_more(&load, 200);
        run_for(&load, Duration::from_micros(random.u64(0..600_000)));
        stage.twin(Node::A).kill();
        let acked = told(load);
        stage.wait_for(Node::B, "promoted");
        demand_known(&mut stage, Node::B, acked);

        // The host that is back has a copy of the disk again, and takes over in its turn.
        stage.pair.start(Node::A).unwrap();
        stage.wait_for(Node::A, "standby ready");
        let load = stage.load(LoadOptions::default());
        wait_for_more(&load, 200);
        let acked = told(load);
        stage.await_same_images(["disk-a.img", "disk-b.img"]);
        stage.twin(Node::B).kill();
        stage.wait_for(Node::A, "promoted");
        demand_known(&mut stage, Node::A, acked);
    }
}

#[test]
fn a_frozen_primary_never_speaks_again() {
    let mut stage = Stage::protected(&ha());
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    let frozen_at = Instant::now();
    stage.twin(Node::A).freeze();
    let acked = told(load);
    stage.wait_for(Node::B, "promoted");
    let waited = frozen_at.elapsed();
    assert!(waited > LEASE, "booted after {waited:?}");
    demand_known(&mut stage, Node::B, acked);
    // Frames for everybody reach both guests, and one that could would answer them.
    let ask_everybody = |stage: &Stage| {
        for _ in 0..3 {
            stage.lab.client_tool("ip", &["neigh", "flush", "all"]);
            assert!(answers(stage));
        }
    };
    ask_everybody(&stage);
    let sent = stage.frames_from_guest(Node::A);
    let said = stage.twin(Node::A).console().len();
    // At first nobody tells it that its right is gone: it has to know by itself.
    let arbiter = ["arbiter", "arbiter-away"].map(|name| stage.lab.path(name));
    std::fs::rename(&arbiter[0], &arbiter[1]).unwrap();
    stage.twin(Node::A).thaw();
    stage.wait_for(Node::A, STOPPED);
    ask_everybody(&stage);
    std::fs::rename(&arbiter[1], &arbiter[0]).unwrap();
    let ended = stage.twin(Node::A).wait_for_exit(STEP).unwrap();
    assert_eq!(ended.code(), Some(3), "it is not fenced");
    assert_eq!(stage.frames_from_guest(Node::A), sent, "it sent frames");
    assert_eq!(stage.twin(Node::A).console().len(), said, "it spoke");
    // What it wrote alone does not survive.
    stage.lab.redis(&["SET", "key", "kept"]);
    stage.pair.start(Node::A).unwrap();
    stage.wait_for(Node::A, "standby ready");
    stage.await_same_images(["disk-a.img", "disk-b.img"]);
    assert_eq!(stage.lab.redis(&["GET", "key"]), "kept");
}

#[test]
fn a_cut_link_leaves_one_guest_at_a_time() {
    let mut stage = Stage::protected(&ha());
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    let before = stage.twin(Node::A).log().len();
    stage.pair.topology.set_replication_link(false).unwrap();
    let decided = wait_for_any(stage.twin(Node::A), before, &["solo", "fenced"]);
    if decided.message().as_deref() == Some("solo") {
        stage.wait_for(Node::B, NOT_TAKING_OVER);
        wait_for_more(&load, 200);
        demand_clean(load);
        assert!(!stage.twin(Node::B).has_event_since(0, "promoted"));
        return;
    }
    let acked = told(load);
    let sent = stage.frames_from_guest(Node::A);
    let promoted = wait_for_any(stage.twin(Node::B), 0, &["promoted"]);
    assert!(decided.at < promoted.at, "the guest ran on both hosts");
    demand_known(&mut stage, Node::B, acked);
    assert_eq!(stage.frames_from_guest(Node::A), sent);
}

#[test]
fn without_link_and_arbiter_the_guest_stands_still_and_goes_on_later() {
    let mut stage = Stage::protected(&ha());
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    let [arbiter, away]: [PathBuf; 2] =
        ["arbiter", "arbiter-away"].map(|name| stage.lab.path(name));
    std::fs::rename(&arbiter, &away).unwrap();
    // Only so that it is clear who wins in the end.
    stage.twin(Node::B).freeze();
    stage.pair.topology.set_replication_link(false).unwrap();
    let cut_at = Instant::now();
    let stopped = wait_for_any(stage.twin(Node::A), 0, &[STOPPED]);
    let ran = stopped.at - cut_at;
    assert!(ran < LEASE * 2, "the guest ran for {ran:?} without a lease");
    assert!(!answers(&stage), "the guest answers without a lease");
    let sent = stage.frames_from_guest(Node::A);
    assert!(!answers(&stage), "the guest answers without a lease");
    assert_eq!(stage.frames_from_guest(Node::A), sent);

    std::fs::rename(&away, &arbiter).unwrap();
    stage.wait_for(Node::A, CONTINUED);
    // Not even the connection has noticed more than a pause.
    wait_for_more(&load, 200);
    demand_clean(load);
}

#[test]
fn an_idle_guest_keeps_its_lease() {
    let mut stage = Stage::protected(&ha());
    stage.wait_for(Node::B, "standby ready");
    let until = Instant::now() + LEASE * 3;
    while Instant::now() < until {
        assert_eq!(stage.role(Node::A).as_deref(), Some("protected"));
        std::thread::sleep(LEASE / 10);
    }
    assert!(!stage.twin(Node::A).has_event_since(0, STOPPED));
    assert!(answers(&stage));

    let status = stage.operate(Node::A, &["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("ha: its disks are mirrored"), "{status}");
    let lease = format!("lease  a has it, {} ms long, ", LEASE.as_millis());
    assert!(
        status.contains(&lease) && status.contains(" ms left"),
        "{status}"
    );
    let other = stage.operate(Node::B, &["status"]);
    let other = String::from_utf8_lossy(&other.stdout).into_owned();
    assert!(other.contains(&lease), "{other}");
    for command in ["switchover", "leave"] {
        let refused = stage.operate(Node::A, &[command]);
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{command}");
        assert!(why.contains("without a restart"), "{command}: {why}");
    }
    assert!(answers(&stage));
}

#[test]
fn twins_of_different_levels_are_no_pair() {
    for (ours, theirs) in [("ha", "ft"), ("ft", "ha")] {
        let mut stage = Stage::new(&PairConfig {
            protection: Some(ours.to_owned()),
            ..ha()
        });
        let config = std::fs::read_to_string(stage.lab.path("vm.toml")).unwrap();
        let [ours, theirs] = [ours, theirs].map(|level| format!("protection = \"{level}\""));
        let other = config.replace(&ours, &theirs);
        assert_ne!(other, config);
        std::fs::write(stage.lab.path("vm-b.toml"), other).unwrap();
        stage.pair.start(Node::A).unwrap();
        stage.wait_for(Node::A, "guest running");
        let mut command = stage.pair.topology.b.command(evertwin_binary());
        command
            .args(["run", "vm-b.toml", "--node", "b", "--log-format", "json"])
            .current_dir(stage.lab.directory());
        let mut b = Process::start(command, "b", stage.lab.directory()).unwrap();
        assert_eq!(b.wait_for_exit(STEP).unwrap().code(), Some(1));
        let named = |line: &Line| line.text.contains("set the same `protection`");
        assert!(b.log().lines().iter().any(named), "{:?}", b.log().lines());
        assert!(answers(&stage));
    }
}

/// Has a guest that runs alone on this host protected at another level, as an operator would.
fn change_level(stage: &mut Stage, from: &str, to: &str) {
    let left = stage.operate(Node::B, &["leave"]);
    assert!(left.status.success(), "{left:?}");
    stage.wait_for_role(Node::A, "solo");
    let file = stage.pair.directory().join("vm.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let of = |level| format!("protection = \"{level}\"");
    assert!(text.contains(&of(from)), "{text}");
    std::fs::write(&file, text.replace(&of(from), &of(to))).unwrap();
    let changed = stage.operate(Node::A, &["level"]);
    assert!(changed.status.success(), "{changed:?}");
    stage.pair.start(Node::B).unwrap();
    stage.wait_for_role(Node::A, "protected");
    let status = stage.operate(Node::A, &["status"]);
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(said.contains(&format!("level  {to}")), "{said}");
}

#[test]
fn the_level_changes_under_a_running_guest() {
    let mut stage = Stage::protected(&PairConfig {
        protection: Some("ft".to_owned()),
        ..ha()
    });
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 100);
    let refused = stage.operate(Node::A, &["level"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("have the standby leave first"),
        "{said}"
    );
    change_level(&mut stage, "ft", "ha");
    wait_for_more(&load, 100);
    change_level(&mut stage, "ha", "ft");
    wait_for_more(&load, 100);
    // The one connection has seen nothing of all that, nor does it of this.
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    wait_for_more(&load, 100);
    demand_clean(load);
    // And where memory is not replicated any more, the guest boots anew.
    stage.pair.start(Node::A).unwrap();
    stage.wait_for_role(Node::B, "protected");
}

#[test]
fn without_an_arbiter_the_operator_has_the_guest_booted_elsewhere() {
    let mut stage = Stage::protected(&without_arbiter());
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    stage.twin(Node::A).kill();
    let acked = told(load);
    // Nobody else can know that it is dead.
    stage.wait_for(
        Node::B,
        "the primary is gone; without an arbiter nothing is promoted by itself",
    );
    assert_eq!(stage.role(Node::B).as_deref(), Some("standby"));
    let promoted = stage.operate(Node::B, &["promote", "--peer-is-dead"]);
    assert!(promoted.status.success(), "{promoted:?}");
    demand_known(&mut stage, Node::B, acked);
    // Back, it does not boot what it had, but follows.
    stage.pair.start(Node::A).unwrap();
    stage.wait_for_role(Node::B, "protected");
    stage.await_same_images(["disk-a.img", "disk-b.img"]);
}

#[test]
fn without_an_arbiter_an_old_primarys_word_is_waited_for() {
    let mut stage = Stage::protected(&without_arbiter());
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    stage.twin(Node::A).kill();
    let acked = told(load);
    let killed_at = Instant::now();
    // Started anew it says that it runs nothing, and waits: the other boots the guest, when the lease that it may still have is over.
    stage.pair.start(Node::A).unwrap();
    stage.wait_for(Node::B, "promoted");
    let waited = killed_at.elapsed();
    assert!(waited > LEASE, "booted after {waited:?}");
    demand_known(&mut stage, Node::B, acked);
    stage.wait_for_role(Node::B, "protected");
    stage.await_same_images(["disk-a.img", "disk-b.img"]);
}

#[test]
fn without_an_arbiter_a_cut_link_stops_the_guest_until_it_is_back() {
    let mut stage = Stage::protected(&without_arbiter());
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    stage.pair.topology.set_replication_link(false).unwrap();
    stage.wait_for(Node::A, STOPPED);
    assert!(!answers(&stage), "the guest answers without a lease");
    let status = stage.operate(Node::A, &["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("over: the guest is stopped"), "{status}");
    stage.pair.topology.set_replication_link(true).unwrap();
    stage.wait_for(Node::A, CONTINUED);
    wait_for_more(&load, 200);
    demand_clean(load);
    assert!(!stage.twin(Node::B).has_event_since(0, "promoted"));
}
