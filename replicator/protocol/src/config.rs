//! Settings of the protocol core.

use std::time::Duration;

use crate::bug::Bug;
use crate::node::NodeId;
use crate::record::Record;

/// How one twin behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// This twin.
    pub node: NodeId,
    /// The other twin.
    pub peer: NodeId,
    /// Is there an arbiter? Without one nothing is ever promoted by itself.
    pub arbiter: bool,
    /// Without an arbiter: the record that this host noted last, by [`Action::Note`].
    ///
    /// [`Action::Note`]: crate::Action::Note
    pub noted: Option<Record>,
    /// Only the guest's disks are replicated, and a standby boots it: a primary's guest may run for
    /// this time on an acknowledgement. Both twins must have the same. None: all of the guest is
    /// replicated, and its output gated.
    pub lease: Option<Duration>,
    /// Longest epoch while the guest is busy.
    pub epoch: Duration,
    /// Longest time between looks at an idle guest.
    pub idle: Duration,
    /// Longest silence of our own on a link.
    pub heartbeat: Duration,
    /// Silence of the peer after which it counts as dead.
    pub timeout: Duration,
    /// How long a named standby, or its primary, may be back after its link broke, before the
    /// arbiter is asked. Zero: it is asked at once.
    pub reconnect: Duration,
    /// Epochs captured but not yet acknowledged, at most. At least 1.
    pub window: u64,
    /// Pause before the arbiter is asked again after a failure.
    pub retry: Duration,
    /// A sync round that finds at most this many dirty pages is the last one.
    pub last_round_pages: u64,
    /// The most sync rounds before the first epoch carries what is left.
    pub rounds: u32,
    /// Pages that the link takes in this time are left to the first epoch when rounds do not
    /// shrink any more; for the sake of more the guest is slowed.
    pub first_epoch: Duration,
    /// How long an ended guest's last output may wait for the right to be released.
    pub leave: Duration,
    /// Breaks the core on purpose.
    #[cfg(feature = "seeded-bugs")]
    pub bug: Option<Bug>,
}

impl Config {
    /// The usual settings for a pair of twins.
    pub fn new(node: NodeId, peer: NodeId, arbiter: bool) -> Self {
        Self {
            node,
            peer,
            arbiter,
            noted: None,
            lease: None,
            epoch: Duration::from_millis(20),
            idle: Duration::from_millis(100),
            heartbeat: Duration::from_millis(50),
            timeout: Duration::from_millis(500),
            reconnect: Duration::ZERO,
            window: 2,
            retry: Duration::from_millis(100),
            last_round_pages: 1024,
            rounds: 32,
            first_epoch: Duration::from_millis(100),
            leave: Duration::from_secs(2),
            #[cfg(feature = "seeded-bugs")]
            bug: None,
        }
    }

    /// The longest epoch. One that carries disk writes only ends as soon as a write waits for it,
    /// and a lease is extended in time even if nothing is written.
    pub(crate) fn longest_epoch(&self) -> Duration {
        self.lease.map_or(self.epoch, |lease| lease / 4)
    }

    /// Is the core broken in this way?
    #[cfg(feature = "seeded-bugs")]
    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// The core is not broken on purpose.
    #[cfg(not(feature = "seeded-bugs"))]
    pub(crate) const fn has(&self, _: Bug) -> bool {
        false
    }
}
