//! An operator exchanges the twins' roles, has one leave, or promotes one by hand, and the client must not notice
//! more than a pause.

use std::process::Output;

use evertwin::lab::client::LoadOptions;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::STEP;
use evertwin_tests::stage::{Stage, demand_clean, run_for, wait_for_more};

/// What a command said, and that it succeeded.
fn done(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    said
}

/// Why a command failed.
fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn small() -> PairConfig {
    PairConfig {
        memory: "64M".to_owned(),
        ..PairConfig::default()
    }
}

#[test]
fn roles_are_exchanged_under_load_and_nothing_is_lost() {
    let mut stage = Stage::protected(&small());
    let load = stage.load(LoadOptions {
        depth: 8,
        ..LoadOptions::default()
    });
    wait_for_more(&load, 200);
    let nodes = [Node::A, Node::B];
    for turn in 0..10 {
        let (primary, standby) = (nodes[turn % 2], nodes[1 - turn % 2]);
        assert!(refused(&stage.operate(standby, &["switchover"])).contains("not the primary"));
        let said = done(&stage.operate(primary, &["switchover"]));
        assert_eq!(said, format!("done, generation {}\n", turn + 2));
        // The former primary is the standby at once, without a sync.
        assert_eq!(stage.role(primary).as_deref(), Some("standby"));
        assert_eq!(stage.role(standby).as_deref(), Some("protected"));
        wait_for_more(&load, 200);
    }
    // What was handed over ten times is still what both have.
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    wait_for_more(&load, 200);
    let verdict = demand_clean(load);
    println!("ten switchovers and a kill: {}", verdict.summary());
}

#[test]
fn a_busy_memory_and_disk_survive_being_handed_over() {
    for workload in [
        "workload=dirty pages=200 period_us=5000 pattern=random",
        "workload=disk blocks=1024 rounds=12",
    ] {
        let mut stage = Stage::protected(&PairConfig {
            cmdline: workload.to_owned(),
            ..small()
        });
        let nodes = [Node::A, Node::B];
        for turn in 0..4 {
            done(&stage.operate(nodes[turn % 2], &["switchover"]));
        }
        // Its third: it runs on A, and the guest compares what it finds with what it wrote.
        let report = if workload.contains("disk") {
            "disk: verified"
        } else {
            "dirty: rounds="
        };
        let a = stage.twin(Node::A);
        let from = a.console().len();
        let line = a
            .console()
            .wait(from, STEP, |line| line.text.contains(report));
        let line = line.unwrap_or_else(|why| panic!("{report}: {why:?}"));
        assert!(line.text.contains("errors=0"), "{}", line.text);
    }
}

#[test]
fn who_leaves_hands_the_guest_over_and_may_come_back() {
    let mut stage = Stage::protected(&small());
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    done(&stage.operate(Node::A, &["leave"]));
    assert_eq!(
        stage.twin(Node::A).wait_for_exit(STEP).unwrap().code(),
        Some(0)
    );
    wait_for_more(&load, 200);
    assert!(refused(&stage.operate(Node::B, &["leave"])).contains("not protected"));
    stage.pair.start(Node::A).unwrap();
    stage.wait_for_role(Node::A, "standby");
    wait_for_more(&load, 200);
    done(&stage.operate(Node::A, &["leave"]));
    stage.wait_for_role(Node::B, "solo");
    wait_for_more(&load, 200);
    demand_clean(load);
}

#[test]
fn without_an_arbiter_an_operator_promotes() {
    let mut stage = Stage::protected(&PairConfig {
        arbiter: Some("manual:notes-{node}".to_owned()),
        ..small()
    });
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    let promote = ["promote", "--peer-is-dead"];
    assert!(refused(&stage.operate(Node::B, &["promote"])).contains("--peer-is-dead"));
    assert!(
        refused(&stage.operate(Node::B, &promote)).contains("switchover"),
        "A is well"
    );
    stage.twin(Node::A).kill();
    stage.wait_for(
        Node::B,
        "the primary is gone; without an arbiter nothing is promoted by itself",
    );
    done(&stage.operate(Node::B, &promote));
    wait_for_more(&load, 200);
    // A remembers that it was protected: it does not run what it has.
    stage.pair.start(Node::A).unwrap();
    stage.wait_for_role(Node::A, "standby");
    stage.wait_for_role(Node::B, "protected");
    wait_for_more(&load, 200);
    done(&stage.operate(Node::B, &["switchover"]));
    wait_for_more(&load, 200);
    run_for(&load, std::time::Duration::from_millis(300));
    demand_clean(load);
}

#[test]
fn status_tells_people_and_programs() {
    let mut stage = Stage::protected(&small());
    let said = done(&stage.operate(Node::A, &["status"]));
    assert!(
        said.starts_with("demo: protected (node a, generation 1)\n"),
        "{said}"
    );
    assert!(said.contains("peer   b at "), "{said}");
    stage.twin(Node::B).kill();
    stage.wait_for_role(Node::A, "solo");
    let said = done(&stage.operate(Node::A, &["status"]));
    assert!(said.contains("peer   b, no link"), "{said}");
    let why = refused(&stage.operate(Node::B, &["status"]));
    assert!(why.contains("no twin answers at"), "{why}");
    let why = refused(&stage.operate(Node::A, &["switchover"]));
    assert!(why.contains("not protected"), "{why}");
}
