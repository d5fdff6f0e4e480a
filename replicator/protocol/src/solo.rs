//! Running the guest and releasing its output alone.

use crate::context::{Context, Right};
use crate::event::{Action, CloseReason, End, Message, Report, Status};
use crate::holding::{Verdict, judge};
use crate::record::{Answer, Request};
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
}

impl Solo {
    pub(crate) fn enter(cx: &mut Context, right: Right) -> State {
        cx.generation = right.generation;
        cx.report(Report::Solo(right.generation));
        let solo = Self {
            right,
            doubt: false,
        };
        match cx.link.peer() {
            Some(peer) => solo.meet(cx, peer),
            None => State::Solo(solo),
        }
    }

    pub(crate) fn settled(&self) -> bool {
        !self.doubt
    }

    pub(crate) fn step(self, cx: &mut Context, event: Event) -> State {
        match event {
            Event::Peer(peer) => self.meet(cx, peer),
            Event::Answer(answer) if self.doubt => self.judged(cx, answer),
            Event::Retry if self.doubt => {
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
            Status::Cold | Status::Synced { .. } => Syncing::begin(cx, self.right, false),
            Status::Primary => {
                cx.close(CloseReason::TwoPrimaries);
                if cx.config.arbiter {
                    self.doubt = true;
                    cx.act(Action::HoldOutput);
                    cx.ask(Request::Read);
                }
                State::Solo(self)
            }
        }
    }

    fn judged(mut self, cx: &mut Context, answer: Answer) -> State {
        let Answer::Record(record) = answer else {
            cx.back_off();
            return State::Solo(self);
        };
        match judge(cx, self.right.generation, record) {
            Verdict::Solo(generation) if generation == self.right.generation => {
                self.doubt = false;
                cx.act(Action::OpenOutput);
                State::Solo(self)
            }
            Verdict::Unclear => {
                cx.back_off();
                State::Solo(self)
            }
            Verdict::Solo(_) | Verdict::Named | Verdict::Gone => cx.fence(),
        }
    }
}
