//! The right is had, and whoever had it before may still run the guest on its lease (T42, T43).

use crate::bug::Bug;
use crate::context::{Context, Right};
use crate::event::{Action, Report};
use crate::lease::lease_wait;
use crate::solo::Solo;
use crate::state::{Event, State};
use crate::time::Time;

/// What to do with a guest once it may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// A start of this twin.
    Boot,
    /// It takes over from the primary that it followed.
    Promote,
}

/// Waits until no other guest can run any more. A twin that dies meanwhile waits anew at its
/// next start: it can't know how much of the time is over.
#[derive(Debug)]
pub(crate) struct Lapsing {
    how: How,
    generation: u64,
    until: Time,
}

impl Lapsing {
    /// The guest is this twin's, under this generation: runs it, as soon as nobody else can.
    pub(crate) fn begin(cx: &mut Context, how: How, generation: u64) -> State {
        let forgets = match how {
            How::Boot => Bug::RestartBootsAtOnce,
            How::Promote => Bug::WinnerBootsAtOnce,
        };
        match cx.config.lease {
            // The first generation has nobody before it.
            Some(lease) if generation > 1 && !cx.config.has(forgets) => {
                let wait = lease_wait(lease);
                cx.report(Report::Lapsing(wait));
                State::Lapsing(Self {
                    how,
                    generation,
                    until: cx.now + wait,
                })
            }
            _ => Self::run(cx, how, generation),
        }
    }

    /// Runs it now: nobody else does, for the time is over or the operator says so.
    pub(crate) fn run(cx: &mut Context, how: How, generation: u64) -> State {
        cx.act(Action::OpenOutput);
        match how {
            How::Boot => {
                cx.act(Action::Boot);
                cx.report(Report::GuestRunning(generation));
            }
            How::Promote => {
                cx.act(Action::Promote);
                cx.report(Report::Promoted(generation));
            }
        }
        Solo::enter(cx, Right::new(generation))
    }

    pub(crate) fn deadline(&self) -> Time {
        self.until
    }

    pub(crate) fn step(self, cx: &mut Context, event: Event) -> State {
        match event {
            Event::Tick if self.until <= cx.now => Self::run(cx, self.how, self.generation),
            _ => State::Lapsing(self),
        }
    }
}
