//! What the process holds beyond the guest's RAM.

use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

use evertwin::lab::client::LoadOptions;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::{STEP, TestLab, evertwin_binary};
use evertwin_tests::stage::Stage;

use crate::report::{Demand, Row, Samples, Unit};

const RUNS: usize = 3;
/// Of the guest; the pair's is the same.
const RAM: u64 = 128 << 20;
const LOAD: Duration = Duration::from_secs(1);
/// A pair gives back what it needed for epochs 5 s after the last one.
const SETTLE: Duration = Duration::from_secs(6);
/// What may be there beyond the RAM of a guest without load, in bytes.
const IDLE: f64 = 8.0 * 1024.0 * 1024.0;
/// What the binary may have, in bytes.
const BINARY: f64 = 12e6;

/// Measures it.
#[must_use]
pub fn run() -> Row {
    let of = || Samples::of(Unit::Bytes);
    let (mut plain, mut floor) = (of(), of());
    let mut idle = [of(), of()];
    let mut loaded = [of(), of()];
    for _ in 0..RUNS {
        plain.push(alone() as f64);
        floor.push(smallest() as f64);
        let (before, after) = protected();
        for node in 0..2 {
            idle[node].push(before[node] as f64);
            loaded[node].push(after[node] as f64);
        }
    }
    let size = fs::metadata(evertwin_binary()).map(|binary| binary.len());
    let size = size.unwrap_or_else(|error| panic!("{error}")) as f64;
    let limit = |what, figure| Demand::at_most(what, Unit::Bytes, figure, IDLE);
    Row::new("memory resident beyond the guest's RAM, idle", &plain)
        .floor("a sleeping sleep(1), all of it", &floor)
        .demand(limit("without a standby", plain.p50()))
        .demand(limit("primary", idle[0].p50()))
        .demand(limit("standby", idle[1].p50()))
        .demand(Demand::at_most(
            "size of the binary",
            Unit::Bytes,
            size,
            BINARY,
        ))
        .part("primary, idle", &idle[0])
        .part("standby, idle", &idle[1])
        .part("primary, loaded", &loaded[0])
        .part("standby, loaded", &loaded[1])
        .detail(format!(
            "the binary has {:.2} MB, of which {:.0} are allowed",
            size / 1e6,
            BINARY / 1e6
        ))
        .detail(format!(
            "loaded: after {} s of a client's writes",
            LOAD.as_secs()
        ))
}

/// An unprotected guest that does nothing.
fn alone() -> u64 {
    let lab = TestLab::new();
    let mut process = lab.pico("memory", "workload=idle", "128M");
    process
        .wait_for_console("ready", STEP)
        .unwrap_or_else(|error| panic!("{error}"));
    beyond_ram(process.id())
}

/// A pair, primary first: before a client comes, and after it has written for a while.
fn protected() -> ([u64; 2], [u64; 2]) {
    let mut stage = Stage::protected(&PairConfig::default());
    std::thread::sleep(SETTLE);
    let idle = [Node::A, Node::B].map(|node| beyond_ram(stage.twin(node).id()));
    let load = stage.load(LoadOptions::default());
    std::thread::sleep(LOAD);
    let loaded = [Node::A, Node::B].map(|node| beyond_ram(stage.twin(node).id()));
    let verdict = load.finish();
    assert!(verdict.is_clean(), "{}", verdict.summary());
    (idle, loaded)
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
