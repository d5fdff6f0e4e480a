//! `workload=disk`: writes blocks in a pattern that each round changes, and verifies in
//! each round what the one before wrote. With `rounds=` it verifies the last one, too,
//! and shuts the machine down. A disk that grows gets as many blocks more, at its new end.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use pico::command_line::CommandLine;
use pico::pattern;

use super::{REPORT_NS, number};
use crate::hardware::console::say;
use crate::hardware::{clock, power};
use crate::virtio::Devices;
use crate::virtio::block::{BlockDevice, Request, SECTOR};

/// Bytes of a block.
pub(super) const BLOCK: usize = 4096;
pub(super) const SECTORS: u64 = (BLOCK / SECTOR) as u64;

struct Tally {
    verified: u64,
    errors: u64,
    report_at: u64,
}

pub(super) fn run(line: CommandLine<'_>, devices: Devices) -> ! {
    let mut disk = devices
        .block
        .unwrap_or_else(|| panic!("no block device: use --disk"));
    let room = disk.capacity() / SECTORS;
    if room == 0 {
        panic!("the disk is smaller than one block of {BLOCK} bytes");
    }
    let blocks = number(line, "blocks", room.min(256), room);
    let rounds = line
        .value("rounds")
        .map(|_| number(line, "rounds", 1, u64::MAX));
    say!("ready workload=disk blocks={blocks}");
    let mut areas = Areas {
        room,
        areas: vec![(0..blocks, 1)],
    };
    let mut tally = Tally {
        verified: 0,
        errors: 0,
        report_at: clock::now() + REPORT_NS,
    };
    let mut round = 0;
    while rounds.is_none_or(|rounds| round < rounds) {
        round += 1;
        areas.look(&disk, blocks, round);
        for (block, first) in areas.blocks() {
            if round > first {
                verify(&mut disk, block, round - 1, &mut tally);
            }
            let mut bytes = vec![0; BLOCK];
            pattern::fill_block(&mut bytes, block, round);
            if disk.run(Request::Write(block * SECTORS, bytes)).is_err() {
                tally.errors += 1;
                say!("WARNING disk: writing block {block} failed");
            }
        }
        if disk.run(Request::Flush).is_err() {
            tally.errors += 1;
            say!("WARNING disk: a flush failed");
        }
        let now = clock::now();
        if now >= tally.report_at {
            say!(
                "disk: rounds={round} blocks={} errors={}",
                tally.verified,
                tally.errors
            );
            tally.report_at = now + REPORT_NS;
        }
    }
    for (block, _) in areas.blocks() {
        verify(&mut disk, block, round, &mut tally);
    }
    say!(
        "disk: verified blocks={} errors={}",
        tally.verified,
        tally.errors
    );
    power::shut_down()
}

/// Where it writes, and since which round.
struct Areas {
    /// Blocks of the disk.
    room: u64,
    areas: Vec<(Range<u64>, u64)>,
}

impl Areas {
    /// The disk may have grown: its last `blocks` are written from this round on.
    fn look(&mut self, disk: &BlockDevice, blocks: u64, round: u64) {
        let room = disk.capacity() / SECTORS;
        if room > self.room {
            let start = self.room.max(room - blocks);
            say!("disk: grown blocks={room} from={start}");
            self.areas.push((start..room, round));
            self.room = room;
        }
    }

    fn blocks(&self) -> impl Iterator<Item = (u64, u64)> {
        let areas = self.areas.iter();
        areas.flat_map(|(area, first)| area.clone().map(|block| (block, *first)))
    }
}

fn verify(disk: &mut BlockDevice, block: u64, round: u64, tally: &mut Tally) {
    tally.verified += 1;
    match disk.run(Request::Read(block * SECTORS, vec![0; BLOCK])) {
        Ok(bytes) if pattern::block_matches(&bytes, block, round) => {}
        Ok(_) => {
            tally.errors += 1;
            say!("WARNING disk: block {block} doesn't hold what round {round} wrote");
        }
        Err(_) => {
            tally.errors += 1;
            say!("WARNING disk: reading block {block} failed");
        }
    }
}
