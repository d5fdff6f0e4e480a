//! The register: it acts late, answers later, and at times not at all. It may even act long
//! after whoever asked was told that it failed.

use std::collections::BTreeSet;

use evertwin_protocol::{Answer, Record, Request};

use super::{Event, MILLI, World};

#[derive(Default)]
pub(crate) struct Register {
    pub(crate) record: Option<Record>,
    /// The record that was replaced last.
    pub(crate) before: Option<Record>,
    /// Generations in which a standby was named.
    pub(crate) named: BTreeSet<u64>,
    /// Percentage of questions that fail.
    pub(crate) failing: u64,
}

impl World {
    /// Acts on a question, even if who asked it has died meanwhile.
    pub(super) fn arbitrate(&mut self, node: usize, life: u64, request: Request) {
        let failing = if self.faults { self.arbiter.failing } else { 0 };
        let lost_question = self.random.chance(failing / 3);
        let lost_answer = self.random.chance(failing / 3);
        let overdue = self.random.chance(failing / 3);
        let answer = if overdue {
            let delay = self.random.below(150 * MILLI);
            self.at(delay, Event::Overdue(request));
            Answer::Failed
        } else if lost_question {
            Answer::Failed
        } else {
            let answer = self.act_on(request);
            if lost_answer { Answer::Failed } else { answer }
        };
        let delay = self.random.below(10 * MILLI);
        self.at(delay, Event::Answer { node, life, answer });
    }

    pub(super) fn act_on(&mut self, request: Request) -> Answer {
        let register = &mut self.arbiter;
        match request {
            Request::Read => Answer::Record(register.record),
            Request::Swap { expected, new } if register.record == expected => {
                let last = expected.map_or(0, |record| record.generation);
                let named = new.standby.is_some();
                // Who takes over names its predecessor at once.
                let same = expected.is_some_and(|old| old.releaser == new.releaser);
                let wanted = if named && same { last } else { last + 1 };
                assert_eq!(new.generation, wanted, "seed {} (I2)", self.seed);
                if named {
                    register.named.insert(new.generation);
                }
                register.before = expected;
                register.record = Some(new);
                Answer::Won
            }
            Request::Swap { .. } => Answer::Lost(register.record),
        }
    }
}
