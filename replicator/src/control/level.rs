//! Levels of protection.

use std::time::Duration;

/// How a guest that runs is to be protected (PROTOCOL.md §12.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// All of it is replicated.
    Guest,
    /// Its disks are, and a standby boots it.
    Disks {
        /// How long it may run on the standby's last word: 200 ms to 60 s.
        lease: Duration,
    },
    /// Nothing is: no standby is admitted.
    Nothing,
}
