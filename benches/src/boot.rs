//! From `evertwin run` to the guest's first instruction.

use std::time::{Duration, Instant};

use evertwin::config::{KernelSource, VmConfig};
use evertwin::machine::{ConsoleOutput, Machine};
use evertwin_tests::lab::{STEP, TestLab};

use crate::report::{Row, Samples};

const RUNS: usize = 30;
const MEMORY: &str = "128M";

/// Measures it.
#[must_use]
pub fn run() -> Row {
    let lab = TestLab::new();
    let (mut samples, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..RUNS {
        samples.add(one(&lab));
        floor.add(bare_machine());
    }
    Row::new("run to the guest's first instruction", &samples)
        .floor("KVM VM with chips, one vCPU and RAM, in process", &floor)
        .p50_within(Duration::from_millis(10))
}

/// Process start to "guest running" as seen from outside, and from there to the guest's
/// first write as the process saw it.
fn one(lab: &TestLab) -> Duration {
    let arguments = [
        "run",
        "--kernel",
        "pico",
        "--cmdline",
        "workload=cpu",
        "--memory",
        MEMORY,
        "--log-format",
        "json",
        "--log",
        "info,evertwin::boot=debug",
    ];
    let begun = Instant::now();
    let mut process = lab.evertwin("boot", arguments);
    let running = process
        .wait_for_event("guest running", STEP)
        .unwrap_or_else(|error| panic!("{error}"));
    process
        .wait_for_console("ready", STEP)
        .unwrap_or_else(|error| panic!("{error}"));
    process.terminate();
    process
        .wait_for_exit(STEP)
        .unwrap_or_else(|error| panic!("{error}"));
    let field = |event: &str, name: &str| {
        let lines = process.log().lines();
        lines
            .iter()
            .filter(|line| line.message().as_deref() == Some(event))
            .find_map(|line| line.field(name)?.as_u64())
            .unwrap_or_else(|| panic!("no {name} in the log"))
    };
    let inside = field("first instruction", "first_instruction_us")
        .saturating_sub(field("guest running", "started_us"));
    running.at - begun + Duration::from_micros(inside)
}

/// Everything but the process, the log and the kernel image.
fn bare_machine() -> Duration {
    let config = VmConfig::alone("floor", KernelSource::Pico, 128 << 20);
    let begun = Instant::now();
    let kvm = evertwin::kvm::open().unwrap_or_else(|error| panic!("{error}"));
    let out = ConsoleOutput::Writer(Box::new(std::io::sink()));
    let machine = Machine::new(&kvm, &config, out).unwrap_or_else(|error| panic!("{error}"));
    let time = begun.elapsed();
    drop(machine);
    time
}
