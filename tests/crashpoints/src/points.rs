//! Where a twin is killed, and how it is brought there.

use std::fmt;

use Cause::{BothStart, Filling, FirstStart, Load, PeerKilled, StartAlone, Switchover};
use Then::{GoesOn, Restarts};

/// What leads a twin to a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The VM's first start. Only the node with the lower name claims it.
    FirstStart,
    /// The start of a twin that went on alone before.
    StartAlone,
    /// The start of both twins of a protected pair.
    BothStart,
    /// A standby is started beside a primary.
    Filling,
    /// A client's requests.
    Load,
    /// The death of the other twin.
    PeerKilled,
    /// An exchange of roles.
    Switchover,
}

/// What the twin is when it comes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It runs the guest, or is about to, or is about to give it away.
    Primary,
    /// It follows, or takes over.
    Standby,
}

/// What becomes of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// It goes on with the other twin, on the same connections.
    GoesOn,
    /// No twin has it any more: it boots anew from its disk.
    Restarts,
}

/// A point, and a way there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    /// Its name.
    pub name: &'static str,
    /// Its row in PROTOCOL.md's section 8.
    pub row: &'static str,
    /// The way.
    pub cause: Cause,
    /// Who dies.
    pub role: Role,
    /// How often it may be passed before, at most.
    pub passes: u32,
    /// What becomes of the guest.
    pub then: Then,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FirstStart => "first-start",
            StartAlone => "start-alone",
            BothStart => "both-start",
            Filling => "filling",
            Load => "load",
            PeerKilled => "peer-killed",
            Switchover => "switchover",
        })
    }
}

const fn primary(
    row: &'static str,
    name: &'static str,
    cause: Cause,
    passes: u32,
    then: Then,
) -> Point {
    Point {
        name,
        row,
        cause,
        role: Role::Primary,
        passes,
        then,
    }
}

const fn standby(
    row: &'static str,
    name: &'static str,
    cause: Cause,
    passes: u32,
    then: Then,
) -> Point {
    Point {
        role: Role::Standby,
        ..primary(row, name, cause, passes, then)
    }
}

/// All of them.
pub(crate) const POINTS: &[Point] = &[
    primary("C1", "claim::asked", FirstStart, 0, Restarts),
    primary("C2", "claim::written", FirstStart, 0, Restarts),
    primary("C1", "claim::asked", StartAlone, 0, Restarts),
    primary("C2", "claim::written", StartAlone, 0, Restarts),
    primary("C2", "boot::after", StartAlone, 0, Restarts),
    primary("C1", "strike::asked", BothStart, 0, Restarts),
    primary("C2", "strike::written", BothStart, 0, Restarts),
    primary("C3", "sync::begun", Filling, 0, Restarts),
    primary("C3", "sync::disks", Filling, 1, Restarts),
    primary("C3", "sync::memory", Filling, 200, Restarts),
    primary("C3", "sync::round", Filling, 0, Restarts),
    primary("C4", "epoch::captured", Filling, 0, Restarts),
    primary("C4", "epoch::half_shipped", Filling, 0, Restarts),
    primary("C4", "epoch::shipped", Filling, 0, Restarts),
    primary("C4", "point::told", Filling, 0, Restarts),
    primary("C4", "epoch::committed", Filling, 0, Restarts),
    primary("C5", "naming::asked", Filling, 0, Restarts),
    primary("C5", "naming::written", Filling, 0, GoesOn),
    primary("C5", "naming::told", Filling, 0, GoesOn),
    standby("C8", "fill::cleared", Filling, 0, GoesOn),
    standby("C8", "fill::disks", Filling, 1, GoesOn),
    standby("C8", "fill::memory", Filling, 200, GoesOn),
    standby("C8", "epoch::received", Filling, 0, GoesOn),
    standby("C8", "epoch::acked", Filling, 0, GoesOn),
    standby("C9", "epoch::half_applied", Filling, 0, GoesOn),
    standby("C8", "standby::ready", Filling, 0, GoesOn),
    standby("C8", "point::reached", Filling, 0, GoesOn),
    primary("C6", "epoch::captured", Load, 20, GoesOn),
    primary("C6", "epoch::half_shipped", Load, 20, GoesOn),
    primary("C6", "epoch::shipped", Load, 20, GoesOn),
    primary("C7", "epoch::committed", Load, 20, GoesOn),
    primary("C7", "epoch::released", Load, 20, GoesOn),
    standby("C8", "epoch::received", Load, 20, GoesOn),
    standby("C8", "epoch::acked", Load, 20, GoesOn),
    standby("C9", "epoch::half_applied", Load, 20, GoesOn),
    standby("C9", "epoch::half_written", Load, 20, GoesOn),
    standby("C9", "epoch::applied", Load, 20, GoesOn),
    primary("C8", "link::lost", PeerKilled, 0, Restarts),
    primary("C8", "strike::asked", PeerKilled, 0, Restarts),
    primary("C8", "strike::written", PeerKilled, 0, Restarts),
    primary("C8", "output::opened", PeerKilled, 0, Restarts),
    standby("C10", "link::lost", PeerKilled, 0, Restarts),
    standby("C10", "promotion::asked", PeerKilled, 0, Restarts),
    standby("C10", "promotion::written", PeerKilled, 0, Restarts),
    standby("C11", "promote::before", PeerKilled, 0, Restarts),
    standby("C11", "promote::after", PeerKilled, 0, Restarts),
    primary("C12", "handover::captured", Switchover, 0, GoesOn),
    primary("C13", "handover::offered", Switchover, 0, GoesOn),
    standby("C14", "exchange::asked", Switchover, 0, GoesOn),
    standby("C15", "exchange::written", Switchover, 0, GoesOn),
    standby("C15", "promote::before", Switchover, 0, GoesOn),
    standby("C15", "promote::after", Switchover, 0, GoesOn),
    standby("C15", "handover::took_over", Switchover, 0, GoesOn),
    primary("C8", "standby::ready", Switchover, 0, GoesOn),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::POINTS;

    #[test]
    fn every_row_of_the_protocol_has_a_point() {
        let rows: BTreeSet<&str> = POINTS.iter().map(|point| point.row).collect();
        let protocol = include_str!("../../../replicator/PROTOCOL.md");
        let section = protocol.split("\n## ").find(|part| part.starts_with("8. "));
        let written: BTreeSet<&str> = section
            .unwrap()
            .lines()
            .filter_map(|line| line.strip_prefix("| C").map(|_| &line[2..]))
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert!(written.len() >= 15, "{written:?}");
        assert_eq!(rows, written);
    }

    #[test]
    fn every_point_is_in_the_protocol() {
        let protocol = include_str!("../../../replicator/PROTOCOL.md");
        for point in POINTS {
            let name = format!("`{}`", point.name);
            assert!(protocol.contains(&name), "{name} is not in PROTOCOL.md");
        }
    }
}
