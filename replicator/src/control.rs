//! What an operator asks of a running twin, and what it says of itself.

mod growth;
mod level;
mod scrub;
mod uplink;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

pub use evertwin_protocol::Command;
use evertwin_protocol::Refusal;
use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};

use crate::machine::PAGE_SIZE;
pub use growth::NoGrowth;
pub use level::Level;
pub use scrub::{NoScrub, ScrubCounts, ScrubProgress, ScrubReport, ScrubStatus};
pub use uplink::{PeerUplinks, UplinkStatus};

/// What a twin is doing, as shown to an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwinStatus {
    /// This twin.
    pub node: String,
    /// The other one.
    pub peer: String,
    /// In one word: starting, solo, unprotected (solo, and no standby is wanted), syncing, protected, reconnecting, holding, handing-over, filling,
    /// standby, promoting, waiting-to-boot, disk-failed or ended.
    pub role: String,
    /// What is replicated: `ft`, all of the guest; `ha`, its disks; or `none`, nothing.
    #[serde(default = "all_of_it")]
    pub protection: String,
    /// Generation of the right that this twin has or follows; 0 while it knows of none.
    pub generation: u64,
    /// Address of the peer, while there is a link whose hello was checked.
    pub link: Option<String>,
    /// The newest epoch that both twins have, of this generation.
    pub epoch: u64,
    /// A primary's sync of its standby; at the standby what the primary has said of it, which one of protocol version 5 does not.
    pub sync: Option<SyncStatus>,
    /// Where only disks are replicated: who may run the guest, and for how long.
    #[serde(default)]
    pub lease: Option<LeaseStatus>,
    /// Why a disk of this standby can't be used. The twin tries it again.
    #[serde(default)]
    pub disk_failure: Option<String>,
    /// The same of the peer's, in its words.
    #[serde(default)]
    pub peer_disk_failure: Option<String>,
    /// The uplinks of this host that are watched.
    #[serde(default)]
    pub uplinks: Vec<UplinkStatus>,
    /// Those of the peer's host. None: it has not said.
    #[serde(default)]
    pub peer_uplinks: Option<PeerUplinks>,
    /// Why the peer wants no standby at present, in its words, if this twin would be one.
    #[serde(default)]
    pub kept_out: Option<String>,
    /// Comparisons of both twins' disks, if there was one.
    #[serde(default)]
    pub scrub: Option<ScrubStatus>,
}

/// What releases replicated that say nothing of it.
fn all_of_it() -> String {
    "ft".to_owned()
}

/// The lease on which a guest runs whose disks only are replicated (PROTOCOL.md §12.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// The twin whose guest may run, as far as this one knows.
    pub holder: String,
    /// How long it may on its standby's last word, in milliseconds.
    pub length_ms: u64,
    /// What is left of it, in milliseconds; 0: the guest is stopped. At a twin that waits for the other's lease to run out, time until then.
    /// None: the guest runs without one, since no standby could take over, or this twin is the standby, which can't know.
    pub left_ms: Option<u64>,
}

/// How far a sync has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncStatus {
    /// Pages looked at in this round.
    pub pages: u64,
    /// Pages of this round.
    pub of: u64,
    /// Bytes of disks looked at, which come before the pages of the first round.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Bytes of disks that have to be.
    #[serde(default)]
    pub disk_of: u64,
    /// Bytes sent in this round; zeroes cost next to nothing.
    pub bytes: u64,
    /// Time to the round's end at the pace so far, in milliseconds. None before there is one.
    pub eta_ms: Option<u64>,
    /// What of the guest's time is taken from it until the standby has caught up, in percent.
    #[serde(default)]
    pub slowed_percent: u8,
}

impl SyncStatus {
    /// Bytes of disks and memory of this round.
    #[must_use]
    pub fn all_bytes(&self) -> u64 {
        self.of * PAGE_SIZE as u64 + self.disk_of
    }

    /// Those that were looked at.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        self.pages * PAGE_SIZE as u64 + self.disk_bytes
    }

    /// How much of the round is done.
    #[must_use]
    pub fn percent(&self) -> u64 {
        self.done_bytes() * 100 / self.all_bytes().max(1)
    }
}

/// Why a command was not obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// It can't be now.
    #[error("{}", reason(*.0))]
    Refused(Refusal),
    /// One of the twins speaks a version of the protocol without it.
    #[error(
        "one of the two releases can't exchange roles yet: upgrade the standby, and then stop the primary"
    )]
    PeerTooOld,
    /// The disks can't be compared.
    #[error(transparent)]
    NoScrub(#[from] NoScrub),
    /// The level of protection can't change while anybody relies on it.
    #[error(
        "the level changes while the guest runs alone here: have the standby leave first (`evertwin leave` on its host), or wait until no question is open"
    )]
    NotAlone,
    /// No level has such a lease.
    #[error("a lease is 200 ms to 60 s long")]
    BadLease,
    /// Another command is being obeyed.
    #[error("another command is under way: see `evertwin status`")]
    Busy,
    /// The peer did not take the guest over; it goes on here.
    #[error("the peer did not take over: the guest goes on here")]
    TakenBack,
    /// This twin lost the right in the meantime.
    #[error("the other twin has the right now: see its `evertwin status`")]
    Lost,
    /// The twin has ended.
    #[error("the twin has ended")]
    Ended,
    /// It takes longer than was to be waited for.
    #[error("the twin has not said how it ended: see `evertwin status`")]
    NoAnswer,
}

fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NotProtected => {
            "the guest is not protected: there is no standby that could take over"
        }
        Refusal::NotPrimary => "this twin is not the primary: ask the other one",
        Refusal::ArbiterDecides => {
            "the arbiter decides who runs the guest; nobody is promoted by hand beside it"
        }
        Refusal::PeerIsThere => "the peer is there: use `evertwin switchover` on the primary",
        Refusal::HasTheRight => "this twin is the primary already",
        Refusal::NothingHeld => "this twin holds no guest that could go on",
        Refusal::NoCapture => "the guest could not be stopped at an epoch's end: try again",
        Refusal::NotReplicated => {
            "an HA guest can't be handed over without a restart, since its memory is not replicated: stop this twin, and the other boots the guest"
        }
        Refusal::Busy => "something like it is under way: see `evertwin status`",
    }
}

/// What became of a command: the generation in force, or why not.
pub type Outcome = Result<u64, NotDone>;

pub(crate) enum Asked {
    Status(Sender<TwinStatus>),
    Command(Command, Sender<Outcome>),
    /// Whether memory as well.
    Scrub(bool, Sender<Result<u64, NoScrub>>),
    /// A disk's number, and its new size in bytes, if not its image's.
    Grow(u32, Option<u64>, Sender<Result<u64, NoGrowth>>),
    Level(Level, Sender<Outcome>),
}

/// The operator's end. Can be cloned and used from any thread.
#[derive(Clone)]
pub struct Controller {
    asked: Sender<Asked>,
    waiting: Arc<OwnedFd>,
}

/// The twin's end, for [`Config::control`](crate::Config::control).
pub struct Control {
    asked: Receiver<Asked>,
    waiting: Arc<OwnedFd>,
}

/// The two ends of a twin's control.
///
/// # Errors
/// No descriptors left.
pub fn control() -> io::Result<(Controller, Control)> {
    let (sender, asked) = channel();
    let waiting = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let controller = Controller {
        asked: sender,
        waiting: Arc::clone(&waiting),
    };
    Ok((controller, Control { asked, waiting }))
}

impl Controller {
    /// What the twin is doing.
    ///
    /// # Errors
    /// The twin has ended, or is too busy to say within `patience`.
    pub fn status(&self, patience: Duration) -> Result<TwinStatus, NotDone> {
        self.ask(Asked::Status, patience)
    }

    /// Has a command obeyed, and waits until that is done.
    ///
    /// # Errors
    /// Why it was not.
    pub fn command(&self, command: Command, patience: Duration) -> Outcome {
        self.ask(|reply| Asked::Command(command, reply), patience)?
    }

    /// Has the primary compare both twins' disks, and with `memory` their memories. Gives the number of the pass that has begun, whose end is in the twin's
    /// [status](Self::status).
    ///
    /// # Errors
    /// Why none has.
    pub fn scrub(&self, memory: bool, patience: Duration) -> Result<u64, NotDone> {
        Ok(self.ask(|reply| Asked::Scrub(memory, reply), patience)??)
    }

    /// Has a disk grow under the guest: to so many bytes, to which images that are files are extended on both hosts, or to the size that its
    /// image has by now. Gives the new size in bytes, once the standby knows of it as well.
    ///
    /// # Errors
    /// The twin did not say; and why the disk has not grown.
    pub fn grow(
        &self,
        disk: u32,
        bytes: Option<u64>,
        patience: Duration,
    ) -> Result<Result<u64, NoGrowth>, NotDone> {
        self.ask(|reply| Asked::Grow(disk, bytes, reply), patience)
    }

    /// Has the guest protected at another level from the next sync on, or at none from now on.
    ///
    /// # Errors
    /// The guest does not run alone here.
    pub fn level(&self, level: Level, patience: Duration) -> Outcome {
        self.ask(|reply| Asked::Level(level, reply), patience)?
    }

    fn ask<T>(
        &self,
        asked: impl FnOnce(Sender<T>) -> Asked,
        patience: Duration,
    ) -> Result<T, NotDone> {
        let (reply, answer) = channel();
        self.asked.send(asked(reply)).map_err(|_| NotDone::Ended)?;
        // Can't fail: the counter is far from its end, the descriptor is ours.
        let _ = rustix::io::write(&*self.waiting, &1u64.to_ne_bytes());
        answer.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => NotDone::NoAnswer,
            RecvTimeoutError::Disconnected => NotDone::Ended,
        })
    }
}

impl Control {
    pub(crate) fn waiting(&self) -> RawFd {
        self.waiting.as_raw_fd()
    }

    pub(crate) fn next(&self) -> Option<Asked> {
        // What was asked may outlive its signal, never the other way round.
        let _ = rustix::io::read(&*self.waiting, &mut [0; 8]);
        self.asked.try_recv().ok()
    }
}
