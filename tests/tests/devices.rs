//! Each device against real tools.

use std::time::Duration;

use evertwin::lab::client::{Load, LoadOptions};
use evertwin::lab::process::Process;
use evertwin::lab::topology::GUEST_KV;
use evertwin_tests::lab::{SLOW, STEP, TestLab};
use evertwin_tests::stage::{demand_clean, wait_for_more};

const NET: &str = "tap=tap0,mac=52:54:00:12:34:56";

/// Starts pico's key-value server, with the log on `disk` if there is one.
fn start_kv(lab: &TestLab, disk: Option<&str>) -> Process {
    let mut arguments = vec!["run", "--kernel", "pico", "--memory", "64M", "--net", NET];
    let disk = disk.map(|name| format!("path={name}"));
    match &disk {
        Some(disk) => arguments.extend([
            "--cmdline",
            "workload=kv ip=10.77.0.2/24 log=vda",
            "--disk",
            disk,
        ]),
        None => arguments.extend(["--cmdline", "workload=kv ip=10.77.0.2/24"]),
    }
    let mut vm = lab.evertwin("vm", &arguments);
    vm.wait_for_console("pico: ready", STEP).unwrap();
    vm
}

#[test]
fn ping_gets_every_answer() {
    let lab = TestLab::new();
    let _vm = start_kv(&lab, None);
    for size in ["0", "56", "1400"] {
        let output = lab.client_tool(
            "ping",
            &["-c", "20", "-i", "0.02", "-W", "2", "-s", size, "10.77.0.2"],
        );
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(" 20 received, 0% packet loss"), "{text}");
    }
}

#[test]
fn redis_cli_gets_the_answers_of_redis() {
    let lab = TestLab::new();
    let _vm = start_kv(&lab, None);
    let big = "x".repeat(5000);
    let conversation: &[(&[&str], &str)] = &[
        (&["PING"], "PONG"),
        (&["ECHO", "hello world"], "hello world"),
        (&["SET", "k", "v"], "OK"),
        (&["GET", "k"], "v"),
        (&["GET", "absent"], ""),
        (&["EXISTS", "k", "absent"], "1"),
        (&["INCR", "n"], "1"),
        (&["INCRBY", "n", "41"], "42"),
        (&["MSET", "a", "1", "b", "2"], "OK"),
        (&["MGET", "a", "absent", "b"], "1\n\n2"),
        (&["SET", "big", &big], "OK"),
        (&["GET", "big"], &big),
        (&["DBSIZE"], "5"),
        (&["DEL", "a", "b", "absent"], "2"),
        (&["FLUSHALL"], "OK"),
        (&["DBSIZE"], "0"),
    ];
    for (words, answer) in conversation {
        assert_eq!(lab.redis(words), *answer, "{words:?}");
    }
    assert!(
        lab.redis(&["INCR", "k", "extra"]).contains("ERR"),
        "an error answer must be an error"
    );
    assert!(lab.redis(&["NONESUCH"]).contains("ERR"));
}

#[test]
fn redis_benchmark_runs_clean() {
    let lab = TestLab::new();
    let _vm = start_kv(&lab, None);
    for shape in [
        &["-c", "1", "-n", "1000"][..],
        &["-c", "50", "-n", "20000"],
        &["-c", "16", "-P", "16", "-n", "50000"],
    ] {
        let arguments = [&["-h", "10.77.0.2", "-t", "set,get,incr", "--csv"], shape].concat();
        let output = lab.client_tool("redis-benchmark", &arguments);
        let (text, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(
            output.status.success() && errors.is_empty(),
            "{shape:?}: {text}{errors}"
        );
        for test in ["\"SET\"", "\"GET\"", "\"INCR\""] {
            assert!(
                text.contains(test),
                "{shape:?}: no figure for {test}: {text}"
            );
        }
    }
}

#[test]
fn what_was_acknowledged_is_on_the_disk_after_a_kill() {
    let lab = TestLab::new();
    lab.make_disk("log.img", 32 << 20);
    let mut vm = start_kv(&lab, Some("log.img"));
    let stream = lab.topology.client.connect(GUEST_KV, STEP).unwrap();
    let load = Load::start(
        stream,
        LoadOptions {
            patience: Duration::from_secs(3) * SLOW,
            ..LoadOptions::default()
        },
    )
    .unwrap();
    wait_for_more(&load, 500);
    vm.kill();
    let seen = load.finish().progress;
    assert!(
        seen.broken.is_some() && seen.complaints.is_empty(),
        "{seen:?}"
    );

    let _vm = start_kv(&lab, Some("log.img"));
    let counter: u64 = lab.redis(&["GET", "counter"]).parse().unwrap();
    // INCR and SET take turns, so of `acked` writes half, rounded up, were INCRs; up to 8 more may have reached the
    // disk before their answers got out.
    let incrs = seen.acked.div_ceil(2);
    assert!(
        (incrs..=incrs + 8).contains(&counter),
        "counter={counter} acknowledged={incrs}"
    );
    for n in 1..=seen.acked / 2 {
        assert_eq!(lab.redis(&["GET", &format!("key:{n}")]), n.to_string());
    }
    // The replayed server is a server like any other.
    let stream = lab.topology.client.connect(GUEST_KV, STEP).unwrap();
    let load = Load::start(stream, LoadOptions::default()).unwrap();
    wait_for_more(&load, 200);
    demand_clean(load);
}

#[test]
fn blocks_are_written_and_verified_and_stay_in_the_image() {
    let lab = TestLab::new();
    let image = lab.make_disk("disk.img", 8 << 20);
    let cmdline = "workload=disk blocks=1024 rounds=2";
    let mut vm = lab.evertwin(
        "vm",
        [
            "run",
            "--kernel",
            "pico",
            "--memory",
            "64M",
            "--disk",
            "path=disk.img",
            "--cmdline",
            cmdline,
        ],
    );
    let line = vm.wait_for_console("disk: verified", STEP).unwrap();
    assert!(line.text.contains("errors=0"), "{}", line.text);
    assert_eq!(vm.wait_for_exit(STEP).unwrap().code(), Some(0));
    let bytes = std::fs::read(image).unwrap();
    assert_eq!(bytes.len(), 8 << 20);
    let written = bytes
        .chunks(512)
        .filter(|sector| sector.iter().any(|byte| *byte != 0))
        .count();
    assert!(
        written >= 1024,
        "only {written} sectors of the image were written"
    );
}
