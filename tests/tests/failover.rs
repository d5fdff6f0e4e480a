//! A protected pair loses a host, a link or its temper, and the client must not notice more than a pause.

use std::process::Stdio;
use std::time::{Duration, Instant};

use evertwin::lab::client::LoadOptions;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::busy_file::BusyFile;
use evertwin_tests::lab::{SLOW, STEP, bounded_tool};
use evertwin_tests::seed;
use evertwin_tests::stage::{Stage, demand_clean, run_for, wait_for_more};

/// A small guest without a disk, for tests that are about memory and connections.
fn diskless() -> PairConfig {
    PairConfig {
        cmdline: "workload=kv ip=10.77.0.2/24".to_owned(),
        memory: "64M".to_owned(),
        disk: None,
        ..PairConfig::default()
    }
}

#[test]
fn the_one_connection_survives_kills_at_thirty_random_moments() {
    let mut random = seed::generator();
    let mut blackouts = Vec::new();
    for round in 0..30 {
        // Every other guest answers a write only after it is on its disk.
        let config = if round % 2 == 0 {
            diskless()
        } else {
            PairConfig {
                memory: "64M".to_owned(),
                ..PairConfig::default()
            }
        };
        let mut stage = Stage::protected(&config);
        let load = stage.load(LoadOptions {
            depth: random.usize(1..=16),
            ..LoadOptions::default()
        });
        wait_for_more(&load, 1);
        run_for(&load, Duration::from_micros(random.u64(0..600_000)));
        stage.twin(Node::A).kill();
        let before = load.progress().acked;
        stage.wait_for(Node::B, "promoted");
        wait_for_more(&load, 200);
        let verdict = demand_clean(load);
        println!(
            "round {round}: killed after {before} acknowledged writes: {}",
            verdict.summary()
        );
        blackouts.push(verdict.progress.longest_gap.as_millis());
    }
    blackouts.sort_unstable();
    println!(
        "blackout_ms of 30 kills: p50={} max={}",
        blackouts[15], blackouts[29]
    );
}

#[test]
fn every_page_of_a_busy_memory_survives() {
    let mut random = seed::generator();
    // The guest itself compares each page with what it wrote there last.
    let workload = "workload=dirty pages=200 period_us=5000 pattern=random".to_owned();
    let config = PairConfig {
        cmdline: workload,
        ..diskless()
    };
    for _ in 0..5 {
        let mut stage = Stage::protected(&config);
        std::thread::sleep(Duration::from_micros(random.u64(0..500_000)));
        stage.twin(Node::A).kill();
        stage.wait_for(Node::B, "promoted");
        let b = stage.twin(Node::B);
        for report in 0..3 {
            let from = b.console().len();
            let line = b
                .console()
                .wait(from, STEP, |line| line.text.contains("dirty: rounds="));
            assert!(
                line.unwrap().text.contains("errors=0"),
                "report {report}: {:?}",
                b.console().lines().last()
            );
        }
        assert!(
            !b.console()
                .lines()
                .iter()
                .any(|line| line.text.contains("WARNING") || line.text.contains("PANIC"))
        );
    }
}

#[test]
fn requests_in_flight_to_the_disk_are_finished_by_the_twin() {
    let mut random = seed::generator();
    // The guest writes and verifies blocks without a pause, and ends by itself.
    let workload = "workload=disk blocks=1024 rounds=12".to_owned();
    let config = PairConfig {
        cmdline: workload,
        memory: "64M".to_owned(),
        ..PairConfig::default()
    };
    for _ in 0..6 {
        let mut stage = Stage::protected(&config);
        // From now on each epoch ends while the guest waits for a write.
        let slow = BusyFile::begin(&stage.lab.path("disk-a.img")).unwrap();
        std::thread::sleep(Duration::from_micros(random.u64(50_000..250_000)));
        assert!(slow.is_busy(), "the disk was no longer slow");
        assert!(
            stage.twin(Node::A).is_running(),
            "the guest was done before the kill"
        );
        stage.twin(Node::A).kill();
        drop(slow);
        stage.wait_for(Node::B, "promoted");
        let b = stage.twin(Node::B);
        let line = b
            .wait_for_console("disk: verified", STEP)
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(line.text.contains("errors=0"), "{}", line.text);
        assert_eq!(b.wait_for_exit(STEP).unwrap().code(), Some(0));
    }
}

#[test]
fn the_survivors_disk_holds_what_was_acknowledged() {
    let mut stage = Stage::protected(&PairConfig {
        memory: "64M".to_owned(),
        ..PairConfig::default()
    });
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 500);
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    wait_for_more(&load, 100);
    let acked = demand_clean(load).progress.acked;
    check_replay(&mut stage, acked, Node::B);
}

#[test]
fn a_returning_hosts_disk_is_made_a_copy_again() {
    let mut stage = Stage::protected(&PairConfig {
        memory: "64M".to_owned(),
        ..PairConfig::default()
    });
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 300);
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    // Written while a is away: only a sync of the disk brings it there.
    wait_for_more(&load, 500);
    stage.pair.start(Node::A).unwrap();
    stage.wait_for(Node::A, "standby ready");
    wait_for_more(&load, 200);
    stage.twin(Node::B).kill();
    stage.wait_for(Node::A, "promoted");
    wait_for_more(&load, 100);
    let acked = demand_clean(load).progress.acked;
    check_replay(&mut stage, acked, Node::A);
}

