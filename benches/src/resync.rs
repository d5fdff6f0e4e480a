//! How long a standby that comes back needs until it protects again, by what its disk lacks.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use evertwin::lab::events::{Line, LineLog};
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::STEP;
use evertwin_tests::stage::Stage;

use crate::disk::fill;
use crate::link::raw;
use crate::report::{Row, Samples};

/// Of the disk, which is full of data.
const BYTES: u64 = 1 << 30;
/// Little and mostly zeroes: this is about disks.
const MEMORY: &str = "64M";
const FULL_RUNS: usize = 4;
/// Bytes written at once to a plain file.
const CHUNK: usize = 256 << 10;
/// Blocks that a delta copy is made of.
const BLOCK: u64 = 64 << 10;
/// Time between two bursts of the guest: a delta copy has to come to its end in it.
const PAUSE_MS: u64 = 3000;

/// Measures a full copy, to an empty image.
#[must_use]
pub fn full() -> Row {
    let (mut copies, mut floor) = (Samples::default(), Samples::default());
    let (mut links, mut writes) = (Samples::default(), Samples::default());
    let mut stage = stage(0);
    start_primary(&mut stage);
    for _ in 0..FULL_RUNS {
        let link = over_link(&stage).unwrap_or_else(|error| panic!("link: {error}"));
        let write = to_file(&stage.lab.path("floor")).unwrap_or_else(|e| panic!("floor: {e}"));
        links.add(link);
        writes.add(write);
        floor.add(link.max(write));
        empty(&stage);
        let back = bring_back(&mut stage);
        assert_eq!(back.copy, "full");
        copies.add(back.time);
        stop_standby(&mut stage);
    }
    let rate = |samples: &Samples| BYTES as f64 / samples.p50();
    let detail = format!(
        "{:.0} MB/s with TLS, {:.2} of what is possible: a raw socket of the link carries {:.0} MB/s, write() {:.0} MB/s",
        rate(&copies),
        rate(&copies) / rate(&floor),
        rate(&links),
        rate(&writes)
    );
    Row::new("full resync of a full disk of 1 GiB", &copies)
        .floor(
            "1 GiB over the bare link or into a file, the slower of the two",
            &floor,
        )
        .speed_at_least(0.8)
        .detail(detail)
}

/// Measures delta copies, each against the full one that came before it.
#[must_use]
pub fn delta() -> Row {
    let mut whole = Samples::default();
    let mut of = |mib: u64, runs: usize| {
        let mut deltas = Samples::default();
        for _ in 0..runs {
            let (full, delta) = one(mib);
            whole.add(full);
            deltas.add(delta);
        }
        deltas
    };
    let unchanged = of(0, 2);
    let few = of(16, 2);
    let many = of(256, 1);
    let time = Samples::show_p50;
    let part = |samples: &Samples| {
        let disk = |samples: &Samples| samples.p50() - unchanged.p50();
        disk(samples) / disk(&whole)
    };
    let detail = format!(
        "nothing changed: {}; 256 MiB: {}; without the former, 16 MiB takes {:.3} and 256 MiB {:.3} of a full copy",
        time(&unchanged),
        time(&many),
        part(&few),
        part(&many)
    );
    Row::new("delta resync, 16 MiB of a 1 GiB disk changed", &few)
        .floor("a full one of the same disk", &whole)
        .times_floor_at_most(0.1)
        .detail(detail)
}

/// The times of a full copy and of the delta copy after so much was changed. A pair has one delta copy: a standby that is
/// killed again before the next point knows whole regions only of what the copy brought.
fn one(mib: u64) -> (Duration, Duration) {
    let mut stage = stage(mib);
    start_primary(&mut stage);
    let full = bring_back(&mut stage);
    assert_eq!(full.copy, "full");
    stage.wait_for(
        Node::A,
        "both disks know a point: a later copy needs only what changes from here on",
    );
    stop_standby(&mut stage);
    if mib > 0 {
        let console = stage.twin(Node::A).console();
        let busy = wait(console, console.len(), |line| line.text.ends_with("busy"));
        wait(console, 0, |line| {
            line.at > busy.at && line.text.ends_with("quiet")
        });
    }
    let delta = bring_back(&mut stage);
    let (copy, bytes) = (delta.copy.as_str(), delta.bytes >> 20);
    // Less, if the point came in the midst of the first burst.
    let expected = mib * 3 / 4..=mib;
    assert!(
        copy == "delta" && expected.contains(&bytes),
        "{copy} of {bytes} MiB"
    );
    (full.time, delta.time)
}

