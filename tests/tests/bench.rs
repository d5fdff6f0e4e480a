//! `evertwin bench` as a user runs it.

use std::path::Path;
use std::time::Duration;

use evertwin::lab::process::Process;
use evertwin_tests::lab::{SLOW, TestLab, evertwin_binary, tool};

/// One row is done within that, if the machine is not slow.
const ENOUGH: Duration = Duration::from_secs(30 * SLOW as u64);
const ROWS: [&str; 5] = ["pause", "delay", "wire", "throughput", "blackout"];

/// Runs it with temporary files in a directory of the test. Gives its exit code, output and log.
fn run(lab: &TestLab, temporary: &Path, arguments: &[&str]) -> (Option<i32>, [Vec<String>; 2]) {
    let binary = evertwin_binary();
    let mut command = tool(&lab.topology.a, binary.to_str().unwrap(), &["bench"]);
    command.args(arguments).env("TMPDIR", temporary);
    let mut bench = Process::start(command, "bench", lab.directory()).unwrap();
    let status = bench.wait_for_exit(ENOUGH).unwrap();
    let lines = [bench.console(), bench.log()].map(|log| {
        let lines = log.lines().into_iter();
        lines.map(|line| line.text).collect()
    });
    (status.code(), lines)
}

#[test]
fn every_row_is_listed() {
    let lab = TestLab::new();
    let (code, [lines, _]) = run(&lab, lab.directory(), &["--list"]);
    assert_eq!(code, Some(0));
    let names: Vec<_> = lines
        .iter()
        .map(|line| line.split_once(' ').unwrap().0)
        .collect();
    assert_eq!(names, ROWS);
}

#[test]
fn an_unknown_row_is_refused_by_name() {
    let lab = TestLab::new();
    let (code, [_, log]) = run(&lab, lab.directory(), &["pauses"]);
    assert_eq!(code, Some(2));
    let log = log.join("\n");
    assert!(log.contains("'pauses'"), "{log}");
    for row in ROWS {
        assert!(log.contains(row), "{row}: {log}");
    }
}

#[test]
fn a_row_is_measured_and_nothing_is_left_behind() {
    let lab = TestLab::new();
    let temporary = tempfile::tempdir().unwrap();
    let slow = SLOW.to_string();
    let (code, [lines, log]) = run(&lab, temporary.path(), &["delay", "--slow", &slow]);
    println!("{}", lines.join("\n"));
    assert_eq!(code, Some(0), "{lines:?} {log:?}");
    assert_eq!(lines.last().unwrap(), "bench: rows=1 failed=0");
    let figures = lines
        .iter()
        .find_map(|line| line.trim_start().strip_prefix("delay: added_p50_us="))
        .unwrap();
    let figures: Vec<f64> = figures
        .split(' ')
        .map(|figure| figure.rsplit('=').next().unwrap().parse().unwrap())
        .collect();
    let [added, added_p99, bare, ratio] = figures[..] else {
        panic!("{figures:?}");
    };
    assert!(
        0.0 < added && added < added_p99 && bare > 0.0,
        "{figures:?}"
    );
    assert!((added / bare / ratio - 1.0).abs() < 0.1, "{figures:?}");
    let left = std::fs::read_dir(temporary.path()).unwrap().count();
    assert_eq!(left, 0, "files were left behind");
}

#[test]
fn figures_are_a_json_document() {
    let lab = TestLab::new();
    let slow = SLOW.to_string();
    let (code, [lines, log]) = run(&lab, lab.directory(), &["wire", "--json", "--slow", &slow]);
    assert_eq!(code, Some(0), "{lines:?} {log:?}");
    let document: serde_json::Value = serde_json::from_str(&lines.join("\n")).unwrap();
    let row = &document["rows"][0];
    assert_eq!(row["name"], "wire");
    assert!(row["measured"]["wire_kib"].as_f64().unwrap() > 0.0);
    assert!(row["reference"]["dirty_kib"].as_f64().unwrap() > 0.0);
    assert_eq!(log.last().unwrap(), "bench: rows=1 failed=0");
}
