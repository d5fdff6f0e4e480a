//! What goes into the core and what comes out of it.

use std::time::Duration;

use crate::record::{Answer, Record, Request};
use crate::time::Time;

/// What a twin says of itself when a link comes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing that could be run: no guest, no complete copy of one.
    Cold,
    /// A whole committed epoch of a guest that ran elsewhere.
    Synced {
        /// The last epoch committed.
        epoch: u64,
    },
    /// The guest runs here.
    Primary,
}

/// What twins say to each other. Page bytes travel beside these, never through the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// First message of a link in each direction.
    Hello(Status),
    /// Primary: a full sync starts, forget what you hold.
    SyncBegin,
    /// Primary: some pages of the sync. Only ever received by the core.
    SyncPages,
    /// Primary: an epoch, whole and verified. Only ever received by the core.
    Epoch,
    /// Standby: the epoch is held whole and verified.
    Ack,
    /// Primary: the arbiter's record names you.
    Named,
    /// Nothing else to say.
    Heartbeat,
    /// From a primary: the guest has ended, there is nothing to protect any more. From a
    /// standby: it leaves.
    Bye,
    /// Primary: its guest stands still since this epoch, which has committed: take over.
    HandOver,
    /// The former standby, under its own generation: the guest runs here now, gated on you.
    TookOver,
}

/// A message and the right under which it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The sender's generation.
    pub generation: u64,
    /// The epoch that an `Epoch`, an `Ack` or a `HandOver` speaks of; 0 in others.
    pub epoch: u64,
    /// What is said.
    pub message: Message,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The twin starts.
    Start,
    /// Time has passed. Early and needless ones do no harm.
    Tick,
    /// A connection to the peer is there.
    LinkUp,
    /// The connection is gone. What was received of an unfinished epoch is gone with it.
    LinkDown,
    /// The connection was dropped on this side, because of what came over it: the peer is
    /// alive, or was a moment ago.
    LinkFault,
    /// The peer's host does not answer any more. It may be a mistake: it counts as silence does, which this twin need not wait for.
    Unreachable,
    /// A part of something larger arrived whole and unharmed.
    Heard,
    /// The peer's message.
    Received(Envelope),
    /// The arbiter's answer to the last [`Action::Ask`].
    Arbiter(Answer),
    /// All pages of the sync round are on their way.
    RoundSent,
    /// Pages found dirty for [`Action::Harvest`].
    Harvested(u64),
    /// The epoch of [`Action::Capture`] is captured.
    Captured {
        /// Its number.
        epoch: u64,
        /// Nothing was dirty and nothing was written to a disk.
        idle: bool,
    },
    /// [`Action::Capture`] failed; all that was dirty still is (I5).
    CaptureFailed,
    /// Answer to [`Action::Peek`]: is anything dirty?
    Dirty(bool),
    /// Held output waits for the epoch's end.
    OutputWaiting,
    /// The guest ended by itself.
    GuestExited,
    /// The peer that is missed ([`Twin::misses_peer`]) is seen to be dead. It may be a mistake: nothing
    /// but the wait for it depends on it.
    ///
    /// [`Twin::misses_peer`]: crate::Twin::misses_peer
    PeerDead,
    /// The operator asks this twin to stop at once.
    Stop,
    /// The operator asks for something else; refused by [`Report::Refused`] if it can't be.
    Operator(Command),
}

/// What an operator may ask of a twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The twins exchange their roles; nothing is lost.
    Switchover,
    /// Without an arbiter: the operator vouches that the peer is dead, and this twin has the
    /// right from now on.
    Promote,
    /// This twin ends, without harm to the guest: a primary hands it over first.
    Leave,
}

/// Why a command is not obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is for a protected primary, and this twin is a primary without a standby that could
    /// take over.
    NotProtected,
    /// It is for the primary, and that is the other twin.
    NotPrimary,
    /// There is an arbiter: nobody else gives the right to run the guest (I2).
    ArbiterDecides,
    /// The primary is there and well: the roles are exchanged by a switchover.
    PeerIsThere,
    /// This twin has the right already.
    HasTheRight,
    /// There is no whole epoch here.
    NothingHeld,
    /// The guest's last epoch could not be captured.
    NoCapture,
    /// Something like it is under way.
    Busy,
    /// Nobody but this twin has the guest's memory.
    NotReplicated,
}