/// A pair whose guest changes so much of the disk again and again, spread all over it. Nothing is started yet.
fn stage(mib: u64) -> Stage {
    let blocks = (mib << 20) / BLOCK;
    let cmdline = match blocks {
        0 => "workload=idle".to_owned(),
        _ => {
            format!("workload=bursts blocks={blocks} writes={blocks} busy_ms=1 pause_ms={PAUSE_MS}")
        }
    };
    let stage = Stage::new(&PairConfig {
        cmdline,
        memory: MEMORY.to_owned(),
        disk: Some(BYTES),
        ..PairConfig::default()
    });
    fill(&stage.lab.path("disk-a.img"), BYTES);
    stage
}

pub(crate) fn start_primary(stage: &mut Stage) {
    stage
        .pair
        .start(Node::A)
        .unwrap_or_else(|error| panic!("{error}"));
    stage.wait_for(Node::A, "solo");
}

/// A standby that came back.
pub(crate) struct Back {
    /// From the link to the end of its first epoch.
    pub(crate) time: Duration,
    copy: String,
    bytes: u64,
}

pub(crate) fn bring_back(stage: &mut Stage) -> Back {
    let from = stage.twin(Node::A).log().len();
    stage
        .pair
        .start(Node::B)
        .unwrap_or_else(|error| panic!("{error}"));
    let log = stage.twin(Node::A).log();
    let next = |message: &str| wait(log, from, |line| says(line, message));
    let (up, copy, end) = (next("link up"), next("disk copy"), next("protected"));
    let field = |name| copy.field(name).unwrap_or_default();
    Back {
        time: end.at - up.at,
        copy: field("copy").as_str().unwrap_or_default().to_owned(),
        bytes: field("bytes").as_u64().unwrap_or_default(),
    }
}

fn stop_standby(stage: &mut Stage) {
    let from = stage.twin(Node::A).log().len();
    stage.twin(Node::B).kill();
    wait(stage.twin(Node::A).log(), from, |line| says(line, "solo"));
}

/// Takes from the standby, which does not run, all that it had.
fn empty(stage: &Stage) {
    let image = stage.lab.path("disk-b.img");
    let _ = std::fs::remove_file(image.with_extension("img.mirror"));
    stage.lab.make_disk("disk-b.img", BYTES);
}

fn says(line: &Line, message: &str) -> bool {
    line.message().as_deref() == Some(message)
}

fn wait(log: &LineLog, from: usize, wanted: impl Fn(&Line) -> bool) -> Line {
    let found = log.wait(from, STEP, wanted);
    found.unwrap_or_else(|why| panic!("a line did not come: {why:?}"))
}

/// The time that the bytes of the disk take between the twins' hosts.
fn over_link(stage: &Stage) -> Result<Duration, Box<dyn std::error::Error>> {
    let [a, b] = [Node::A, Node::B].map(|node| stage.pair.topology.host(node));
    let mut address = Node::B.address();
    address.set_port(0);
    let listener = b.enter(|| TcpListener::bind(address))??;
    let stream = a.connect(listener.local_addr()?, STEP)?;
    Ok(raw(BYTES, stream, listener.accept()?.0)?)
}

/// The time that they take into a new file beside the images.
fn to_file(path: &Path) -> std::io::Result<Duration> {
    let chunk = vec![0x5a; CHUNK];
    let mut file = File::create(path)?;
    let begun = Instant::now();
    for _ in 0..BYTES / CHUNK as u64 {
        file.write_all(&chunk)?;
    }
    let time = begun.elapsed();
    std::fs::remove_file(path)?;
    Ok(time)
}
