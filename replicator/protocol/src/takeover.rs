//! A planned exchange of roles, as the standby sees it.

use crate::bug::Bug;
use crate::context::{Context, Right};
use crate::event::{Action, Report};
use crate::holding::Holding;
use crate::protected::Protected;
use crate::record::{Answer, Record, Request};
use crate::starting::Starting;
use crate::state::{Event, State, out_of_place};

/// The primary's guest stands still as the epoch that is held here, and its output has left.
/// The right is asked for in a way that makes the old primary the standby at once: it holds
/// the same epoch, and nothing leaves here without it (I1, I2, I4).
#[derive(Debug)]
pub(crate) struct TakingOver {
    /// The record that makes this twin eligible.
    named: Record,
    /// The record to have.
    new: Record,
    /// The link over which the guest was offered is still there.
    linked: bool,
}

impl TakingOver {
    pub(crate) fn begin(cx: &mut Context) -> State {
        let Context {
            config, generation, ..
        } = cx;
        let state = Self {
            named: Record::protected(*generation, config.peer, config.node),
            new: Record::protected(generation.saturating_add(1), config.node, config.peer),
            linked: true,
        };
        if cx.config.arbiter {
            state.ask(cx)
        } else {
            state.take(cx)
        }
    }

    fn ask(self, cx: &mut Context) -> State {
        cx.ask(Request::Swap {
            expected: Some(self.named),
            new: self.new,
        });
        State::TakingOver(self)
    }

    pub(crate) fn step(mut self, cx: &mut Context, event: Event) -> State {
        match event {
            Event::Answer(answer) => return self.answered(cx, answer),
            Event::Retry => cx.ask(Request::Read),
            Event::LinkLost(_) => self.linked = false,
            Event::Message(envelope) => out_of_place(cx, envelope.message),
            _ => {}
        }
        State::TakingOver(self)
    }

    fn answered(self, cx: &mut Context, answer: Answer) -> State {
        match answer {
            Answer::Won => self.take(cx),
            // A swap of ours whose answer was lost.
            Answer::Record(record) | Answer::Lost(record) if record == Some(self.new) => {
                self.take(cx)
            }
            Answer::Record(record) if record == Some(self.named) => self.ask(cx),
            Answer::Failed | Answer::Record(None) | Answer::Lost(None) => {
                cx.back_off();
                State::TakingOver(self)
            }
            Answer::Lost(record) if record == Some(self.named) => {
                cx.back_off();
                State::TakingOver(self)
            }
            // The primary has taken its guest back (T24).
            Answer::Record(_) | Answer::Lost(_) => {
                cx.report(Report::NotNamed);
                Starting::wait(cx, None)
            }
        }
    }

    fn take(self, cx: &mut Context) -> State {
        let generation = self.new.generation;
        let right = Right::new(generation);
        cx.generation = generation;
        cx.note(self.new);
        cx.act(if cx.config.has(Bug::TakeOverOpens) {
            Action::OpenOutput
        } else {
            Action::HoldOutput
        });
        if !self.linked {
            // The old primary may ask for its guest back at any moment: it is struck off first (T34).
            cx.act(Action::Promote);
            cx.report(Report::Promoted(generation));
            cx.report(Report::Holding);
            return Holding::striking(cx, right, None);
        }
        // From the first instruction on, what the guest changes is known (T33).
        cx.act(Action::StartTracking);
        cx.act(Action::Promote);
        cx.report(Report::Promoted(generation));
        Protected::taken_over(cx, right)
    }
}
