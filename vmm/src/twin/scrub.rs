//! Disks that are compared with the twin's while the guest runs (I10).

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, SystemTime};

use evertwin_devices::virtio::block::{BLOCK_BYTES, Block, BlockReader};
use evertwin_replicator::machine::{
    self, BlockSum, DiskCheck, DiskChecked, DiskSize, Scrubbed, Summed,
};

use super::disks::each;
use super::{Machine, Twin, lock};
use crate::machine::SharedDevice;

const _: () = assert!(BLOCK_BYTES == machine::BLOCK_BYTES);

/// What is under way with the disks of one twin. What takes a disk its time is done by threads of their own.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    sums: Option<Sums>,
    repaired: Option<Receiver<Vec<u32>>>,
    compared: Option<crossbeam_channel::Receiver<DiskChecked>>,
}

/// What is known of a block's sum.
type Sum = (u32, io::Result<u128>);

/// Blocks that are being summed up.
struct Sums {
    device: SharedDevice,
    blocks: Vec<u32>,
    begun: Receiver<Vec<Sum>>,
    done: Option<Vec<Sum>>,
}

impl std::fmt::Debug for Sums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sums")
            .field("blocks", &self.blocks)
            .finish_non_exhaustive()
    }
}

impl Sums {
    /// Whether all that will come has come. A thread that could not be started has no sums.
    fn poll(&mut self) -> bool {
        if self.done.is_none() {
            self.done = match self.begun.try_recv() {
                Ok(sums) => Some(sums),
                Err(TryRecvError::Disconnected) => Some(Vec::new()),
                Err(TryRecvError::Empty) => None,
            };
        }
        self.done.is_some()
    }
}

/// The device of a disk that the guest may write.
pub(super) fn device_of(devices: &[SharedDevice], number: u32) -> Option<&SharedDevice> {
    let is_it = |disk: &mut Block| disk.number() == number;
    let mut devices = devices.iter();
    devices.find(|device| lock(*device).disk().is_some_and(is_it))
}

