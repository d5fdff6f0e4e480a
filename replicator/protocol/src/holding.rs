//! Running the guest (or its end) with the output held, until a right is clear.

use crate::bug::Bug;
use crate::context::{Context, Right};
use crate::event::{Action, Command, End, Message, Refusal, Report, Status};
use crate::record::{Answer, Record, Request};
use crate::solo::Solo;
use crate::state::{Event, State};
use crate::syncing::Syncing;
use crate::time::Time;

/// What the arbiter's record means to a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The right to release alone, under this generation.
    Solo(u64),
    /// The standby is still named: it may promote at any moment.
    Named,
    /// There is no record: nothing can be concluded.
    Unclear,
    /// Somebody else has the right.
    Gone,
}

/// Reads the record as the primary of `generation`.
pub(crate) fn judge(cx: &Context, generation: u64, record: Option<Record>) -> Verdict {
    let me = cx.config.node;
    let Some(record) = record else {
        if cx.config.has(Bug::VanishedIsSolo) {
            return Verdict::Solo(generation + 1);
        }
        return Verdict::Unclear;
    };
    // Only this twin writes a record that names it releaser of the next generation, so it
    // is one whose answer was lost. This generation's own is no right to release if a swap
    // that names the standby may still be on its way to the arbiter.
    if record == Record::solo(generation, me) || record == Record::solo(generation + 1, me) {
        Verdict::Solo(record.generation)
    } else if record == Record::protected(generation, me, cx.config.peer) {
        Verdict::Named
    } else {
        Verdict::Gone
    }
}

/// Asks for the solo right of the next generation in place of this one's.
pub(crate) fn renew(cx: &mut Context, right: Right) -> Record {
    let me = cx.config.node;
    let new = Record::solo(right.generation + 1, me);
    cx.ask(Request::Swap {
        expected: Some(Record::solo(right.generation, me)),
        new,
    });
    new
}

/// Output is held: either the arbiter is being asked for the solo right, or there is no
/// arbiter and only the peer's return helps.
#[derive(Debug)]
pub(crate) struct Holding {
    right: Right,
    /// The record asked for, if the question under way is a swap.
    asked: Option<Record>,
    /// The guest has ended; its output is given up at this time.
    leave_by: Option<Time>,
}

impl Holding {
    /// Strikes the standby off, which takes the next generation (I2, I4).
    pub(crate) fn striking(cx: &mut Context, right: Right, leave_by: Option<Time>) -> State {
        let Context { config, .. } = cx;
        let named = Record::protected(right.generation, config.node, config.peer);
        let reused = config.has(Bug::ReuseGeneration);
        let new = Record::solo(right.generation + u64::from(!reused), config.node);
        cx.ask(Request::Swap {
            expected: Some(named),
            new,
        });
        Self::asked(right, Some(new), leave_by)
    }

    /// The standby is not named, but a swap that names it may still be on its way. It is void
    /// once the generation has changed (I2, I4).
    fn renewing(cx: &mut Context, right: Right, leave_by: Option<Time>) -> State {
        let new = renew(cx, right);
        Self::asked(right, Some(new), leave_by)
    }

    /// A question that was asked before is still under way.
    pub(crate) fn asked(right: Right, asked: Option<Record>, leave_by: Option<Time>) -> State {
        State::Holding(Self {
            right,
            asked,
            leave_by,
        })
    }

    /// No arbiter: the peer may be promoted by its operator, so nothing is released until
    /// it is back.
    pub(crate) fn for_peer(cx: &mut Context, right: Right) -> State {
        cx.report(Report::Holding);
        if let Some(Status::Cold | Status::Synced { .. }) = cx.link.peer() {
            // It is back, but not with what it held.
            return Syncing::begin(cx, right, true);
        }
        Self::asked(right, None, None)
    }

    /// No arbiter, and the guest has ended: its last words leave when the peer has too.
    pub(crate) fn exited(cx: &mut Context, right: Right) -> State {
        cx.send(Message::Bye, 0);
        let deadline = cx.now + cx.config.leave;
        Self::asked(right, None, Some(deadline))
    }

