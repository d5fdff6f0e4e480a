//! Answers that the guest gets only when its twin has what they speak of.
//!
//! A guest whose memory is not replicated boots from its twin's disk, so what it was told is written
//! must be there. Requests that change the disk wait with their answers until the epoch that
//! carries the writes has committed; those that read do not.

use std::collections::VecDeque;

use vmm_sys_util::eventfd::EventFd;

use super::operation::Operation;
use super::request::Status;
use super::{Block, Chain};

/// An answer to a request that is done here.
pub(super) struct Answer {
    pub(super) chain: Chain,
    pub(super) status: Status,
}

/// What is held for one disk.
#[derive(Default)]
pub(super) struct Answers {
    holding: bool,
    /// Written when an answer starts to wait for the end of its epoch.
    waiting: Option<EventFd>,
    unsealed: Vec<Answer>,
    sealed: VecDeque<(u64, Vec<Answer>)>,
    /// They can be given.
    ready: Vec<Answer>,
    /// How many there are in all.
    count: usize,
}

impl Answers {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Whether the answer to this has to wait: it changes the disk, or promises that what comes
    /// before it is durable.
    pub(super) fn wants(&self, operation: &Operation) -> bool {
        // Breaks synchronous mirroring on purpose.
        fail::fail_point!("ha::answer_early", |_| false);
        self.holding
            && match operation {
                Operation::Write { .. } | Operation::Zero { .. } => true,
                Operation::Flush => self.count > 0,
                Operation::Read { .. } | Operation::Record { .. } => false,
            }
    }

    pub(super) fn hold(&mut self, answer: Answer) {
        if self.unsealed.is_empty()
            && let Some(waiting) = &self.waiting
        {
            // The counter of an event fd can't overflow here.
            let _ = waiting.write(1);
        }
        self.count += 1;
        self.unsealed.push(answer);
    }

    pub(super) fn take_ready(&mut self) -> Vec<Answer> {
        let ready = std::mem::take(&mut self.ready);
        self.count -= ready.len();
        ready
    }

    /// Forgets what is held, for a guest that is gone.
    pub(super) fn forget(&mut self) {
        self.unsealed.clear();
        self.sealed.clear();
        self.ready.clear();
        self.count = 0;
    }
}

impl Block {
    /// Writes to `event` whenever an answer starts to wait for the end of its epoch.
    pub fn set_answer_event(&mut self, event: EventFd) {
        self.answers.waiting = Some(event);
    }

    /// Holds answers to requests that change the disk from now on.
    pub fn hold_answers(&mut self) {
        self.answers.holding = true;
    }

    /// Gives all answers that are held, and holds no more.
    pub fn give_answers(&mut self) {
        self.answers.holding = false;
        self.seal_answers(0);
        self.release_answers(u64::MAX);
    }

    /// What is held and not sealed yet belongs to `epoch`: its writes are among those
    /// [taken](super::Backend::take_disk_writes) up to now.
    pub fn seal_answers(&mut self, epoch: u64) {
        let answers = std::mem::take(&mut self.answers.unsealed);
        if !answers.is_empty() {
            self.answers.sealed.push_back((epoch, answers));
        }
    }

    /// Gives the answers of all epochs up to this one.
    pub fn release_answers(&mut self, epoch: u64) {
        let answers = &mut self.answers;
        while let Some((_, mut sealed)) = answers.sealed.pop_front_if(|(at, _)| *at <= epoch) {
            answers.ready.append(&mut sealed);
        }
        if !answers.ready.is_empty() {
            self.ring.wake();
        }
    }
}
