//! How long the guest stands still at an epoch's end.

use std::time::Duration;

use evertwin::config::{AfterEnd, KernelSource, VmConfig};
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin::machine::{ConsoleOutput, Machine};
use evertwin::twin::Twin;
use evertwin_replicator::machine::{Capture, Machine as _};
use evertwin_tests::stage::Stage;

use crate::report::{Row, Samples, Target, show};

const EPOCH: Duration = Duration::from_millis(10);
const DURATION: Duration = Duration::from_secs(10);
const FLOOR_EPOCHS: usize = 300;
/// One round of 256 pages and no other within an epoch.
const WORKLOAD: &str = "workload=dirty pages=256 period_us=10000 pattern=seq";
/// An epoch counts if it has the 256 pages and little else.
const PAGES: std::ops::RangeInclusive<u64> = 250..=320;
const PHASES: [&str; 6] = ["kick", "quiesce", "capture", "harvest", "copy", "resume"];

/// Measures it.
#[must_use]
pub fn run() -> Row {
    let config = PairConfig {
        cmdline: WORKLOAD.into(),
        disk: None,
        epoch: EPOCH,
        ..PairConfig::default()
    };
    let mut stage = Stage::new(&config);
    stage
        .pair
        .set_env("EVERTWIN_LOG", "info,evertwin::epoch=debug");
    stage
        .pair
        .start_protected(evertwin_tests::lab::STEP)
        .unwrap_or_else(|error| panic!("{error}"));
    std::thread::sleep(DURATION);
    let mut pause = Samples::default();
    let mut phases = PHASES.map(|name| (name, Samples::default()));
    for line in stage.twin(Node::A).log().lines() {
        let number = |name: &str| line.field(name).and_then(|value| value.as_f64());
        let Some(us) = number("pause_us") else {
            continue;
        };
        if !PAGES.contains(&(number("pages").unwrap_or(0.0) as u64)) {
            continue;
        }
        pause.add_us(us);
        for (name, samples) in &mut phases {
            samples.add_us(number(&format!("{name}_us")).unwrap_or(0.0));
        }
    }
    let breakdown = phases
        .iter()
        .map(|(name, samples)| format!("{name} {}", show(samples.us(50.0))));
    let breakdown = breakdown.collect::<Vec<_>>().join(", ");
    Row::new(
        "pause per epoch at 256 dirty pages",
        &pause,
        ("state, harvest and copy alone, in one process", &floor()),
        Target::Within(Duration::from_micros(1500)),
        vec![format!("p50 by phase: {breakdown}")],
    )
}

/// The same work on the same guest in this process, without the kick, the twin and the
/// network: what the pause can't go below while pages are copied in it.
fn floor() -> Samples {
    let config = VmConfig {
        name: "floor".into(),
        kernel: KernelSource::Pico,
        initrd: None,
        cmdline: WORKLOAD.into(),
        memory: 128 << 20,
        vcpus: 1,
        on_reboot: AfterEnd::Exit,
        on_panic: AfterEnd::Exit,
        disks: vec![],
        nets: vec![],
        vsock: None,
    };
    let fine = |error: &dyn std::fmt::Display| -> ! { panic!("{error}") };
    let kvm = evertwin::kvm::open().unwrap_or_else(|e| fine(&e));
    let out = ConsoleOutput::Writer(Box::new(std::io::sink()));
    let machine = Machine::new(&kvm, &config, out).unwrap_or_else(|e| fine(&e));
    let mut twin = Twin::new(machine).unwrap_or_else(|e| fine(&e));
    twin.open_output();
    twin.boot().unwrap_or_else(|e| fine(&e));
    twin.start_tracking();
    twin.tracking_started().unwrap_or_else(|e| fine(&e));
    let mut samples = Samples::default();
    let mut capture = Capture::default();
    for epoch in 0..FLOOR_EPOCHS {
        std::thread::sleep(EPOCH);
        twin.capture(epoch as u64 + 1, &mut capture)
            .unwrap_or_else(|e| fine(&e));
        let phases = twin.last_pause();
        if PAGES.contains(&(capture.pages.len() as u64)) {
            samples.add(phases.capture + phases.harvest + phases.copy);
        }
    }
    samples
}
