//! What a write costs a guest whose disk is mirrored and whose memory is not: its answer waits for the other host's.

use std::time::Duration;

use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::TestLab;
use evertwin_tests::stage::Stage;

use crate::disk::{fill, times_per_request};
use crate::report::{Row, Samples};

const ROUNDS: usize = 2;
/// Of the disk, which is full of data when the guest starts.
const BYTES: u64 = 128 << 20;
const MEMORY: &str = "64M";
/// One write after the other: each waits for the one before it.
const WORK: &str = "workload=io pattern=random do=write depth=1 kib=4 after_ms=1500";
/// A round trip and the standby's taking it in, on two processors that the pair shares.
const WRITE: Duration = Duration::from_millis(1);

/// Measures single small writes, with protection = "ha" and with none in turns.
#[must_use]
pub fn write() -> Row {
    let (mut with, mut without) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        alone().into_iter().for_each(|time| without.add(time));
        mirrored().into_iter().for_each(|time| with.add(time));
    }
    let detail = format!(
        "{:.0} us against {:.0} us for a write whose answer is waited for; images of {} MiB, full, in the page cache",
        with.p50(),
        without.p50(),
        BYTES >> 20
    );
    Row::new("4 KiB random write, one at a time, level ha", &with)
        .floor("the same without protection", &without)
        .p50_within(WRITE)
        .detail(detail)
}

fn alone() -> Vec<Duration> {
    let lab = TestLab::new();
    let image = lab.path("disk.img");
    fill(&image, BYTES);
    let disk = format!("path={}", image.display());
    let machine = ["run", "--kernel", "pico", "--memory", MEMORY];
    let arguments = ["--cmdline", WORK, "--disk", &disk];
    let mut process = lab.evertwin("alone", machine.into_iter().chain(arguments));
    times_per_request(&mut process)
}

fn mirrored() -> Vec<Duration> {
    let mut stage = Stage::new(&PairConfig {
        cmdline: WORK.into(),
        memory: MEMORY.into(),
        disk: Some(BYTES),
        protection: Some("ha".into()),
        ..PairConfig::default()
    });
    fill(&stage.lab.path("disk-a.img"), BYTES);
    stage.protect();
    times_per_request(stage.twin(Node::A))
}