/// What to do, in this order, before the next input is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a message. One of control need not wait behind bulk data.
    Send(Envelope),
    /// Close the link; no [`Input::LinkDown`] follows.
    Close(CloseReason),
    /// Ask the arbiter; its answer comes as [`Input::Arbiter`].
    Ask(Request),
    /// Run the guest from its kernel.
    Boot,
    /// Hold all output from now on.
    HoldOutput,
    /// Emit what is held and let output pass.
    OpenOutput,
    /// Drop what is held: its guest goes on elsewhere, from an earlier epoch.
    DropOutput,
    /// Emit the output of all epochs up to this one.
    Release(u64),
    /// Start to track dirty pages and disk writes.
    StartTracking,
    /// Stop tracking; unsent and unacknowledged pages and epochs are of no use any more.
    StopTracking,
    /// Send every page, under this generation, then say [`Input::RoundSent`].
    SendMemory(u64),
    /// Harvest for a sync round, then say [`Input::Harvested`].
    Harvest,
    /// Send the harvest, under this generation, then say [`Input::RoundSent`].
    SendHarvest(u64),
    /// Make the harvest dirty again: the next capture carries it.
    KeepHarvest,
    /// Keep the guest from running for this share of the time, in percent, instead of what was
    /// said before. 0: it runs all the time, as it does unless it is said.
    SlowGuest(u8),
    /// The guest may run until then, and not speak any more after it, whatever keeps this twin from
    /// saying [`Action::StopGuest`]. None: for as long as it likes.
    Lease(Option<Time>),
    /// Stop the guest where it is: nothing of it may get out until it goes on.
    StopGuest,
    /// Let it go on where it was stopped.
    ContinueGuest,
    /// See if anything is dirty, and say [`Input::Dirty`].
    Peek,
    /// Capture the epoch with this number, then say [`Input::Captured`] or
    /// [`Input::CaptureFailed`].
    Capture(u64),
    /// The same, but the guest does not go on: the machine holds this epoch as a standby does,
    /// and [`Action::Promote`] goes on from it, here.
    CaptureLast(u64),
    /// Send a captured epoch.
    Ship {
        /// Under which right.
        generation: u64,
        /// Its number.
        epoch: u64,
    },
    /// A captured epoch is committed and its buffers are free.
    Committed(u64),
    /// Standby: expect a full sync under this generation; drop all that came before.
    Expect(u64),
    /// Standby: store the pages just received.
    Store,
    /// Standby: apply the epoch just received.
    Apply(u64),
    /// Run the guest from the last epoch applied.
    Promote,
    /// Stop the guest for good and discard its held output.
    Fence,
    /// Without an arbiter: make this record durable on this host, before what follows.
    Note(Record),
    /// Tell the operator.
    Report(Report),
    /// Leave, once what is queued was sent.
    End(End),
}

/// Why the core closes a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Nothing was heard for the configured timeout.
    Silent,
    /// Its host does not answer.
    Unreachable,
    /// A message of a right that is no longer in force.
    StaleGeneration,
    /// A message that has no place in this state.
    OutOfPlace(Message),
    /// Both twins say that they run the guest; the peer does so under this generation.
    TwoPrimaries(u64),
    /// Epochs can't be captured.
    NoCapture,
    /// The peer was asked to take over and did not, in the configured timeout.
    NotTakenOver,
    /// The peer was asked by its operator to leave.
    PeerLeft,
}

/// What an operator wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The guest was booted here, under this generation.
    GuestRunning(u64),
    /// The peer may hold what should run: nothing is booted before it was heard.
    WaitingForPeer(Option<Record>),
    /// A full sync of the peer starts.
    Syncing(u64),
    /// The peer is named standby and all output is gated on it.
    Protected(u64),
    /// Output is released alone.
    Solo(u64),
    /// Output is held until the arbiter or the peer is back.
    Holding,
    /// This twin holds the guest and may take over.
    StandbyReady(u64),
    /// The primary is gone, and without an arbiter nothing is promoted.
    NotPromoting,
    /// The primary is gone, and this twin may not take over: it waits.
    NotNamed,
    /// The primary is gone, and this twin may not take over yet: it asks again.
    NotNamedYet,
    /// The arbiter was asked for the right to run the guest.
    Promoting(u64),
    /// The guest runs here now, from the last committed epoch.
    Promoted(u64),
    /// The right is had: the guest runs here once any other has stopped, after this time.
    Lapsing(Duration),
    /// The guest was stopped where it is: another twin may have the right.
    Stopped,
    /// It goes on.
    Continued,
    /// Another twin has the right: the guest was stopped for good.
    Fenced,
    /// The arbiter did not answer; it will be asked again.
    ArbiterFailed,
    /// The link broke; the standby has a while to be back.
    Interrupted,
    /// The link is back, and the pair goes on where it was, under this generation.
    Resumed(u64),
    /// The guest stands still and is handed over to the peer.
    HandingOver(u64),
    /// The peer runs the guest now, under this generation; this twin is its standby.
    HandedOver(u64),
    /// The guest was not handed over and goes on here.
    TakenBack(u64),
    /// A command of the operator is not obeyed.
    Refused(Command, Refusal),
}

/// Why the twin leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest ended by itself here.
    GuestExited,
    /// The guest ended by itself in the peer.
    PeerGuestExited,
    /// Another twin has the right to run the guest.
    Fenced,
    /// The operator asked.
    Stopped,
    /// The operator asked, and the guest goes on in the peer.
    Left,
}

/// What a twin is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Finding out whether to boot.
    Starting,
    /// Running the guest and releasing its output alone.
    Solo,
    /// Running the guest, filling a standby.
    Syncing,
    /// Running the guest with its output gated, until the standby is named.
    Naming,
    /// Running the guest with its output gated on the standby.
    Protected,
    /// The same, but the link has just broken: output is held until it is back.
    Interrupted,
    /// Running the guest with its output held.
    Holding,
    /// Handing the guest over to the peer.
    HandingOver,
    /// Being filled.
    Filling,
    /// Holding a committed epoch.
    Synced,
    /// Asking for the right to run the guest.
    Promoting,
    /// Having the right to run the guest, and waiting until no other can run any more.
    Lapsing,
    /// Leaving or left.
    Ended,
}
