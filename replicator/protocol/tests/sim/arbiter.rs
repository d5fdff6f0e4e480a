//! The register: it acts late, answers later, and at times not at all.

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
        let lost_question = self.random.chance(failing / 2);
        let lost_answer = self.random.chance(failing / 2);
        let register = &mut self.arbiter;
        let mut answer = match request {
            _ if lost_question => Answer::Failed,
            Request::Read => Answer::Record(register.record),
            Request::Swap { expected, new } if register.record == expected => {
                let last = expected.map_or(0, |record| record.generation);
                let named = new.standby.is_some();
                let wanted = if named { last } else { last + 1 };
                assert_eq!(new.generation, wanted, "seed {} (I2)", self.seed);
                if named {
                    register.named.insert(last);
                }
                register.before = expected;
                register.record = Some(new);
                Answer::Won
            }
            Request::Swap { .. } => Answer::Lost(register.record),
        };
        if lost_answer {
            answer = Answer::Failed;
        }
        let delay = self.random.below(10 * MILLI);
        self.at(delay, Event::Answer { node, life, answer });
    }
}
