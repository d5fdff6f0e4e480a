//! What the process holds beyond the guest's RAM.

use std::process::{Child, Command};
use std::time::Duration;

use evertwin::lab::client::LoadOptions;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::{STEP, TestLab};
use evertwin_tests::stage::Stage;

use crate::report::{Row, Samples, Target, show_bytes};

const RUNS: usize = 5;
/// Of the guest; the pair's is the same.
const RAM: u64 = 128 << 20;
const LOAD: Duration = Duration::from_secs(1);

/// Measures it.
#[must_use]
pub fn run() -> Row {
    let mut plain = Samples::default();
    let mut floor = Samples::default();
    let (mut primary, mut standby) = (Samples::default(), Samples::default());
    for _ in 0..RUNS {
        plain.add_bytes(alone());
        floor.add_bytes(smallest());
        let (a, b) = protected();
        primary.add_bytes(a);
        standby.add_bytes(b);
    }
    let show = |samples: &Samples| show_bytes(samples.bytes(50.0));
    let detail = format!(
        "protected, after {} s of load: primary {}, standby {}",
        LOAD.as_secs(),
        show(&primary),
        show(&standby)
    );
    Row::new(
        "memory resident beyond the guest's RAM",
        &plain,
        ("a sleeping sleep(1), all of it", &floor),
        Target::Bytes(10 << 20),
        vec![detail],
    )
}

/// An unprotected guest that computes.
fn alone() -> u64 {
    let lab = TestLab::new();
    let mut process = lab.pico("memory", "workload=cpu", "128M");
    process
        .wait_for_console("ready", STEP)
        .unwrap_or_else(|error| panic!("{error}"));
    beyond_ram(process.id())
}

/// A pair whose guest serves a client: the primary, and the standby.
fn protected() -> (u64, u64) {
    let mut stage = Stage::protected(&PairConfig::default());
    let load = stage.load(LoadOptions::default());
    std::thread::sleep(LOAD);
    let both = [Node::A, Node::B].map(|node| beyond_ram(stage.twin(node).id()));
    let verdict = load.finish();
    assert!(verdict.is_clean(), "{}", verdict.summary());
    (both[0], both[1])
}

/// A process that does nothing at all.
fn smallest() -> u64 {
    struct Sleep(Child);
    impl Drop for Sleep {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let sleep = Sleep(
        Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap_or_else(|error| panic!("sleep: {error}")),
    );
    std::thread::sleep(Duration::from_millis(100));
    mappings(sleep.0.id())
        .iter()
        .map(|(_, resident)| resident)
        .sum()
}

/// Resident bytes of a monitor's process without those of the guest's RAM.
fn beyond_ram(pid: u32) -> u64 {
    let mut rest = mappings(pid);
    let ram = rest.iter().position(|(size, _)| *size == RAM);
    let ram = ram.unwrap_or_else(|| panic!("process {pid} has no mapping of the guest's size"));
    rest.remove(ram);
    rest.iter().map(|(_, resident)| resident).sum()
}

/// Size and resident bytes of all mappings of a process (proc_pid_smaps(5)).
fn mappings(pid: u32) -> Vec<(u64, u64)> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let field = |name: &str| -> Vec<u64> {
        let values = text.lines().filter_map(|line| line.strip_prefix(name));
        let kib = values.filter_map(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map(|kib| kib << 10).collect()
    };
    field("Size:").into_iter().zip(field("Rss:")).collect()
}
