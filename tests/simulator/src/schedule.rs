//! A schedule: everything that goes wrong in one run, and when.
//!
//! It is a plain list, so that a failing one can be written down, read by people, and made
//! shorter by leaving out what does not matter.

use serde::{Deserialize, Serialize};

/// One run of the simulator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// What the schedule was made from; also the source of all delays within the run.
    pub seed: u64,
    /// Is there an arbiter?
    pub arbiter: bool,
    /// Are only the disks replicated?
    #[serde(default)]
    pub ha: bool,
    /// Epochs that may be in flight.
    pub window: u64,
    /// How long a twin waits for its peer to be back after its link broke.
    #[serde(default)]
    pub reconnect_us: u64,
    /// Length of a busy guest's epoch.
    pub epoch_us: u64,
    /// Time between two things that the guest does, at most.
    pub step_us: u64,
    /// When the second twin starts.
    pub second_us: u64,
    /// The end of the faults: everything heals.
    pub heal_us: u64,
    /// Does the primary's host lose its power when the pair is protected again?
    pub last_blow: bool,
    /// What goes wrong, in any order.
    pub faults: Vec<Fault>,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When.
    pub at_us: u64,
    /// What.
    pub what: What,
}

/// What can go wrong. Hosts are 0 (listens, has the lower name) and 1 (dials).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum What {
    /// A twin dies before its next action but `after`; after 30 ms and one for each of these
    /// actions at the latest.
    Crash {
        /// Which host.
        host: usize,
        /// Actions of the core that are still done.
        after: u64,
        /// The host loses its power: its peer sees no end of the connection, and what no flush
        /// has covered may be missing on its disk.
        power: bool,
        /// What was queued for sending is lost.
        silently: bool,
        /// The twin is started again after this time, or when all heals.
        back_us: Option<u64>,
    },
    /// A process stands still.
    Pause {
        /// Which host.
        host: usize,
        /// For how long.
        for_us: u64,
        /// The guest stands still, too.
        guest: bool,
    },
    /// The connection ends, and both sides are told, each in its time.
    Cut,
    /// One host loses the connection, the other is not told.
    HalfCut {
        /// The host that is told.
        host: usize,
    },
    /// Nothing from one host arrives at the other.
    Silence {
        /// The host that is not heard.
        from: usize,
        /// For how long.
        for_us: u64,
        /// What is sent meanwhile is lost, and with it all that follows on the connection;
        /// otherwise it comes late.
        lost: bool,
    },
    /// A twin takes its peer's host for gone, rightly or not.
    Suspicion {
        /// Which twin's host.
        host: usize,
    },
    /// All connections end, and there are no new ones.
    Partition {
        /// For how long.
        for_us: u64,
    },
    /// Everything from one host takes longer.
    Slow {
        /// The host whose messages are late.
        from: usize,
        /// For how long.
        for_us: u64,
        /// By how much.
        by_us: u64,
    },
    /// The next message to this host arrives damaged.
    Damage {
        /// Which host.
        to: usize,
    },
    /// A sender's mistake: the next epoch is left out.
    LoseEpoch {
        /// Which host.
        from: usize,
    },
    /// A message of an older generation arrives.
    Stale {
        /// At which host.
        to: usize,
    },
    /// The arbiter is in trouble, as one host sees it.
    Arbiter {
        /// Which host.
        host: usize,
        /// For how long.
        for_us: u64,
        /// In which way.
        trouble: Trouble,
    },
    /// Captures fail.
    CaptureFails {
        /// Which host.
        host: usize,
        /// How many in a row.
        times: u64,
    },
    /// The next harvest or start of tracking fails.
    TrackingFails {
        /// Which host.
        host: usize,
    },
    /// The guest ends by itself, if it runs here.
    GuestExits {
        /// Which host.
        host: usize,
    },
    /// The operator does something.
    Operator {
        /// At which host.
        host: usize,
        /// What.
        command: Command,
    },
}

/// How the arbiter fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Trouble {
    /// Questions never reach it.
    LosesQuestions,
    /// It acts, but its answers are lost.
    LosesAnswers,
    /// It acts so much later that who asked has been told of a failure.
    ActsLate {
        /// How much later.
        by_us: u64,
    },
    /// It acts and answers, but late.
    Slow {
        /// How long a question takes.
        by_us: u64,
    },
    /// Its record seems to have vanished; swaps are refused.
    Blank,
}

/// What an operator can ask of a twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Stop this twin at once.
    Stop,
    /// Exchange the roles.
    Switchover,
    /// Promote this twin by hand; only ever asked where the peer is dead.
    Promote,
    /// End this twin without harm to the guest.
    Leave,
}
