//! Memory that only a busy pair needs is the host's again when the pair is idle.

use std::time::{Duration, Instant};

use super::Driver;
use crate::give_back;

/// A pair is idle when it had no epoch for so long. The first one after that travels whole.
const IDLE: Duration = Duration::from_secs(5);

/// When the last epoch was, until memory was given back after it.
#[derive(Debug, Default)]
pub(super) struct LastEpoch(Option<Instant>);

impl LastEpoch {
    /// There is one now.
    pub(super) fn is_now(&mut self) {
        self.0 = Some(Instant::now());
    }
}

impl Driver<'_> {
    /// When memory is to be given back, if no other epoch comes before.
    pub(super) fn next_give_back(&self) -> Option<Instant> {
        let last = self.last_epoch_was.0.filter(|_| self.shipments.is_empty());
        last.map(|at| at + IDLE)
    }

    /// Gives memory back that the next epochs may need, and may need not.
    pub(super) fn give_back_when_idle(&mut self) {
        if self.next_give_back().is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.last_epoch_was = LastEpoch::default();
        if let Some(sent) = &mut self.sent {
            sent.forget();
        }
        self.spare.clear();
        self.assembly.give_back_memory();
        give_back::freed_memory();
        self.link_gives_back = true;
    }
}
