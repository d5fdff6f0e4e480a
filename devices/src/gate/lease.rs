//! A moment after which nothing may leave, though nobody was there to close the gate.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Stands for a lease without an end.
const ENDLESS: u64 = u64::MAX;

/// Until when output may leave, in nanoseconds of `CLOCK_BOOTTIME`: a process that was frozen and a
/// host that was suspended find their time over.
pub(super) struct Lease(AtomicU64);

impl Default for Lease {
    fn default() -> Self {
        Self(AtomicU64::new(ENDLESS))
    }
}

impl Lease {
    pub(super) fn set(&self, until: Option<Duration>) {
        let until = until.map_or(ENDLESS, |until| {
            u64::try_from(until.as_nanos()).unwrap_or(ENDLESS)
        });
        self.0.store(until, Ordering::SeqCst);
    }

    pub(super) fn is_over(&self) -> bool {
        // Breaks the lease on purpose.
        fail::fail_point!("ha::no_lease", |_| false);
        let until = self.0.load(Ordering::SeqCst);
        until != ENDLESS && u128::from(until) <= now().as_nanos()
    }
}

fn now() -> Duration {
    // Neither part of the clock's reading is ever negative.
    clock_gettime(ClockId::Boottime)
        .try_into()
        .unwrap_or_default()
}
