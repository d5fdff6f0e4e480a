//! What an operator is told of a scrub: the comparison of both twins' disks (PROTOCOL.md §4.6).

use serde::{Deserialize, Serialize};

/// Passes over the disks, of this process as the primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// The pass that is under way.
    pub pass: Option<ScrubProgress>,
    /// How the last one ended.
    pub last: Option<ScrubReport>,
}

/// How far a pass has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubProgress {
    /// Number of the pass, from 1.
    pub number: u64,
    /// Index of the disk that is looked at. From the last number on downwards: regions of memory.
    pub disk: u32,
    /// Bytes that are done.
    pub bytes: u64,
    /// Bytes of all disks.
    pub of: u64,
}

impl ScrubProgress {
    /// What is looked at, in words.
    #[must_use]
    pub fn what(&self) -> String {
        match self.disk {
            // A VM has at most 64 regions, and 64 devices.
            disk if disk >= u32::MAX - 63 => "memory".to_owned(),
            disk => format!("disk {disk}"),
        }
    }

    /// How much of the pass is done.
    #[must_use]
    pub fn percent(&self) -> u64 {
        self.bytes * 100 / self.of.max(1)
    }
}

/// What a pass has found. All counts but the first are of blocks of 64 KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubCounts {
    /// Bytes that were compared.
    pub bytes: u64,
    /// Blocks that differed at the standby, or could not be read there.
    pub differences: u64,
    /// Those of them that are the same now.
    pub repaired: u64,
    /// Blocks to which the guest wrote whenever they were to be compared.
    pub busy: u64,
    /// Blocks that the primary can't read.
    pub unreadable: u64,
}

/// How a pass ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Number of the pass.
    pub number: u64,
    /// Time since then in seconds.
    pub age_s: u64,
    /// What it has found.
    pub counts: ScrubCounts,
    /// Why it has ended early, if it has.
    pub failure: Option<String>,
}

impl ScrubReport {
    /// Whether all blocks were compared and are the same now.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let ScrubCounts {
            bytes: _,
            differences,
            repaired,
            busy,
            unreadable,
        } = self.counts;
        self.failure.is_none() && differences == repaired && busy + unreadable == 0
    }
}

/// Why a scrub was not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoScrub {
    /// The standby is asked for nothing.
    #[error("this twin is not the primary: ask the other one")]
    NotPrimary,
    /// There is no standby.
    #[error("the guest is not protected: there is no standby to compare its disks with")]
    NotProtected,
    /// The standby's disks are being filled.
    #[error("a sync is under way: try again once the guest is protected")]
    Syncing,
    /// One of the twins speaks a version of the protocol without it.
    #[error("one of the two releases can't compare disks yet: upgrade it first")]
    PeerTooOld,
    /// One pass at a time.
    #[error("a scrub is under way already: see `evertwin status`")]
    Running,
    /// The standby has no memory of the guest's.
    #[error("only this guest's disks are replicated: leave --memory out")]
    NoMemory,
    /// There is nothing to compare.
    #[error("the guest has no disk that it may write; --memory compares memory")]
    NoDisks,
}
