//! Running the guest and releasing its output alone.

use crate::bug::Bug;
use crate::context::{Context, Right};
use crate::event::{Action, CloseReason, End, Message, Report, Status};
use crate::holding::{Verdict, judge, renew};
use crate::record::{Answer, Record, Request};
use crate::state::{Event, State, out_of_place};
use crate::syncing::Syncing;

/// The right to release alone is held: the arbiter's record names this twin and no standby
/// (I1, I2), or there is no arbiter and the guest was never protected.
#[derive(Debug)]
pub(crate) struct Solo {
    right: Right,
    /// The peer says that it runs the guest, too: output is held until the arbiter has said
    /// whose right it is.
    doubt: bool,
    /// The arbiter is asked for the next generation; no sync begins before it is had.
    renewing: bool,
}

impl Solo {
    pub(crate) fn enter(cx: &mut Context, right: Right) -> State {
        cx.generation = right.generation;
        cx.end_lease();
        cx.report(Report::Solo(right.generation));
        let solo = Self::has(right);
        match cx.link.peer() {
            Some(peer) => solo.meet(cx, peer),
            None => State::Solo(solo),
        }
    }

    /// A standby that was never named is gone. It may hold an epoch and ask to be promoted as
    /// soon as it is named in this generation, with a swap that may be long on its way. So the
    /// next sync has a generation of its own. The right to release is not in question.
    pub(crate) fn after_a_sync(cx: &mut Context, right: Right) -> State {
        let same = cx.config.has(Bug::SameGenerationSync);
        if !cx.config.arbiter || right.next_epoch == 1 || same {
            return Self::enter(cx, right);
        }
        cx.end_lease();
        cx.report(Report::Solo(right.generation));
        renew(cx, right);
        State::Solo(Self {
            renewing: true,
            ..Self::has(right)
        })
    }

    fn has(right: Right) -> Self {
        Self {
            right,
            doubt: false,
            renewing: false,
        }
    }

    /// No question is open.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.doubt && !self.renewing
    }

    pub(crate) fn settled(&self) -> bool {
        !self.doubt
    }

    pub(crate) fn step(self, cx: &mut Context, event: Event) -> State {
        match event {
            Event::Peer(peer) => self.meet(cx, peer),
            Event::Answer(answer) if self.doubt || self.renewing => self.judged(cx, answer),
            Event::Retry if self.doubt || self.renewing => {
                cx.ask(Request::Read);
                State::Solo(self)
            }
            Event::GuestExited => {
                cx.send(Message::Bye, 0);
                cx.end(End::GuestExited)
            }
            Event::Message(envelope) => {
                out_of_place(cx, envelope.message);
                State::Solo(self)
            }
            _ => State::Solo(self),
        }
    }

    fn meet(mut self, cx: &mut Context, peer: Status) -> State {
        match peer {
            // It has to wait.
            Status::Cold | Status::Synced { .. } if self.renewing => State::Solo(self),
            // T6.
            Status::Cold | Status::Synced { .. } => Syncing::begin(cx, self.right, false),
            // T7.
            Status::Primary => {
                let theirs = cx.link.peer_generation();
                cx.close(CloseReason::TwoPrimaries(theirs));
                // The operator has promoted the peer after this generation.
                if !cx.config.arbiter && theirs > self.right.generation {
                    return cx.fence();
                }
                if cx.config.arbiter && !self.doubt {
                    self.doubt = true;
                    cx.act(Action::HoldOutput);
                    cx.stop_guest();
                    // A question that is under way settles it as well.
                    if !self.renewing {
                        cx.ask(Request::Read);
                    }
                }
                State::Solo(self)
            }
        }
    }

    fn judged(mut self, cx: &mut Context, answer: Answer) -> State {
        let right = self.right;
        let record = match answer {
            Answer::Won if self.renewing => {
                Some(Record::solo(right.generation + 1, cx.config.node))
            }
            Answer::Record(record) => record,
            // Read again, after a pause: a swap that was refused leaves nothing to conclude.
            Answer::Won | Answer::Lost(_) | Answer::Failed => {
                cx.back_off();
                return State::Solo(self);
            }
        };
        match judge(cx, right.generation, record) {
            Verdict::Solo(generation) if generation == right.generation => {
                self.reassured(cx);
                if self.renewing {
                    renew(cx, right);
                }
                State::Solo(self)
            }
            Verdict::Solo(generation) if self.renewing => {
                self.reassured(cx);
                Self::enter(cx, Right::new(generation))
            }
            Verdict::Unclear => {
                cx.back_off();
                State::Solo(self)
            }
            Verdict::Solo(_) | Verdict::Named | Verdict::Gone => cx.fence(),
        }
    }

    fn reassured(&mut self, cx: &mut Context) {
        if std::mem::take(&mut self.doubt) {
            cx.act(Action::OpenOutput);
            cx.end_lease();
        }
    }
}
