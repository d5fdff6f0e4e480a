//! The demo as a user runs it.

use std::path::Path;
use std::time::{Duration, Instant};

use evertwin::lab::events::LineLog;
use evertwin::lab::process::Process;
use evertwin_tests::lab::{SLOW, STEP, TestLab, evertwin_binary, tool};

/// The demo promises to be done within 30 s, if the machine is not slow.
const PROMISED: Duration = Duration::from_secs(30 * SLOW as u64);

fn last_line(console: &LineLog) -> String {
    console
        .lines()
        .pop()
        .map(|line| line.text)
        .unwrap_or_default()
}

/// Directories that demos have left in `temporary`.
fn leftovers(temporary: &Path) -> usize {
    std::fs::read_dir(temporary).unwrap().count()
}

/// Starts a demo whose temporary files go to a directory of the test.
fn start(lab: &TestLab, temporary: &Path, program: &str, arguments: &[&str]) -> Process {
    let mut command = tool(&lab.topology.a, program, arguments);
    command.args(["--slow", &SLOW.to_string()]);
    command.env("TMPDIR", temporary);
    Process::start(command, "demo", lab.directory()).unwrap()
}

fn demand_pass(mut demo: Process, temporary: &Path) {
    let began = Instant::now();
    let status = demo.wait_for_exit(PROMISED).unwrap();
    let verdict = last_line(demo.console());
    println!("{verdict} ({} s)", began.elapsed().as_secs());
    assert!(status.success(), "{verdict}");
    let figures = verdict
        .strip_prefix("demo: PASS connection=survived acked=")
        .unwrap_or_else(|| panic!("{verdict}"));
    let (acked, rest) = figures.split_once(' ').unwrap();
    assert!(acked.parse::<u64>().unwrap() > 100, "{verdict}");
    let blackout = rest
        .strip_prefix("lost=0 duplicated=0 blackout_ms=")
        .unwrap_or_else(|| panic!("{verdict}"));
    assert!(blackout.parse::<u32>().unwrap() < 5000 * SLOW, "{verdict}");
    assert_eq!(leftovers(temporary), 0, "the demo left files behind");
}

#[test]
fn the_demo_passes_and_leaves_nothing_behind() {
    let lab = TestLab::new();
    let temporary = tempfile::tempdir().unwrap();
    let binary = evertwin_binary();
    demand_pass(
        start(&lab, temporary.path(), binary.to_str().unwrap(), &["demo"]),
        temporary.path(),
    );
}

#[test]
fn the_demo_passes_without_root() {
    let lab = TestLab::new();
    // A place that an unprivileged user may enter, with a copy of the binary that it may run.
    let open = tempfile::tempdir().unwrap();
    let everyone = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    everyone(open.path(), 0o755);
    let copy = open.path().join("evertwin");
    std::fs::copy(evertwin_binary(), &copy).unwrap();
    let temporary = open.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    everyone(&temporary, 0o777);
    // Device nodes as udev makes them for users, seen by this demo alone.
    let script = "mount -t tmpfs none /mnt && mknod /mnt/kvm c 10 232 && mknod /mnt/tun c 10 200 && chmod 666 /mnt/kvm /mnt/tun \
                  && mount --bind /mnt/kvm /dev/kvm && mount --bind /mnt/tun /dev/net/tun \
                  && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" demo \"$@\"";
    let arguments = ["-m", "sh", "-c", script, copy.to_str().unwrap()];
    demand_pass(start(&lab, &temporary, "unshare", &arguments), &temporary);
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let lab = TestLab::new();
    let temporary = tempfile::tempdir().unwrap();
    let binary = evertwin_binary();
    let mut demo = start(&lab, temporary.path(), binary.to_str().unwrap(), &["demo"]);
    demo.wait_for_console("The client opens", STEP).unwrap();
    assert_eq!(
        leftovers(temporary.path()),
        1,
        "the demo keeps its files elsewhere"
    );
    demo.terminate();
    assert_eq!(demo.wait_for_exit(STEP).unwrap().code(), Some(128 + 15));
    assert_eq!(leftovers(temporary.path()), 0, "the demo left files behind");
}
