//! One stage of a VM's journey through processes: takes a checkpoint from standard input
//! (or boots), lets the guest run for a while, and gives the next checkpoint to standard
//! output.
//!
//! `hop boot|resume MEMORY_MIB RUN_MS CONSOLE_FILE GUEST [DISK]`
//!
//! GUEST is pico's command line, or `ring` for the kernel of [`evertwin_tests::ring`].
//! DISK is the image as the stage before found it, and is brought to the moment of the
//! checkpoint first. The guest runs on a copy of it that dies with this process.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use evertwin::config::{CacheMode, DiskConfig, KernelSource, VmConfig};
use evertwin::machine::{ConsoleOutput, Machine};
use evertwin::memory::PAGE_SIZE;
use evertwin::twin::Twin;
use evertwin_replicator::machine::{Capture, DiskData, DiskWrite, Machine as _};
use evertwin_tests::ring;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// What a stage is handed by the one before it.
#[derive(Default)]
struct Checkpoint {
    /// All memory, and what of it changed since: in this order.
    memory: [(Vec<u64>, Vec<u8>); 2],
    disk_writes: Vec<DiskWrite>,
    state: Vec<u8>,
}

fn main() -> Fallible<()> {
    let _failpoints = fail::FailScenario::setup();
    let args: Vec<String> = std::env::args().collect();
    let [_, how, memory, run_ms, console, guest, disk @ ..] = &args[..] else {
        return Err("usage: hop boot|resume MEMORY_MIB RUN_MS CONSOLE_FILE GUEST [DISK]".into());
    };
    let before = match how.as_str() {
        "boot" => None,
        _ => Some(Checkpoint::read(&mut io::stdin().lock())?),
    };
    let scratch = tempfile::tempdir()?;
    let image = scratch.path().join("disk");
    if let Some(disk) = disk.first() {
        let writes = before
            .as_ref()
            .map(|checkpoint| &checkpoint.disk_writes[..]);
        repeat(writes.unwrap_or_default(), Path::new(disk))?;
        std::fs::copy(disk, &image)?;
    }
    let (kernel, vcpus) = match guest.as_str() {
        "ring" => {
            let kernel = scratch.path().join("ring");
            std::fs::write(&kernel, ring::kernel())?;
            (KernelSource::File(kernel), ring::VCPUS)
        }
        _ => (KernelSource::Pico, 1),
    };
    let config = VmConfig {
        cmdline: guest.clone(),
        vcpus,
        disks: disk
            .iter()
            .map(|_| DiskConfig {
                path: image.clone(),
                read_only: false,
                cache: CacheMode::Auto,
                serial: None,
            })
            .collect(),
        ..VmConfig::alone("hop", kernel, memory.parse::<u64>()? << 20)
    };
    let console = OpenOptions::new().append(true).create(true).open(console)?;
    let kvm = evertwin::kvm::open()?;
    let machine = Machine::new(&kvm, &config, ConsoleOutput::Writer(Box::new(console)))?;
    let mut twin = Twin::new(machine)?;
    twin.open_output();
    twin.start_tracking();
    twin.tracking_started()?;
    match &before {
        None => twin.boot()?,
        Some(before) => resume(&mut twin, before)?,
    }
    run(&twin, Duration::from_millis(run_ms.parse()?))?;
    suspend(&mut twin)?.write(&mut io::stdout().lock())
}

/// Brings an image to the moment of the checkpoint.
fn repeat(writes: &[DiskWrite], image: &Path) -> io::Result<()> {
    let image = OpenOptions::new().write(true).open(image)?;
    writes
        .iter()
        .try_for_each(|write| image.write_all_at(bytes_of(&write.data), write.offset))
}

/// Pico neither discards nor writes zeroes.
fn bytes_of(data: &DiskData) -> &[u8] {
    match data {
        DiskData::Bytes(bytes) => bytes,
        DiskData::Zeroes { .. } => unreachable!("a range of zeroes from pico"),
    }
}

/// Lets the guest run for `time`; its own end is an error.
fn run(twin: &Twin, time: Duration) -> Fallible<()> {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::sleep(left.min(Duration::from_millis(2)));
        if let Some(exit) = twin.machine().exit().get() {
            let failure = twin.machine().failure().unwrap_or("by itself");
            return Err(format!("the guest ended: {exit:?}, {failure}").into());
        }
    }
    Ok(())
}

/// A full copy under the running guest, then one epoch with what changed meanwhile: the
/// way a standby is filled.
fn suspend(twin: &mut Twin) -> Fallible<Checkpoint> {
    let (mut pages, mut bytes) = (Vec::new(), Vec::new());
    let mut page = Vec::new();
    for number in 0..twin.machine().config().memory / PAGE_SIZE {
        page.clear();
        twin.read_pages(&[number], &mut page);
        if page.iter().any(|byte| *byte != 0) {
            pages.push(number);
            bytes.extend_from_slice(&page);
        }
    }
    let mut last = Capture::default();
    // The guest goes on for a moment after the capture: what it says then belongs to the next
    // process, which says it again (I1).
    twin.hold_output();
    twin.capture(1, &mut last)?;
    twin.release_through(1);
    twin.fence();
    Ok(Checkpoint {
        memory: [(pages, bytes), (last.pages, last.bytes)],
        disk_writes: last.disk_writes,
        state: last.state,
    })
}

fn resume(twin: &mut Twin, checkpoint: &Checkpoint) -> Fallible<()> {
    for (pages, bytes) in &checkpoint.memory {
        twin.store_pages(pages, bytes)?;
    }
    twin.apply(&checkpoint.state, &[])?;
    Ok(twin.promote(Vec::new())?)
}

impl Checkpoint {
    fn read(input: &mut impl Read) -> Fallible<Self> {
        let mut checkpoint = Self::default();
        for (pages, bytes) in &mut checkpoint.memory {
            for _ in 0..read_number(input)? {
                pages.push(read_number(input)?);
            }
            *bytes = read_bytes(input)?;
        }
        for _ in 0..read_number(input)? {
            checkpoint.disk_writes.push(DiskWrite {
                disk: u32::try_from(read_number(input)?)?,
                offset: read_number(input)?,
                data: DiskData::Bytes(read_bytes(input)?.into()),
            });
        }
        checkpoint.state = read_bytes(input)?;
        Ok(checkpoint)
    }

    fn write(&self, out: &mut impl Write) -> Fallible<()> {
        for (pages, bytes) in &self.memory {
            write_number(out, pages.len() as u64)?;
            pages.iter().try_for_each(|page| write_number(out, *page))?;
            write_bytes(out, bytes)?;
        }
        write_number(out, self.disk_writes.len() as u64)?;
        for DiskWrite { disk, offset, data } in &self.disk_writes {
            write_number(out, u64::from(*disk))?;
            write_number(out, *offset)?;
            write_bytes(out, bytes_of(data))?;
        }
        write_bytes(out, &self.state)?;
        Ok(out.flush()?)
    }
}

fn write_number(out: &mut impl Write, number: u64) -> io::Result<()> {
    out.write_all(&number.to_le_bytes())
}

fn write_bytes(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    write_number(out, bytes.len() as u64)?;
    out.write_all(bytes)
}

fn read_number(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn read_bytes(input: &mut impl Read) -> Fallible<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(read_number(input)?)?];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}
