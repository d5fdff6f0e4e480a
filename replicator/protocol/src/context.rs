//! What all states share.

use std::collections::VecDeque;

use crate::config::Config;
use crate::event::{Action, CloseReason, Command, End, Envelope, Message, Refusal, Report};
use crate::lease::Lease;
use crate::link::Link;
use crate::record::{Record, Request};
use crate::state::{Loss, State};
use crate::time::Time;

/// The current right to release output, and the epochs numbered under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Right {
    pub(crate) generation: u64,
    /// Number of the next epoch; never used twice within a generation.
    pub(crate) next_epoch: u64,
}

impl Right {
    pub(crate) fn new(generation: u64) -> Self {
        Self {
            generation,
            next_epoch: 1,
        }
    }
}

/// Everything outside of the state proper.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) now: Time,
    pub(crate) link: Link,
    pub(crate) lease: Lease,
    pub(crate) actions: VecDeque<Action>,
    /// When the arbiter is asked again.
    pub(crate) retry_at: Option<Time>,
    /// The state closed the link and has yet to be told that it is gone.
    pub(crate) closed: Option<Loss>,
    /// Questions that the arbiter has yet to answer, in order.
    pub(crate) asked: u32,
    /// How many of these nobody waits for any more.
    pub(crate) void: u32,
    /// Generation put on what this twin says.
    pub(crate) generation: u64,
}

impl Context {
    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(crate) fn report(&mut self, report: Report) {
        self.act(Action::Report(report));
    }

    pub(crate) fn ask(&mut self, request: Request) {
        self.retry_at = None;
        self.drop_questions();
        self.asked += 1;
        self.act(Action::Ask(request));
    }

    /// An answer to what was asked up to now says what was, perhaps before this state began.
    pub(crate) fn drop_questions(&mut self) {
        self.void = self.asked;
    }

    /// The arbiter has answered. True if somebody waits for that.
    pub(crate) fn answered(&mut self) -> bool {
        self.asked = self.asked.saturating_sub(1);
        let awaited = self.void == 0;
        self.void = self.void.saturating_sub(1);
        awaited
    }

    /// Has the arbiter asked again later.
    pub(crate) fn back_off(&mut self) {
        self.report(Report::ArbiterFailed);
        self.retry();
    }

    pub(crate) fn retry(&mut self) {
        self.retry_at = Some(self.now + self.config.retry);
    }

    pub(crate) fn send(&mut self, message: Message, epoch: u64) {
        if self.link.is_up() {
            self.link.sent(self.now);
            self.act(Action::Send(Envelope {
                generation: self.generation,
                epoch,
                message,
            }));
        }
    }

    pub(crate) fn close(&mut self, reason: CloseReason) {
        if self.link.is_up() {
            self.link.down();
            self.closed = Some(reason.into());
            self.act(Action::Close(reason));
        }
    }

    /// Without an arbiter the right is remembered by each host for itself.
    pub(crate) fn note(&mut self, record: Record) {
        if !self.config.arbiter {
            self.act(Action::Note(record));
        }
    }

    pub(crate) fn refuse(&mut self, command: Command, refusal: Refusal) {
        self.report(Report::Refused(command, refusal));
    }

    /// The operator wants this twin, which holds no right, to end.
    pub(crate) fn leave(&mut self) -> State {
        self.send(Message::Bye, 0);
        self.end(End::Left)
    }

    pub(crate) fn end(&mut self, end: End) -> State {
        self.act(Action::End(end));
        State::Ended
    }

    /// The peer has the right: this guest must never run again (I2).
    pub(crate) fn fence(&mut self) -> State {
        self.act(Action::Fence);
        self.report(Report::Fenced);
        self.end(End::Fenced)
    }
}
