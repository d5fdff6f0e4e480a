//! Acknowledgements on the wire: what they allow (I1, I5), and what they must be true of (I3).

use super::{Invariant, Verdict, demand};

/// What was acknowledged, by generation.
#[derive(Debug, Default)]
pub(crate) struct Commits {
    /// The newest epoch whose acknowledgement has arrived.
    arrived: Vec<u64>,
}

impl Commits {
    /// An acknowledgement has arrived at a primary.
    pub(crate) fn arrived(&mut self, generation: u64, epoch: u64) {
        let index = generation as usize;
        if self.arrived.len() <= index {
            self.arrived.resize(index + 1, 0);
        }
        self.arrived[index] = self.arrived[index].max(epoch);
    }

    /// A guest was booted: numbers start again.
    pub(crate) fn booted(&mut self, generation: u64) {
        if let Some(epoch) = self.arrived.get_mut(generation as usize) {
            *epoch = 0;
        }
    }

    fn covers(&self, generation: u64, epoch: u64) -> bool {
        let arrived = self.arrived.get(generation as usize);
        arrived.is_some_and(|arrived| epoch <= *arrived)
    }

    /// A primary releases the output of epochs up to this one.
    pub(crate) fn released(&self, generation: u64, epoch: u64) -> Verdict {
        demand(
            self.covers(generation, epoch),
            Invariant::OutputCommit,
            || format!("epoch {epoch} of generation {generation} was released unacknowledged"),
        )
    }

    /// A primary gives up its copy of epochs up to this one.
    pub(crate) fn dropped(&self, generation: u64, epoch: u64) -> Verdict {
        demand(
            self.covers(generation, epoch),
            Invariant::NoDirtyBitLost,
            || format!("epoch {epoch} of generation {generation} was dropped unacknowledged"),
        )
    }

    /// A standby says in a hello which epoch it holds; `promised` is the last one that it has
    /// acknowledged. One that was handed over has no number of its own.
    pub(crate) fn greeted(
        &self,
        promised: Option<(u64, u64)>,
        generation: u64,
        epoch: u64,
    ) -> Verdict {
        demand(
            epoch == 0 || promised == Some((generation, epoch)),
            Invariant::WholeEpochs,
            || {
                format!(
                    "epoch {epoch} of generation {generation} was claimed, not acknowledged: {promised:?}"
                )
            },
        )
    }

    /// A standby acknowledges an epoch; `held` is the last one that it has got whole.
    pub(crate) fn acknowledged(
        &self,
        held: Option<(u64, u64)>,
        generation: u64,
        epoch: u64,
    ) -> Verdict {
        demand(
            held == Some((generation, epoch)),
            Invariant::WholeEpochs,
            || {
                format!(
                    "epoch {epoch} of generation {generation} was acknowledged, not got: {held:?}"
                )
            },
        )
    }
}
