//! `workload=bursts`: writes blocks that are spread over the whole disk for `busy_ms=`, says so, and is quiet for
//! `pause_ms=`, in turns. Who looks at the disk from outside has the pauses to do it in.
//!
//! A burst is a series of rounds. Each writes `writes=` neighbours among the blocks, flushes them, and only then says
//! its number: what was said must be on the disk. Numbers only grow, and have the time in them (microseconds since the
//! boot, from `first=` on), so that two lives of one guest that part do not write the same. Each block tells from which
//! round it is. All are verified before they are written anew, and after each burst.
//!
//! Behind each of these blocks there is another, which is written with it or made to read as zeroes.

use alloc::vec;
use alloc::vec::Vec;

use pico::command_line::CommandLine;
use pico::pattern;

use super::disk::{BLOCK, SECTORS};
use super::number;
use crate::hardware::console::say;
use crate::hardware::{clock, interrupts};
use crate::virtio::Devices;
use crate::virtio::block::{BlockDevice, Request};

pub(super) const MILLISECOND_NS: u64 = 1_000_000;
/// The longest burst or pause, in milliseconds.
pub(super) const LONGEST_MS: u64 = 1_000_000;

struct Bursts {
    disk: BlockDevice,
    /// The round that each block is from; 0: of an earlier life.
    written: Vec<u64>,
    /// From one block to the next, in blocks of the disk.
    stride: u64,
    writes: u64,
    errors: u64,
}

pub(super) fn run(line: CommandLine<'_>, devices: Devices) -> ! {
    let disk = devices
        .block
        .unwrap_or_else(|| panic!("no block device: use --disk"));
    let room = disk.capacity() / SECTORS;
    if room < 2 {
        panic!("the disk is smaller than two blocks of {BLOCK} bytes");
    }
    let blocks = number(line, "blocks", (room / 2).min(256), room / 2);
    let writes = number(line, "writes", blocks.min(64), blocks);
    let busy = number(line, "busy_ms", 500, LONGEST_MS) * MILLISECOND_NS;
    let pause = number(line, "pause_ms", 1500, LONGEST_MS) * MILLISECOND_NS;
    let first = number(line, "first", 1, u64::MAX / 2);
    let mut bursts = Bursts {
        disk,
        written: vec![0; blocks as usize],
        stride: room / blocks,
        writes,
        errors: 0,
    };
    say!("ready workload=bursts blocks={blocks} first={first}");
    let mut round = first;
    loop {
        sleep_for(pause);
        let until = clock::now() + busy;
        while clock::now() < until {
            round = (round + 1).max(first + clock::now() / 1000);
            bursts.write(round);
            say!("bursts: round={round} errors={} busy", bursts.errors);
        }
        (0..blocks).for_each(|block| bursts.verify(block));
        say!("bursts: round={round} errors={} quiet", bursts.errors);
    }
}

pub(super) fn sleep_for(time: u64) {
    let until = clock::now() + time;
    while clock::now() < until {
        interrupts::take_wake();
        interrupts::sleep_until(Some(until));
    }
}

impl Bursts {
    fn write(&mut self, round: u64) {
        let blocks = self.written.len() as u64;
        for block in pattern::blocks_of_round(round, self.writes, blocks) {
            self.verify(block);
            let mut bytes = vec![0; BLOCK];
            pattern::fill_block(&mut bytes, block, round);
            let (at, next) = (self.sector(block), self.sector(block) + SECTORS);
            let neighbour = if pattern::mix(round ^ block) & 1 == 0 {
                Request::Zero(next, SECTORS as u32)
            } else {
                Request::Write(next, bytes.clone())
            };
            self.run(block, Request::Write(at, bytes));
            self.run(block, neighbour);
            self.written[block as usize] = round;
        }
        if self.disk.run(Request::Flush).is_err() {
            self.errors += 1;
            say!("WARNING disk: a flush failed");
        }
    }

    fn run(&mut self, block: u64, request: Request) {
        if self.disk.run(request).is_err() {
            self.errors += 1;
            say!("WARNING disk: writing block {block} failed");
        }
    }

    fn verify(&mut self, block: u64) {
        let round = self.written[block as usize];
        if round == 0 {
            return;
        }
        let read = Request::Read(self.sector(block), vec![0; BLOCK]);
        match self.disk.run(read) {
            Ok(bytes) if pattern::block_matches(&bytes, block, round) => {}
            Ok(_) => {
                self.errors += 1;
                say!("WARNING disk: block {block} doesn't hold what round {round} wrote");
            }
            Err(_) => {
                self.errors += 1;
                say!("WARNING disk: reading block {block} failed");
            }
        }
    }

    fn sector(&self, block: u64) -> u64 {
        block * self.stride * SECTORS
    }
}
