//! The states of a twin. A step consumes the old state and gives the new one.

use crate::context::Context;
use crate::event::{CloseReason, Command, End, Envelope, Message, Role, Status};
use crate::handover::HandingOver;
use crate::holding::Holding;
use crate::interrupted::Interrupted;
use crate::lapsing::Lapsing;
use crate::operator::operate;
use crate::protected::Protected;
use crate::record::Answer;
use crate::solo::Solo;
use crate::standby::{Promoting, Standby};
use crate::starting::Starting;
use crate::syncing::Syncing;
use crate::takeover::TakingOver;
use crate::time::Time;

/// What a state is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Both sides have greeted: the peer is in this condition.
    Peer(Status),
    LinkLost(Loss),
    /// Anything but a hello, under the right generation.
    Message(Envelope),
    Answer(Answer),
    /// The pause after a failure of the arbiter is over.
    Retry,
    Tick,
    RoundSent,
    Harvested(u64),
    Captured {
        epoch: u64,
        idle: bool,
    },
    CaptureFailed,
    Dirty(bool),
    OutputWaiting,
    GuestExited,
    PeerDead,
    Operator(Command),
}

/// How a link was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// It ended, or what came over it had no place here.
    Broken,
    /// Bytes that came over it were harmed: the peer is alive.
    Faulty,
    /// Nothing came for the configured timeout, or the peer's host does not answer. The former may have been long ago, if this twin was
    /// frozen itself.
    Silent,
    /// A state of this twin has given it up.
    GivenUp,
}

impl From<CloseReason> for Loss {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::Silent | CloseReason::Unreachable => Self::Silent,
            CloseReason::StaleGeneration | CloseReason::OutOfPlace(_) => Self::Broken,
            CloseReason::TwoPrimaries(_)
            | CloseReason::NoCapture
            | CloseReason::NotTakenOver
            | CloseReason::PeerLeft => Self::GivenUp,
        }
    }
}

#[derive(Debug)]
pub(crate) enum State {
    Starting(Starting),
    Solo(Solo),
    Syncing(Syncing),
    Protected(Protected),
    Interrupted(Interrupted),
    Holding(Holding),
    HandingOver(HandingOver),
    Standby(Standby),
    Promoting(Promoting),
    TakingOver(TakingOver),
    Lapsing(Lapsing),
    Ended,
}

impl State {
    pub(crate) fn step(self, cx: &mut Context, event: Event) -> Self {
        if let Event::Operator(command) = event {
            return operate(cx, self, command);
        }
        match self {
            Self::Starting(state) => state.step(cx, event),
            Self::Solo(state) => state.step(cx, event),
            Self::Syncing(state) => state.step(cx, event),
            Self::Protected(state) => state.step(cx, event),
            Self::Interrupted(state) => state.step(cx, event),
            Self::Holding(state) => state.step(cx, event),
            Self::HandingOver(state) => state.step(cx, event),
            Self::Standby(state) => state.step(cx, event),
            Self::Promoting(state) => state.step(cx, event),
            Self::TakingOver(state) => state.step(cx, event),
            Self::Lapsing(state) => state.step(cx, event),
            Self::Ended => Self::Ended,
        }
    }

    /// What to say in a hello. None while a race is open: whatever was said now could be
    /// wrong by the time it is read.
    pub(crate) fn status(&self, cx: &Context) -> Option<Status> {
        match self {
            Self::Starting(state) => state.waits().then_some(Status::Cold),
            Self::Solo(state) => state.settled().then_some(Status::Primary),
            Self::Holding(state) => state.waits_for_peer(cx).then_some(Status::Primary),
            Self::Interrupted(_) => Some(Status::Primary),
            Self::HandingOver(state) => state.status(),
            Self::Standby(state) => state.status(cx),
            Self::Syncing(_)
            | Self::Protected(_)
            | Self::Promoting(_)
            | Self::TakingOver(_)
            | Self::Lapsing(_)
            | Self::Ended => None,
        }
    }

    /// Is a peer waited for whose link broke?
    pub(crate) fn misses_peer(&self, cx: &Context) -> bool {
        match self {
            Self::Interrupted(_) => !cx.link.is_up(),
            Self::Standby(state) => state.misses_primary(cx),
            _ => false,
        }
    }

    pub(crate) fn deadline(&self, cx: &Context) -> Option<Time> {
        match self {
            Self::Protected(state) => state.deadline(cx),
            Self::Interrupted(state) => Some(state.deadline()),
            Self::Standby(state) => state.deadline(cx),
            Self::Holding(state) => state.deadline(),
            Self::HandingOver(state) => state.deadline(),
            Self::Lapsing(state) => Some(state.deadline()),
            Self::Starting(_)
            | Self::Solo(_)
            | Self::Syncing(_)
            | Self::Promoting(_)
            | Self::TakingOver(_)
            | Self::Ended => None,
        }
    }

    pub(crate) fn role(&self) -> Role {
        match self {
            Self::Starting(_) => Role::Starting,
            Self::Solo(_) => Role::Solo,
            Self::Syncing(_) => Role::Syncing,
            Self::Protected(state) => state.role(),
            Self::Interrupted(_) => Role::Interrupted,
            Self::Holding(_) => Role::Holding,
            Self::HandingOver(state) => state.role(),
            Self::Standby(state) => state.role(),
            Self::Promoting(_) | Self::TakingOver(_) => Role::Promoting,
            Self::Lapsing(_) => Role::Lapsing,
            Self::Ended => Role::Ended,
        }
    }

    /// Gives the guest all its time again, if something of it was taken.
    pub(crate) fn full_speed(&self, cx: &mut Context) {
        if let Self::Syncing(state) = self {
            state.full_speed(cx);
        }
    }

    /// Does a guest run here, or did until it was fenced?
    pub(crate) fn runs_guest(&self) -> bool {
        matches!(
            self,
            Self::Solo(_)
                | Self::Syncing(_)
                | Self::Protected(_)
                | Self::Interrupted(_)
                | Self::Holding(_)
        )
    }
}

/// A message that a state has no use for.
pub(crate) fn out_of_place(cx: &mut Context, message: Message) {
    if !matches!(message, Message::Heartbeat) {
        cx.close(CloseReason::OutOfPlace(message));
    }
}

/// The primary says that its guest has ended: nothing is left to stand by for.
pub(crate) fn peer_guest_ended(cx: &mut Context) -> State {
    cx.send(Message::Bye, 0);
    cx.end(End::PeerGuestExited)
}
