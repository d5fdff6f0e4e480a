//! Failures of this host's disk that the guest is not told of: its twin's disk may be good.

use std::io;

use super::Block;
use super::ring::Finished;

/// Requests that have failed and stay in flight: where the guest goes on, they are issued again.
#[derive(Default)]
pub(super) struct Withheld {
    on: bool,
    requests: Vec<Finished>,
    /// What failed first, until somebody has asked.
    failure: Option<String>,
}

impl Withheld {
    /// Passes on what the guest may be told of. Only a `fresh` request can be withheld: one that has failed on both hosts, or that
    /// nobody waits for, is over.
    pub(super) fn pass(&mut self, finished: Finished, fresh: bool) -> Option<Finished> {
        match &finished.result {
            Err(error) if self.on && fresh => {
                self.failure.get_or_insert_with(|| error.to_string());
                self.requests.push(finished);
                None
            }
            _ => Some(finished),
        }
    }

    /// What was withheld, if that is over.
    pub(super) fn given_up(&mut self) -> Vec<Finished> {
        match self.on {
            true => Vec::new(),
            false => std::mem::take(&mut self.requests),
        }
    }

    /// Forgets what was withheld, for a guest that is gone. Returns which requests that were.
    pub(super) fn forget(&mut self) -> Vec<u64> {
        self.failure = None;
        let forgotten = self.requests.drain(..);
        forgotten.map(|request| request.token).collect()
    }
}

impl Block {
    /// Withholds failures of the disk from the guest, which can go on at its twin, or tells it of all that were withheld.
    pub fn withhold_failures(&mut self, on: bool) {
        self.withheld.on = on;
        if !on && !self.withheld.requests.is_empty() {
            self.ring.wake();
        }
    }

    /// The failure that was withheld since the last call, with the image's name.
    pub fn take_failure(&mut self) -> Option<String> {
        let failure = self.withheld.failure.take()?;
        let error = self.ring.image().name_in(io::Error::other(failure));
        Some(error.to_string())
    }
}
