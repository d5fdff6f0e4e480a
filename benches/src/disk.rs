//! What protection costs a guest that keeps its disk busy.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use evertwin::lab::events::Line;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::process::Process;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::{STEP, TestLab};
use evertwin_tests::stage::Stage;
use tempfile::TempDir;

use crate::link::tls_speed;
use crate::report::{Row, Samples};

const ROUNDS: usize = 2;
/// Of the disk, which is full of data when the guest starts.
const BYTES: u64 = 256 << 20;
const MEMORY: &str = "128M";
/// From the guest's first report to what counts: caches are warm then, and regions marked.
const WARM_UP: Duration = Duration::from_millis(1500);
/// What counts: so many times the second from one report of the guest to the next.
const SECONDS: usize = 3;
/// Part of the speed without protection that is to be left.
const SPEED: f64 = 0.8;

/// What a guest does with its disk, once a standby can be there.
struct Work {
    name: &'static str,
    cmdline: &'static str,
    request: u64,
    /// As in the config file.
    cache: &'static str,
}

const RANDOM: &str = "workload=io pattern=random do=write depth=16 kib=4 after_ms=1500";
const SEQUENTIAL: &str = "workload=io pattern=sequential do=write depth=16 kib=1024 after_ms=1500";
const READ: &str = "workload=io pattern=sequential do=read depth=16 kib=1024 after_ms=1500";

/// Measures small writes.
#[must_use]
pub fn random_writes() -> Row {
    measure(&Work {
        name: "4 KiB random write, 16 at once, protected",
        cmdline: RANDOM,
        request: 4 << 10,
        cache: "host",
    })
}

/// Measures small writes that are answered when the disk has them.
#[must_use]
pub fn direct_random_writes() -> Row {
    measure(&Work {
        name: "4 KiB random write past the page cache",
        cmdline: RANDOM,
        request: 4 << 10,
        cache: "none",
    })
}

/// Measures large writes.
#[must_use]
pub fn sequential_writes() -> Row {
    measure(&Work {
        name: "1 MiB sequential write, 16 at once, protected",
        cmdline: SEQUENTIAL,
        request: 1 << 20,
        cache: "host",
    })
}

/// Measures large writes that are answered when the disk has them.
#[must_use]
pub fn direct_sequential_writes() -> Row {
    measure(&Work {
        name: "1 MiB sequential write past the page cache",
        cmdline: SEQUENTIAL,
        request: 1 << 20,
        cache: "none",
    })
}

/// Measures large reads. What they bring is guest memory, which the standby gets.
#[must_use]
pub fn sequential_reads() -> Row {
    measure(&Work {
        name: "1 MiB sequential read, 16 at once, protected",
        cmdline: READ,
        request: 1 << 20,
        cache: "host",
    })
}

/// Both in turns, since others may use the machine as well.
fn measure(work: &Work) -> Row {
    let (mut with, mut without) = (Samples::default(), Samples::default());
    let mut lost = 0;
    for _ in 0..ROUNDS {
        alone(work).into_iter().for_each(|time| without.add(time));
        match protected(work) {
            Some(times) => times.into_iter().for_each(|time| with.add(time)),
            None => lost += 1,
        }
    }
    let rate = |samples: &Samples| match samples.count() {
        0 => 0.0,
        _ => 1e6 / samples.p50(),
    };
    let megabytes = |samples: &Samples| rate(samples) * work.request as f64 / 1e6;
    let mut detail = vec![
        format!(
            "{:.0} requests and {:.0} MB a second, {:.2} of {:.0} and {:.0}; the link with TLS alone carries {:.0} MB",
            rate(&with),
            megabytes(&with),
            rate(&with) / rate(&without),
            rate(&without),
            megabytes(&without),
            tls_speed() / 1e6
        ),
        format!(
            "images of {} MiB, full, {}; between two points, all regions written to before",
            BYTES >> 20,
            match work.cache {
                "none" =>
                    "the standby's in memory: there is one disk here, and it would be written to thrice",
                _ => "in the page cache",
            }
        ),
    ];
    if lost > 0 {
        detail.push(format!(
            "the link was lost in {lost} of {ROUNDS} runs, which do not count"
        ));
    }
    let row = Row::new(work.name, &with)
        .floor("the same without protection", &without)
        .speed_at_least(SPEED);
    detail.into_iter().fold(row, Row::detail)
}

