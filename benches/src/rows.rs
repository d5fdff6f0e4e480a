//! All rows, in the order in which they are measured.

use evertwin_benches::report::Row;
use evertwin_benches::{
    blackout, boot, cpu, delay, disk, disk_ha, idle, link, memory, pairs, pause, peer, redis,
    resync, slow_link, stock_boot, switchover, wire,
};

/// A row.
#[derive(Debug)]
pub(crate) struct Bench {
    /// For the command line.
    pub(crate) name: &'static str,
    /// One line on what it is.
    pub(crate) about: &'static str,
    /// Measures it.
    pub(crate) run: fn() -> Row,
}

macro_rules! rows {
    ($($name:literal, $about:literal, $run:path;)*) => {
        &[$(Bench { name: $name, about: $about, run: $run }),*]
    };
}

pub(crate) const ROWS: &[Bench] = rows![
    "boot", "from `evertwin run` to the guest's first instruction", boot::run;
    "memory", "what the process holds beyond the guest's RAM", memory::run;
    "pause-64", "how long the guest stands still at an epoch's end, with 64 dirty pages", pause::few;
    "pause-4096", "the same with 4096 scattered pages, over a stop-and-copy of as many", pause::many;
    "pause-ram", "the same with 256 pages of 8 GiB of RAM, over 512 MiB", pause::by_memory;
    "pause-vcpus", "the same with 64 pages and 8 vCPUs, over one", pause::by_vcpus;
    "delay", "what protection adds to a round trip over one connection", delay::run;
    "redis", "redis-benchmark with 32 clients, protected over dirty logging only", redis::run;
    "cpu", "a guest that only computes, protected over bare", cpu::run;
    "wire", "bytes on the replication link over those of the dirty pages, key-value load", wire::run;
    "blackout-kill", "how long a client waits when the primary is killed", blackout::kill;
    "blackout-freeze", "how long a client waits when the primary stands still (SIGSTOP)", blackout::freeze;
    "blackout-host", "how long a client waits when the primary's host is gone", blackout::vanish;
    "idle", "processor time and epochs of a protected pair whose guest is idle", idle::run;
    "pairs", "eight busy pairs on one machine: answers, and links that are lost", pairs::run;
    "switchover", "how long a client waits when the twins exchange their roles", switchover::run;
    "peer-migration", "a switchover beside QEMU's live migration of the same guest", peer::migration;
    "link-plain", "a link's throughput in plaintext, over a raw socket's", link::plain;
    "link-tls", "a link's throughput with TLS, over a raw socket's", link::tls;
    "disk-random", "4 KiB random writes of a protected guest, 16 at once", disk::random_writes;
    "disk-sequential", "1 MiB sequential writes of a protected guest, 16 at once", disk::sequential_writes;
    "disk-random-direct", "4 KiB random writes past the host's page cache", disk::direct_random_writes;
    "disk-sequential-direct", "1 MiB sequential writes past the host's page cache", disk::direct_sequential_writes;
    "disk-read", "1 MiB sequential reads of a protected guest, 16 at once", disk::sequential_reads;
    "disk-ha", "single 4 KiB writes of a guest whose disks only are mirrored", disk_ha::write;
    "resync-full", "a full copy of a disk to a standby that has none", resync::full;
    "resync-delta", "a copy of what a returning standby's disk lacks", resync::delta;
    "resync-slow-link", "a full copy of a disk over a gigabit, packed over not", slow_link::run;
    "stock-boot", "a stock kernel to its process 1, on an emulated host", stock_boot::run;
];