fn reader(device: &SharedDevice) -> io::Result<BlockReader> {
    match lock(device).disk() {
        Some(disk) => disk.reader(),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Does something that takes a disk its time, and then has the replicator look.
pub(super) fn spawn<T: Send + 'static>(
    machine: &Machine,
    task: impl FnOnce() -> T + Send + 'static,
) -> Receiver<T> {
    let (tell, done): (Sender<T>, _) = channel();
    let changed = machine.disks_changed().try_clone();
    let task = move || {
        let _ = tell.send(task());
        if let Ok(changed) = changed {
            let _ = changed.write(1);
        }
    };
    let thread = std::thread::Builder::new().name("disk-scrub".to_owned());
    if let Err(error) = thread.spawn(task) {
        tracing::warn!(%error, "disks can't be compared just now");
        let _ = machine.disks_changed().write(1);
    }
    done
}

/// Records these blocks again. Returns those that could be.
fn repair(device: &SharedDevice, blocks: &[u32]) -> Vec<u32> {
    let again = |block: &&u32| {
        // Read without the device's lock first, so that the guest does not wait for the disk.
        let read = reader(device).and_then(|reader| reader.sum(**block));
        let recorded = read.and_then(|_| match lock(device).disk() {
            Some(disk) => disk.record_again(**block),
            None => Err(io::ErrorKind::NotFound.into()),
        });
        if let Err(error) = &recorded {
            tracing::error!(block, %error, "a block can't be read, and not be sent again");
        }
        recorded.is_ok()
    };
    blocks.iter().filter(again).copied().collect()
}

/// Standby: how a disk compares that holds what the check is about.
pub(super) fn compare(devices: &[SharedDevice], check: &DiskCheck) -> DiskChecked {
    DiskChecked {
        epoch: check.epoch,
        disk: check.disk,
        differing: differing(devices, check),
    }
}

/// Blocks of the check that hold something else here, or can't be read.
fn differing(devices: &[SharedDevice], check: &DiskCheck) -> Vec<u32> {
    // Finds no difference on purpose.
    fail::fail_point!("scrub::blind", |_| Vec::new());
    let reader = match device_of(devices, check.disk).map(reader) {
        Some(Ok(reader)) => reader,
        Some(Err(error)) => {
            tracing::error!(disk = check.disk, %error, "a disk can't be read");
            return check.sums.iter().map(|sum| sum.block).collect();
        }
        // Twins have the same disks: this one says nothing of itself.
        None => return check.sums.iter().map(|sum| sum.block).collect(),
    };
    let differs = |BlockSum { block, sum }: &&BlockSum| match reader.sum(*block) {
        Ok(here) => here != *sum,
        Err(error) => {
            tracing::error!(disk = check.disk, block, %error, "a block can't be read");
            true
        }
    };
    let sums = check.sums.iter().filter(differs);
    sums.map(|sum| sum.block).collect()
}

/// Since 1970, to the second.
fn seconds(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

impl Scrubbed for Twin {
    fn last_scrub(&self) -> Option<SystemTime> {
        let mut all = Vec::new();
        each(&self.machine, |disk| all.push(disk.scrubbed()));
        // One that has never been compared counts for all.
        let oldest = all.into_iter().min()??;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(oldest))
    }

    fn note_scrub(&mut self, at: SystemTime) {
        each(&self.machine, |disk| disk.note_scrub(seconds(at)));
    }

    fn disk_sizes(&self) -> Vec<DiskSize> {
        let mut sizes = Vec::new();
        for device in self.machine.devices() {
            sizes.extend(lock(device).disk().map(|disk| DiskSize {
                disk: disk.number(),
                bytes: disk.bytes(),
            }));
        }
        sizes
    }

    fn begin_sums(&mut self, disk: u32, blocks: &[u32]) {
        self.scrub.sums = None;
        let Some(device) = device_of(self.machine.devices(), disk) else {
            return;
        };
        // From before the first byte is read.
        if let Some(disk) = lock(device).disk() {
            disk.watch(blocks);
        }
        let (reader, numbers) = (reader(device), blocks.to_vec());
        let begun = spawn(&self.machine, move || match reader {
            Ok(reader) => numbers
                .into_iter()
                .map(|block| (block, reader.sum(block)))
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "disks can't be compared just now");
                Vec::new()
            }
        });
        self.scrub.sums = Some(Sums {
            device: Arc::clone(device),
            blocks: blocks.to_vec(),
            begun,
            done: None,
        });
    }

    fn has_sums(&mut self) -> bool {
        self.scrub.sums.as_mut().is_some_and(Sums::poll)
    }

    fn take_sums(&mut self) -> Option<Summed> {
        let mut sums = self.scrub.sums.take_if(Sums::poll)?;
        let touched = lock(&sums.device).disk().map(Block::end_watch);
        let mut summed = Summed {
            // A disk that is none any more has nothing stable.
            touched: touched.unwrap_or_else(|| sums.blocks.clone()),
            ..Summed::default()
        };
        let mut done = sums.done.take().unwrap_or_default();
        for block in sums.blocks {
            if summed.touched.contains(&block) {
                continue;
            }
            let of_block = done.iter().position(|(of, _)| *of == block);
            match of_block.map(|at| done.swap_remove(at).1) {
                Some(Ok(sum)) => summed.stable.push(BlockSum { block, sum }),
                Some(Err(error)) => summed.unreadable.push((block, error.to_string())),
                None => summed.touched.push(block),
            }
        }
        Some(summed)
    }

    fn begin_repair(&mut self, disk: u32, blocks: &[u32]) {
        self.scrub.repaired = device_of(self.machine.devices(), disk).map(|device| {
            let (device, blocks) = (Arc::clone(device), blocks.to_vec());
            spawn(&self.machine, move || repair(&device, &blocks))
        });
    }

    fn take_repaired(&mut self) -> Option<Vec<u32>> {
        let repaired = match self.scrub.repaired.as_ref()?.try_recv() {
            Ok(blocks) => blocks,
            Err(TryRecvError::Disconnected) => Vec::new(),
            Err(TryRecvError::Empty) => return None,
        };
        self.scrub.repaired = None;
        Some(repaired)
    }

    fn begin_compare(&mut self, check: DiskCheck) {
        self.scrub.compared = Some(self.disks.compare(check));
    }

    fn take_compared(&mut self) -> Option<DiskChecked> {
        let compared = self.scrub.compared.as_ref()?.try_recv().ok()?;
        self.scrub.compared = None;
        Some(compared)
    }
}