fn alone(work: &Work) -> Vec<Duration> {
    let lab = TestLab::new();
    let image = lab.path("disk.img");
    fill(&image, BYTES);
    let disk = format!("path={},cache={}", image.display(), work.cache);
    let machine = ["run", "--kernel", "pico", "--memory", MEMORY];
    let arguments = ["--cmdline", work.cmdline, "--disk", &disk];
    let mut process = lab.evertwin("alone", machine.into_iter().chain(arguments));
    times_per_request(&mut process)
}

/// None if the pair did not stay protected.
fn protected(work: &Work) -> Option<Vec<Duration>> {
    let mut stage = Stage::new(&PairConfig {
        cmdline: work.cmdline.into(),
        memory: MEMORY.into(),
        disk: Some(BYTES),
        cache: Some(work.cache.to_owned()),
        ..PairConfig::default()
    });
    fill(&stage.lab.path("disk-a.img"), BYTES);
    let memory = TempDir::new_in("/dev/shm").unwrap_or_else(|error| panic!("/dev/shm: {error}"));
    if work.cache == "none" {
        stage
            .pair
            .start(Node::A)
            .unwrap_or_else(|error| panic!("{error}"));
        stage.wait_for(Node::A, "solo");
        give_disk_in_memory(&stage, memory.path());
        stage
            .pair
            .start(Node::B)
            .unwrap_or_else(|error| panic!("{error}"));
        stage.wait_for(Node::A, "protected");
    } else {
        stage.protect();
    }
    let times = times_per_request(stage.twin(Node::A));
    let lines = stage.twin(Node::A).log().lines();
    let says = |line: &Line, message| line.message().as_deref() == Some(message);
    let lost = lines.iter().any(|line| says(line, "link down"));
    (!lost && times.len() == SECONDS).then_some(times)
}

/// The twin that starts next has its disk there. Memory has no way past the page cache.
fn give_disk_in_memory(stage: &Stage, memory: &Path) {
    let image = memory.join("disk.img");
    let file = stage.lab.path("vm.toml");
    let given = File::create(&image)
        .and_then(|image| image.set_len(BYTES))
        .and_then(|()| std::fs::read_to_string(&file))
        .and_then(|text| {
            let path = image.display().to_string();
            let text = text.replace("disk-{node}.img", &path);
            std::fs::write(&file, text.replace("cache = \"none\"", "cache = \"host\""))
        });
    given.unwrap_or_else(|error| panic!("a disk in memory: {error}"));
}

/// The mean time per request of each second that counts, fewer if the guest reports too late.
pub(crate) fn times_per_request(process: &mut Process) -> Vec<Duration> {
    let begun = Instant::now();
    let first = process.wait_for_console("io: ", STEP);
    let first = first.unwrap_or_else(|error| panic!("{error}"));
    let from = first.at.max(begun) + WARM_UP;
    let reports = || -> Vec<(Instant, u64)> {
        let lines = process.console().lines();
        let late = lines.iter().filter(|line| line.at >= from);
        late.filter_map(|line| Some((line.at, requests(line)?)))
            .collect()
    };
    // A guest whose output is held for long does not report.
    while reports().len() <= SECONDS && from.elapsed() < STEP {
        std::thread::sleep(Duration::from_millis(50));
    }
    let reports = reports();
    let pairs = reports.iter().zip(reports.iter().skip(1)).take(SECONDS);
    let times = pairs.map(|((begun, before), (ended, after))| {
        (*ended - *begun).div_f64((after - before).max(1) as f64)
    });
    times.collect()
}

/// Requests that have ended, if the line says.
fn requests(line: &Line) -> Option<u64> {
    let fields = line.text.split_once("io: requests=")?.1;
    assert!(fields.ends_with(" errors=0"), "{}", line.text);
    fields.split(' ').next()?.parse().ok()
}

/// Makes an image without a hole or a block of zeroes.
pub(crate) fn fill(image: &Path, bytes: u64) {
    let chunk = vec![0x5a; 1 << 20];
    let written = File::create(image).and_then(|mut file| {
        (0..bytes)
            .step_by(chunk.len())
            .try_for_each(|_| file.write_all(&chunk))
    });
    written.unwrap_or_else(|error| panic!("{}: {error}", image.display()));
}
