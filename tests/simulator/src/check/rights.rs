//! The arbiter's record: how it may change (I2, I4), and what may be done under it.

use evertwin_protocol::{NodeId, Record};

use super::{Invariant, Verdict, demand};

/// The history of the record, as far as it matters.
#[derive(Debug, Default)]
pub(crate) struct Rights {
    /// All records, in order.
    history: Vec<Record>,
    /// Generations under which a guest was started from its kernel.
    booted: Vec<u64>,
}

impl Rights {
    /// The record as it is.
    pub(crate) fn record(&self) -> Option<Record> {
        self.history.last().copied()
    }

    /// The record has changed, and the hosts are like this.
    pub(crate) fn changed(&mut self, new: Record, seen: Hosts) -> Verdict {
        let old = self.record();
        self.history.push(new);
        demand(!seen.forsakes, Invariant::EligibleStandby, || {
            format!("{old:?} became {new:?} for a cold start, though the standby holds newer state")
        })?;
        let last = old.map_or(0, |old| old.generation);
        let kept = old.is_none_or(|old| old.releaser == new.releaser);
        if new.standby.is_some() && kept {
            return demand(
                old == Some(Record::solo(new.generation, new.releaser)),
                Invariant::EligibleStandby,
                || format!("{old:?} became {new:?}: only who releases alone may name a standby"),
            );
        }
        demand(new.generation == last + 1, Invariant::OneReleaser, || {
            format!("{old:?} became {new:?}: the right has changed, its number not by one")
        })?;
        let promoted = old.is_some_and(|old| old.standby == Some(new.releaser));
        demand(kept || promoted, Invariant::EligibleStandby, || {
            format!("{old:?} became {new:?}: who was not named took the right")
        })?;
        demand(
            new.standby.is_none() || seen.same_epoch,
            Invariant::EligibleStandby,
            || format!("{old:?} became {new:?}: the old primary does not hold the new one's epoch"),
        )
    }

    /// Output leaves through an open gate.
    pub(crate) fn released_alone(&self, me: NodeId) -> Verdict {
        let now = self.record();
        demand(
            now.is_some_and(|now| now.releaser == me && now.standby.is_none()),
            Invariant::OneReleaser,
            || format!("{me} releases alone under {now:?}"),
        )
    }

    /// A guest is started from its kernel.
    pub(crate) fn booted(&mut self, me: NodeId, generation: u64) -> Verdict {
        let again = self.booted.contains(&generation);
        self.booted.push(generation);
        demand(!again, Invariant::OneReleaser, || {
            format!("{me} boots under generation {generation}, which an earlier life had")
        })?;
        self.released_alone(me)
    }

    /// Output leaves because the standby has acknowledged it.
    pub(crate) fn released_gated(&self, generation: u64) -> Verdict {
        let named = |record: &Record| record.generation == generation && record.standby.is_some();
        demand(
            self.history.iter().rev().any(named),
            Invariant::EligibleStandby,
            || format!("output is gated on a standby that was never named in {generation}"),
        )
    }

    /// A standby's guest is run. `ran`: it ran here before and stood still.
    pub(crate) fn promoted(&self, me: NodeId, generation: u64, open: bool, ran: bool) -> Verdict {
        // Behind a closed gate it may be too late already: nothing leaves then.
        let at = if open {
            self.history.len().checked_sub(1)
        } else {
            self.history
                .iter()
                .rposition(|record| (record.generation, record.releaser) == (generation, me))
        };
        let of = |at: Option<usize>| at.and_then(|at| self.history.get(at).copied());
        let now = of(at);
        let before = of(at.and_then(|at| at.checked_sub(1)));
        demand(
            now.is_some_and(|now| now.releaser == me && (now.standby.is_none() || !open)),
            Invariant::OneReleaser,
            || format!("{me} is promoted under {now:?}"),
        )?;
        let eligible =
            before.is_some_and(|before| before.standby == Some(me) || ran && before.releaser == me);
        demand(eligible, Invariant::EligibleStandby, || {
            format!("{me} is promoted, after {before:?}")
        })
    }
}

/// What is true of the hosts when the record changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hosts {
    /// Who asked has never run a guest, and the standby that it strikes off holds one.
    pub(crate) forsakes: bool,
    /// Both hold the same epoch, and no guest runs; or one of them has died.
    pub(crate) same_epoch: bool,
}
