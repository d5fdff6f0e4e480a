//! A VM carried through a thousand processes, in mid-workload, loses nothing (I3, I6, I7, I8).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use evertwin_tests::lab::{SLOW, STEP};

const MEMORY_MIB: &str = "32";

/// What the guest of a journey says about itself on its console.
struct Journey {
    console: String,
    hops: usize,
}

/// Boots `guest` and carries it through `hops` processes, or as many fewer as the machine is slow. In the last it has time
/// for one more report at least: a guest that stands still somewhere on the way says nothing there.
fn journey(guest: &str, hops: usize, disk: Option<&Path>) -> Journey {
    let hops = hops / SLOW as usize;
    let directory = tempfile::tempdir().expect("a directory");
    let console = directory.path().join("console");
    let mut random = evertwin_tests::seed::generator();
    let mut checkpoint = Vec::new();
    // The tests may have been built on another machine.
    let built = || env!("CARGO_BIN_EXE_hop").into();
    let program: PathBuf = std::env::var_os("EVERTWIN_HOP").map_or_else(built, PathBuf::from);
    let length = || std::fs::metadata(&console).map_or(0, |file| file.len());
    let mut before_last = 0;
    for hop in 0..=hops {
        let run_ms = match hop {
            0 => 300,
            _ if hop == hops => {
                before_last = length();
                1500
            }
            _ => random.u64(0..12),
        };
        let mut command = Command::new("timeout");
        command
            .arg(STEP.as_secs().to_string())
            .arg(&program)
            .arg(if hop == 0 { "boot" } else { "resume" })
            .args([MEMORY_MIB, &(run_ms * u64::from(SLOW)).to_string()])
            .arg(&console)
            .arg(guest)
            .args(disk);
        checkpoint = pass_through(command, &checkpoint, hop);
    }
    assert!(
        length() > before_last,
        "the guest stood still in the last process, after {before_last} bytes"
    );
    Journey {
        console: std::fs::read_to_string(&console).expect("the guest's console"),
        hops,
    }
}

fn pass_through(mut command: Command, input: &[u8], hop: usize) -> Vec<u8> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("hop starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A hop that fails early closes its end; its own message is the one to show.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().expect("hop ends")
    });
    assert!(
        output.status.success() && !output.stdout.is_empty(),
        "hop {hop} failed, {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

impl Journey {
    /// The values of `key=` in the guest's reports, in order.
    fn values(&self, key: &str) -> Vec<u64> {
        let reports = self.console.split_whitespace();
        reports
            .filter_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
            .collect()
    }

    /// The guest booted once, never found an error, and its `key` only grew, up to now.
    fn assert_unbroken(&self, key: &str) {
        let console = &self.console;
        assert_eq!(console.matches("pico: ready").count(), 1, "{console}");
        // The guest checks its own memory, disk and clock.
        let troubled = console.contains("PANIC") || console.contains("WARNING");
        assert!(!troubled, "{console}");
        let errors = self.values("errors");
        assert!(
            !errors.is_empty() && errors.iter().all(|e| *e == 0),
            "{console}"
        );
        let values = self.values(key);
        assert!(
            values.is_sorted() && values.first() < values.last(),
            "{console}"
        );
        println!(
            "{} processes, {} reports, {key} from {:?} to {:?}",
            self.hops,
            values.len(),
            values.first(),
            values.last()
        );
    }
}

#[test]
fn dirty_memory_survives_a_thousand_processes() {
    let journey = journey(
        "workload=dirty pages=256 period_us=500 pattern=random",
        1000,
        None,
    );
    journey.assert_unbroken("rounds");
}

#[test]
fn a_computation_survives_a_hundred_processes() {
    journey("workload=cpu work=100000", 100, None).assert_unbroken("total");
}

#[test]
fn a_disk_under_work_survives_four_hundred_processes() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = directory.path().join("disk");
    std::fs::write(&disk, vec![0; 256 << 10]).expect("a disk");
    journey("workload=disk", 400, Some(&disk)).assert_unbroken("rounds");
}

/// Interrupts between processors, sleeping ones among them, arrive exactly once although all move to another process
/// under way.
#[test]
fn processors_that_wake_each_other_survive_four_hundred_processes() {
    let journey = journey("ring", 400, None);
    let console = &journey.console;
    let alphabet = ('a'..='z').cycle();
    let expected: String = alphabet.take(console.len()).collect();
    assert_eq!(*console, expected, "a turn was lost, repeated or wrong");
    println!("{} processes, {} rounds", journey.hops, console.len());
}
