//! The arbiter: a register that acts late, answers later, and at times not at all. It may even
//! act long after whoever asked was told that it failed, or has died.

use evertwin_protocol::{Answer, Request};

use crate::check::Hosts;
use crate::host::Process;
use crate::queue::Event;
use crate::random::Random;
use crate::schedule::Trouble;
use crate::world::{MICRO, MILLI, World};

/// When a twin gives up waiting for an answer.
const PATIENCE: u64 = 15 * MILLI;

/// Questions under way, and what is wrong with the way to the arbiter.
#[derive(Debug)]
pub(crate) struct Arbiter {
    random: Random,
    /// With each: did it come from a twin that had not run a guest?
    questions: Vec<(Request, bool)>,
    /// Until when, for each host.
    trouble: [Option<(u64, Trouble)>; 2],
}

impl Arbiter {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed, 2),
            questions: Vec::new(),
            trouble: [None; 2],
        }
    }

    pub(crate) fn heal(&mut self) {
        self.trouble = [None; 2];
    }

    pub(crate) fn trouble(&mut self, host: usize, until: u64, trouble: Trouble) {
        self.trouble[host] = Some((until, trouble));
    }
}

impl World<'_> {
    /// A twin asks. Its arbiter thread takes one question after the other.
    pub(crate) fn ask(&mut self, host: usize, request: Request) {
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        let life = process.life;
        let arbiter = &mut self.arbiter;
        let start = process.arbiter_free_at.max(self.now);
        let way = arbiter.random.between(50, 2_000) * MICRO;
        let back = arbiter.random.between(50, 2_000) * MICRO;
        let trouble = arbiter.trouble[host].filter(|(until, _)| *until > start);
        // Not every question is met by the trouble.
        let trouble = trouble.filter(|_| arbiter.random.chance(80));
        let failed_at = start + PATIENCE;
        // When it acts, when it answers, and when the twin gives up instead.
        let (effect, answer, failed) = match trouble.map(|(_, trouble)| trouble) {
            None => (Some(start + way), Some(start + way + back), None),
            Some(Trouble::Slow { by_us }) => {
                let way = way + arbiter.random.below(by_us * MICRO + 1);
                let answer = start + way + by_us * MICRO;
                (Some(start + way), Some(answer), None)
            }
            Some(Trouble::LosesQuestions) => (None, None, Some(Answer::Failed)),
            Some(Trouble::LosesAnswers) => (Some(start + way), None, Some(Answer::Failed)),
            Some(Trouble::ActsLate { by_us }) => {
                let effect = start + way + by_us * MICRO;
                (Some(effect), None, Some(Answer::Failed))
            }
            Some(Trouble::Blank) => {
                let nothing = match request {
                    Request::Read => Answer::Record(None),
                    Request::Swap { .. } => Answer::Lost(None),
                };
                (None, None, Some(nothing))
            }
        };
        process.arbiter_free_at = answer.unwrap_or(failed_at);
        if let Some(at) = effect {
            let index = arbiter.questions.len() as u32;
            arbiter
                .questions
                .push((request, process.machine.moment == 0));
            let event = Event::Effect {
                host,
                life,
                request: index,
                answer_at: answer,
            };
            self.queue.push(at, event);
        }
        if let Some(answer) = failed {
            self.queue
                .push(failed_at, Event::Answer { host, life, answer });
        }
    }

    /// Is this host's peer named, and does it hold an epoch of the record's generation?
    fn standby_holds(&self, host: usize) -> bool {
        let peer = 1 - host;
        let record = self.rights.record();
        let Some(record) = record.filter(|record| record.standby == Some(self.names[peer])) else {
            return false;
        };
        self.hosts[peer].process.as_ref().is_some_and(|process| {
            let of_it = process.whole.map(|(generation, _)| generation) == Some(record.generation);
            of_it && process.machine.standing.is_some()
        })
    }

    /// Does the peer's guest stand still as the epoch that this host holds? If one of them has died
    /// meanwhile, and perhaps come back, that harms nobody: nothing leaves here without it.
    fn same_epoch(&self, host: usize) -> bool {
        let [mine, theirs] = [host, 1 - host].map(|host| self.hosts[host].process.as_ref());
        let standing = |process: &Process| process.machine.standing.map(|held| held.moment);
        match (mine, theirs) {
            (Some(mine), Some(theirs)) if theirs.machine.moment != 0 => {
                standing(mine).is_some() && standing(mine) == standing(theirs)
            }
            _ => true,
        }
    }

    /// The question has reached the register.
    pub(crate) fn effect(&mut self, host: usize, life: u32, request: u32, answer_at: Option<u64>) {
        let (request, cold) = self.arbiter.questions[request as usize];
        let record = self.rights.record();
        let answer = match request {
            Request::Read => Answer::Record(record),
            Request::Swap { expected, new } if expected == record => {
                self.note(|| format!("the record becomes {new:?}, as host {host} asked"));
                let seen = Hosts {
                    forsakes: cold && new.standby.is_none() && self.standby_holds(host),
                    same_epoch: !self.hosts[host].lives(life) || self.same_epoch(host),
                };
                let verdict = self.rights.changed(new, seen);
                self.judge(verdict);
                Answer::Won
            }
            Request::Swap { .. } => Answer::Lost(record),
        };
        if let Some(at) = answer_at {
            self.queue.push(at, Event::Answer { host, life, answer });
        }
    }
}
