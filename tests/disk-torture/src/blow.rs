//! What is done to a pair.

use std::fmt;
use std::time::Duration;

use evertwin::lab::topology::Node;
use fastrand::Rng;

use crate::error::TortureError;
use crate::site::{SILENCE, Site};

/// Something that is done to a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    /// The primary is killed.
    KillPrimary,
    /// The standby is killed.
    KillStandby,
    /// Both are killed at once or one soon after the other.
    KillBoth,
    /// The primary is frozen until the other has taken over, and thaws.
    FreezePrimary,
    /// The standby is frozen until it was given up, and thaws.
    FreezeStandby,
    /// The replication link is cut, perhaps for longer than a silence may last.
    CutLink,
    /// The twins exchange their roles.
    Switchover,
    /// The primary hands the guest over and ends.
    PrimaryLeaves,
    /// The standby ends.
    StandbyLeaves,
}

/// What is done to a protected pair, the more frequent more than once.
const FIRST: [Blow; 13] = [
    Blow::KillPrimary,
    Blow::KillPrimary,
    Blow::KillPrimary,
    Blow::KillStandby,
    Blow::KillStandby,
    Blow::KillBoth,
    Blow::FreezePrimary,
    Blow::FreezeStandby,
    Blow::CutLink,
    Blow::CutLink,
    Blow::Switchover,
    Blow::PrimaryLeaves,
    Blow::StandbyLeaves,
];

/// What is done while a standby is filled.
const SECOND: [Blow; 8] = [
    Blow::KillPrimary,
    Blow::KillStandby,
    Blow::KillStandby,
    Blow::KillStandby,
    Blow::KillBoth,
    Blow::FreezePrimary,
    Blow::FreezeStandby,
    Blow::CutLink,
];

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KillPrimary => "kill-primary",
            Self::KillStandby => "kill-standby",
            Self::KillBoth => "kill-both",
            Self::FreezePrimary => "freeze-primary",
            Self::FreezeStandby => "freeze-standby",
            Self::CutLink => "cut-link",
            Self::Switchover => "switchover",
            Self::PrimaryLeaves => "primary-leaves",
            Self::StandbyLeaves => "standby-leaves",
        })
    }
}

impl Blow {
    /// One for a protected pair.
    pub(crate) fn first(random: &mut Rng) -> Self {
        random.choice(FIRST).unwrap_or(Self::KillPrimary)
    }

    /// One for a pair whose standby is being filled.
    pub(crate) fn second(random: &mut Rng) -> Self {
        random.choice(SECOND).unwrap_or(Self::KillStandby)
    }

    /// Does it.
    pub(crate) fn strike(
        self,
        site: &mut Site,
        primary: Node,
        random: &mut Rng,
    ) -> Result<(), TortureError> {
        let standby = primary.peer();
        match self {
            Self::KillPrimary => site.kill(primary),
            Self::KillStandby => site.kill(standby),
            Self::KillBoth => {
                let mut both = [primary, standby];
                random.shuffle(&mut both);
                site.kill(both[0]);
                if random.bool() {
                    std::thread::sleep(up_to(random, Duration::from_millis(100)));
                }
                site.kill(both[1]);
            }
            Self::FreezePrimary => site.freeze(primary, SILENCE + up_to(random, SILENCE / 2)),
            Self::FreezeStandby => site.freeze(standby, SILENCE + up_to(random, SILENCE / 2)),
            Self::CutLink => site.cut_link(up_to(random, SILENCE * 2))?,
            Self::Switchover => site.switch_over(primary)?,
            Self::PrimaryLeaves => site.leave(primary)?,
            Self::StandbyLeaves => site.leave(standby)?,
        }
        Ok(())
    }
}

/// A time that was left to chance.
pub(crate) fn up_to(random: &mut Rng, most: Duration) -> Duration {
    Duration::from_micros(random.u64(0..=most.as_micros() as u64))
}