    pub(crate) fn waits_for_peer(&self, cx: &Context) -> bool {
        !cx.config.arbiter && self.leave_by.is_none()
    }

    /// Without an arbiter: the operator vouches that the standby is dead.
    pub(crate) fn promote_by_hand(self, cx: &mut Context) -> State {
        if cx.config.arbiter {
            cx.refuse(Command::Promote, Refusal::ArbiterDecides);
            return State::Holding(self);
        }
        let generation = self.right.generation + 1;
        cx.note(Record::solo(generation, cx.config.node));
        self.release(cx, generation)
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.leave_by
    }

    pub(crate) fn step(mut self, cx: &mut Context, event: Event) -> State {
        match event {
            Event::Answer(answer) => return self.answered(cx, answer),
            Event::Retry => {
                self.asked = None;
                cx.ask(Request::Read);
            }
            // T17.
            Event::Peer(Status::Cold | Status::Synced { .. }) if self.waits_for_peer(cx) => {
                return Syncing::begin(cx, self.right, true);
            }
            // Without an arbiter: the operator has promoted the peer.
            Event::Peer(Status::Primary) if cx.link.peer_generation() > self.right.generation => {
                return cx.fence();
            }
            Event::Message(envelope)
                if envelope.message == Message::Bye
                    && self.leave_by.is_some()
                    && !cx.config.arbiter =>
            {
                return Self::last_words(cx);
            }
            Event::GuestExited if self.leave_by.is_none() => {
                self.leave_by = Some(cx.now + cx.config.leave);
            }
            Event::Tick if self.leave_by.is_some_and(|at| at <= cx.now) => {
                cx.act(Action::Fence);
                cx.send(Message::Bye, 0);
                return cx.end(End::GuestExited);
            }
            _ => {}
        }
        State::Holding(self)
    }

    fn answered(self, cx: &mut Context, answer: Answer) -> State {
        let record = match (answer, self.asked) {
            (Answer::Won, Some(new)) => Some(new),
            (Answer::Failed, Some(new)) if cx.config.has(Bug::StrikeFailedIsWon) => Some(new),
            (Answer::Record(record) | Answer::Lost(record), _) => record,
            (Answer::Won, None) | (Answer::Failed, _) => {
                cx.back_off();
                if cx.config.has(Bug::StopsAsking) {
                    cx.retry_at = None;
                }
                return State::Holding(self);
            }
        };
        let generation = self.right.generation;
        match judge(cx, generation, record) {
            Verdict::Solo(now) if now > generation => self.release(cx, now),
            Verdict::Solo(now) if cx.config.has(Bug::SoloUnderLateNaming) => self.release(cx, now),
            Verdict::Solo(_) | Verdict::Named if self.refused(answer) => {
                cx.back_off();
                State::Holding(self)
            }
            Verdict::Solo(_) => Self::renewing(cx, self.right, self.leave_by),
            Verdict::Named => Self::striking(cx, self.right, self.leave_by),
            Verdict::Unclear => {
                cx.back_off();
                State::Holding(self)
            }
            Verdict::Gone if cx.config.has(Bug::LoserReleases) => self.release(cx, generation),
            // T15.
            Verdict::Gone => cx.fence(),
        }
    }

    /// The swap for the next generation was refused, though it is still this one: the record
    /// is read again, after a pause.
    fn refused(&self, answer: Answer) -> bool {
        matches!(answer, Answer::Lost(_)) && self.asked.is_some_and(|new| new.standby.is_none())
    }

    /// The right to release alone is had (T16, T35).
    fn release(self, cx: &mut Context, generation: u64) -> State {
        if self.leave_by.is_some() {
            return Self::last_words(cx);
        }
        cx.act(Action::OpenOutput);
        Solo::enter(cx, Right::new(generation))
    }

    fn last_words(cx: &mut Context) -> State {
        cx.act(Action::OpenOutput);
        cx.send(Message::Bye, 0);
        cx.end(End::GuestExited)
    }
}
