//! `workload=io`: keeps `depth=` requests of `kib=` KiB each in flight on the first disk, for measurements. They read or
//! write (`do=`), one behind the other all over the disk or at random places (`pattern=`). How many have ended is said
//! once a second. The first begins `after_ms=` after the boot: by then a standby may be there.
//!
//! What is written differs from request to request in its first bytes only, so that a standby gets what the disk got
//! and hardly any memory.

use alloc::vec;
use alloc::vec::Vec;

use pico::command_line::CommandLine;
use pico::pattern::Places;

use super::bursts::{LONGEST_MS, MILLISECOND_NS, sleep_for};
use super::{REPORT_NS, number};
use crate::hardware::console::say;
use crate::hardware::{clock, interrupts};
use crate::virtio::Devices;
use crate::virtio::block::{BlockDevice, Request, SECTOR, SLOTS};

const KIB: usize = 1024;
/// The longest request, in KiB.
const LONGEST_KIB: u64 = 1024;

struct Io {
    disk: BlockDevice,
    /// Bytes of a request.
    length: usize,
    reads: bool,
    places: Places,
    /// Writes so far: what makes their contents differ.
    writes: u64,
    errors: u64,
}

pub(super) fn run(line: CommandLine<'_>, devices: Devices) -> ! {
    let disk = devices
        .block
        .unwrap_or_else(|| panic!("no block device: use --disk"));
    let depth = number(line, "depth", u64::from(SLOTS), u64::from(SLOTS));
    let kib = number(line, "kib", 4, LONGEST_KIB);
    let length = kib as usize * KIB;
    let room = disk.capacity() / (length / SECTOR) as u64;
    if room == 0 {
        panic!("the disk is smaller than one request of {kib} KiB");
    }
    let (pattern, places) = match line.value("pattern").unwrap_or("random") {
        "random" => ("random", Places::random(room)),
        "sequential" => ("sequential", Places::sequential(room)),
        other => panic!("pattern={other}: use random or sequential"),
    };
    let (verb, reads) = match line.value("do").unwrap_or("write") {
        "write" => ("write", false),
        "read" => ("read", true),
        other => panic!("do={other}: use write or read"),
    };
    let mut io = Io {
        disk,
        length,
        reads,
        places,
        writes: 0,
        errors: 0,
    };
    let after = number(line, "after_ms", 1, LONGEST_MS) * MILLISECOND_NS;
    say!("ready workload=io pattern={pattern} do={verb} depth={depth} kib={kib}");
    sleep_for(after);
    for _ in 0..depth {
        io.start(vec![0xa5; length]);
    }
    let mut ended = 0u64;
    let mut report_at = clock::now() + REPORT_NS;
    loop {
        let wake = interrupts::take_wake();
        io.disk.take_interrupt(wake);
        let before = ended;
        while let Some((_, result)) = io.disk.poll() {
            ended += 1;
            io.errors += u64::from(result.is_err());
            io.start(result.unwrap_or_else(|_| vec![0xa5; length]));
        }
        if clock::now() >= report_at {
            let bytes = ended * length as u64;
            say!("io: requests={ended} bytes={bytes} errors={}", io.errors);
            report_at += REPORT_NS;
        }
        if ended == before && io.disk.prepare_sleep() {
            interrupts::sleep_until(Some(report_at));
        }
    }
}

impl Io {
    fn start(&mut self, mut buffer: Vec<u8>) {
        let sector = self.places.take() * (self.length / SECTOR) as u64;
        let request = if self.reads {
            Request::Read(sector, buffer)
        } else {
            self.writes += 1;
            buffer[..8].copy_from_slice(&self.writes.to_le_bytes());
            Request::Write(sector, buffer)
        };
        self.disk
            .submit(request)
            .unwrap_or_else(|_| panic!("sector {sector} is outside the disk"));
    }
}