/// Kills the last twin and replays the log on its disk: all that was acknowledged is there.
fn check_replay(stage: &mut Stage, acked: u64, last: Node) {
    let counter = stage.lab.redis(&["GET", "counter"]);
    assert_eq!(counter, acked.div_ceil(2).to_string());
    stage.twin(last).kill();

    // A plain VM on the survivor's disk replays the log.
    let arguments = [
        "run",
        "--kernel",
        "pico",
        "--cmdline",
        "workload=kv ip=10.77.0.2/24 log=vda",
        "--memory",
        "64M",
    ];
    let disk = match last {
        Node::A => "path=disk-a.img",
        Node::B => "path=disk-b.img",
    };
    let devices = ["--disk", disk, "--net", "tap=tap0,mac=52:54:00:12:34:56"];
    let mut vm = stage
        .lab
        .evertwin("replay", arguments.iter().chain(&devices));
    vm.wait_for_console("pico: ready", STEP).unwrap();
    assert_eq!(stage.lab.redis(&["GET", "counter"]), counter);
    assert_eq!(
        stage.lab.redis(&["GET", &format!("key:{}", acked / 2)]),
        (acked / 2).to_string()
    );
}

#[test]
fn a_frozen_primary_is_replaced_and_fenced_when_it_thaws() {
    let mut stage = Stage::protected(&diskless());
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    stage.twin(Node::A).freeze();
    stage.wait_for(Node::B, "promoted");
    wait_for_more(&load, 200);
    let sent = stage.frames_from_guest(Node::A);
    stage.twin(Node::A).thaw();
    stage.wait_for(Node::A, "fenced");
    wait_for_more(&load, 1000);
    assert_eq!(
        stage.frames_from_guest(Node::A),
        sent,
        "the thawed twin sent frames"
    );
    demand_clean(load);
}

#[test]
fn a_killed_standby_leaves_the_guest_running_alone() {
    let mut stage = Stage::protected(&diskless());
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    let before = stage.twin(Node::A).log().len();
    stage.twin(Node::B).kill();
    wait_for_more(&load, 1000);
    assert!(
        stage.twin(Node::A).has_event_since(before, "solo"),
        "output left before the standby was struck off"
    );
    demand_clean(load);
    assert!(stage.twin(Node::A).is_running());
}

#[test]
fn a_cut_link_leaves_exactly_one_of_the_two_running() {
    let mut stage = Stage::protected(&diskless());
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    let before = stage.twin(Node::A).log().len();
    stage.pair.topology.set_replication_link(false).unwrap();
    wait_for_more(&load, 2000);
    demand_clean(load);
    let alone = stage.twin(Node::A).has_event_since(before, "solo");
    let promoted = stage.twin(Node::B).has_event_since(0, "promoted");
    assert!(
        alone != promoted,
        "solo on a: {alone}, promoted on b: {promoted}"
    );
    if promoted {
        stage.wait_for(Node::A, "fenced");
    }
}

#[test]
fn a_host_that_returns_is_protected_again_and_can_take_over() {
    let mut stage = Stage::protected(&diskless());
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    let mut primary = Node::A;
    for _ in 0..4 {
        stage.twin(primary).kill();
        let survivor = primary.peer();
        stage.wait_for(survivor, "promoted");
        wait_for_more(&load, 100);
        let protected_before = stage.twin(survivor).log().len();
        stage.pair.start(primary).unwrap();
        let protected =
            |line: &evertwin::lab::events::Line| line.message().as_deref() == Some("protected");
        stage
            .twin(survivor)
            .log()
            .wait(protected_before, STEP, protected)
            .unwrap();
        wait_for_more(&load, 100);
        primary = survivor;
    }
    demand_clean(load);
}

#[test]
fn redis_benchmark_does_not_notice_the_kill() {
    let mut stage = Stage::protected(&PairConfig::default());
    let requests = (20_000 / SLOW).to_string();
    let arguments = [
        "-h",
        "10.77.0.2",
        "-t",
        "set,get,incr",
        "-n",
        &requests,
        "--csv",
    ];
    let mut command = bounded_tool(&stage.pair.topology.client, "redis-benchmark", &arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut benchmark = command.spawn().unwrap();
    // Its beginning shows in the guest's own data; the kill may also fall between its tests, when it closes all its
    // connections and opens new ones.
    let deadline = Instant::now() + STEP;
    while stage.lab.redis(&["DBSIZE"]) == "0" {
        assert!(Instant::now() < deadline, "redis-benchmark wrote nothing");
    }
    std::thread::sleep(Duration::from_micros(seed::generator().u64(0..1_500_000)));
    assert!(
        benchmark.try_wait().unwrap().is_none(),
        "redis-benchmark was done before the kill"
    );
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    let output = benchmark.wait_with_output().unwrap();
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && errors.is_empty(),
        "{text}{errors}"
    );
    for test in ["\"SET\"", "\"GET\"", "\"INCR\""] {
        assert!(text.contains(test) && !text.contains("Error"), "{text}");
    }
}
