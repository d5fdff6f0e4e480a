//! Independent checkers, one file for each question.
//!
//! They see what the world outside sees: output as it leaves, the arbiter's record as it
//! changes, messages as they arrive, and what machines are told to do. None of them looks
//! into the core.

mod clients;
mod commits;
mod copies;
mod liveness;
mod rights;
mod speed;

use std::fmt;

pub(crate) use clients::Clients;
pub(crate) use commits::Commits;
pub(crate) use copies::check_copy;
pub(crate) use liveness::Liveness;
pub(crate) use rights::{Hosts, Rights};
pub(crate) use speed::check_speed;

/// What was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariant {
    /// I1: output leaves before its epoch has committed.
    OutputCommit,
    /// I2: two have the right to release.
    OneReleaser,
    /// Guests of which only the disks are replicated run on both hosts.
    OneGuest,
    /// I3: what is promoted is not one committed epoch.
    WholeEpochs,
    /// I4: a standby is named, gated or promoted that should not be.
    EligibleStandby,
    /// I5: pages are missing in an epoch.
    NoDirtyBitLost,
    /// I8: the guest's time steps back.
    GuestTime,
    /// I10: a disk is not what its guest's memory believes.
    Disks,
    /// A guest is slower than it need be.
    GuestSpeed,
    /// Something grows, or spins, without bound.
    Bounds,
    /// All is well again, but the pair is not protected.
    Liveness,
    /// The core panicked.
    Panic,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutputCommit => "I1 output commit",
            Self::OneReleaser => "I2 one releaser",
            Self::OneGuest => "one guest",
            Self::WholeEpochs => "I3 whole epochs",
            Self::EligibleStandby => "I4 eligible standby",
            Self::NoDirtyBitLost => "I5 no dirty bit is lost",
            Self::GuestTime => "I8 guest time",
            Self::Disks => "I10 disks",
            Self::GuestSpeed => "guest speed",
            Self::Bounds => "bounds",
            Self::Liveness => "liveness",
            Self::Panic => "panic",
        })
    }
}

/// An invariant was broken, in this way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// How.
    pub what: String,
    /// When, in simulated microseconds.
    pub at_us: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            invariant,
            what,
            at_us,
        } = self;
        let (ms, us) = (at_us / 1000, at_us % 1000);
        write!(f, "{invariant}: {what} (at {ms}.{us:03} ms)")
    }
}

/// A checker's answer.
pub(crate) type Verdict = Result<(), (Invariant, String)>;

/// Fails unless `holds`.
pub(crate) fn demand(holds: bool, invariant: Invariant, what: impl FnOnce() -> String) -> Verdict {
    if holds {
        Ok(())
    } else {
        Err((invariant, what()))
    }
}
