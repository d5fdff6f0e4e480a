//! Asks the arbiter on a thread of its own, for it may block.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use evertwin_protocol::{Answer, Request};
use rustix::event::{EventfdFlags, eventfd};

use super::{Arbiter, CasOutcome, Record};
use crate::crash::crash_point;

/// The arbiter's thread. It ends by itself after the question it works on.
pub(crate) struct ArbiterThread {
    questions: Sender<Request>,
    answers: Receiver<Answer>,
    answered: Arc<OwnedFd>,
}

impl ArbiterThread {
    pub(crate) fn start(mut arbiter: Box<dyn Arbiter>) -> io::Result<Self> {
        let (questions, asked) = channel();
        let (answer, answers) = channel();
        let answered = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let signal = answered.clone();
        thread::Builder::new()
            .name("arbiter".to_owned())
            .spawn(move || {
                let mut trouble = None;
                for request in asked {
                    let reply = ask(&mut *arbiter, request, &mut trouble);
                    if answer.send(reply).is_err() {
                        return;
                    }
                    // Can't fail: the counter is far from its end, the descriptor is ours.
                    let _ = rustix::io::write(&*signal, &1u64.to_ne_bytes());
                }
            })?;
        Ok(Self {
            questions,
            answers,
            answered,
        })
    }

    /// The answer will come; if the thread has died it is a failure.
    pub(crate) fn ask(&self, request: Request) -> Option<Answer> {
        self.questions
            .send(request)
            .is_err()
            .then_some(Answer::Failed)
    }

    /// Readable when there are answers.
    pub(crate) fn answered(&self) -> RawFd {
        self.answered.as_raw_fd()
    }

    pub(crate) fn answer(&self) -> Option<Answer> {
        // Answers may outlive their signal, never the other way round.
        let _ = rustix::io::read(&*self.answered, &mut [0; 8]);
        self.answers.try_recv().ok()
    }
}

/// Where to crash before a swap, and where after it was written (PROTOCOL.md §2.1).
fn crash_points(expected: Option<&Record>, new: &Record) -> [&'static str; 2] {
    match (expected, new.standby) {
        // R8
        (Some(old), Some(_)) if old.releaser != new.releaser => {
            ["exchange::asked", "exchange::written"]
        }
        // R4
        (_, Some(_)) => ["naming::asked", "naming::written"],
        // R7
        (Some(old), None) if old.releaser != new.releaser => {
            ["promotion::asked", "promotion::written"]
        }
        // R3, R5
        (Some(old), None) if old.standby.is_some() => ["strike::asked", "strike::written"],
        // R1, R2, R6
        (_, None) => ["claim::asked", "claim::written"],
    }
}

/// `trouble` is what the operator was told last: the arbiter is asked many times a second.
fn ask(arbiter: &mut dyn Arbiter, request: Request, trouble: &mut Option<String>) -> Answer {
    let answer = match request {
        Request::Read => arbiter.read().map(Answer::Record),
        Request::Swap { expected, new } => {
            fail::fail_point!("arbiter::cas_always_wins", |_| Answer::Won);
            let [asked, written] = crash_points(expected.as_ref(), &new);
            crash_point(asked);
            let outcome = arbiter.compare_and_swap(expected.as_ref(), &new);
            if matches!(outcome, Ok(CasOutcome::Won)) {
                crash_point(written);
            }
            outcome.map(|outcome| match outcome {
                CasOutcome::Won => Answer::Won,
                CasOutcome::Lost(record) => Answer::Lost(record),
            })
        }
    };
    match answer {
        Ok(answer) => {
            if trouble.take().is_some() {
                tracing::info!("the arbiter can be asked again");
            }
            answer
        }
        Err(error) => {
            let error = error.to_string();
            if trouble.as_ref() != Some(&error) {
                tracing::warn!(error, "the arbiter can't be asked; trying again");
                *trouble = Some(error);
            }
            Answer::Failed
        }
    }
}
