//! One kill: a pair is brought to a point, a twin dies there, and what is left is judged.

use std::path::Path;
use std::time::{Duration, Instant};

use evertwin::lab::client::{Load, Verdict};
use evertwin::lab::topology::Node;
use fastrand::Rng;

use crate::error::CrashError;
use crate::points::{Cause, Point, Role, Then};
use crate::site::{Site, wait_for_more};
use crate::watch::Watch;

/// Acknowledged writes before and after each step.
const SOME: u64 = 100;

/// The load runs for up to this long before a point is armed.
const LEAD: Duration = Duration::from_millis(150);

/// How long answers take from a dead host's last frame to the client's count, and longer.
const LAST_ANSWERS: Duration = Duration::from_millis(50);

/// A point, who dies there, and the moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial {
    /// The point.
    pub point: &'static Point,
    /// Who dies.
    pub node: Node,
    /// What was left to chance.
    pub seed: u64,
}

/// What a kill has shown.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// How often the point is passed before.
    pub passes: u32,
    /// The twin died at the point.
    pub killed: bool,
    /// Acknowledged writes that are missing, were repeated or answered wrongly, and lost connections.
    pub lost: u64,
    /// What speaks for two histories.
    pub split: Vec<String>,
    /// The pair was not protected again.
    pub unprotected: bool,
    /// The longest that the client waited: for an answer, or for the restarted guest.
    pub blackout: Duration,
    /// From the start of the dead twin to a protected pair.
    pub protected: Duration,
    /// Writes acknowledged to the clients.
    pub acked: u64,
    /// What went wrong, in words.
    pub troubles: Vec<String>,
}

impl Outcome {
    /// Nothing was broken.
    #[must_use]
    pub(crate) fn is_good(&self) -> bool {
        self.killed
            && !self.unprotected
            && self.lost == 0
            && self.split.is_empty()
            && self.troubles.is_empty()
    }
}

impl Trial {
    /// Kills the twin in a lab of its own whose files are in `directory`, which is empty. `broken` are failpoints that
    /// both twins have on all the time.
    #[must_use]
    pub(crate) fn run(&self, evertwin: &Path, directory: &Path, broken: &str) -> Outcome {
        let mut outcome = Outcome::default();
        let mut stage = match Site::new(evertwin, directory, broken) {
            Ok(site) => Stage::new(*self, site),
            Err(error) => {
                outcome.troubles.push(error.to_string());
                return outcome;
            }
        };
        let watch = Watch::start(directory);
        outcome.passes = stage.passes;
        if let Err(error) = stage.play(&mut outcome) {
            outcome.unprotected =
                outcome.killed && matches!(error, CrashError::NotProtected { .. });
            outcome.lost += u64::from(matches!(error, CrashError::Silent(_)));
            outcome.troubles.push(error.to_string());
        }
        outcome.split = watch.finish();
        outcome
    }
}

/// A trial that is under way.
struct Stage {
    trial: Trial,
    site: Site,
    random: Rng,
    passes: u32,
    depth: usize,
}

impl Stage {
    fn new(trial: Trial, site: Site) -> Self {
        let mut random = Rng::with_seed(trial.seed);
        let passes = random.u32(0..=trial.point.passes);
        let depth = random.usize(1..=16);
        Self {
            trial,
            site,
            random,
            passes,
            depth,
        }
    }

    /// The twin that runs the guest when the point is armed.
    fn primary(&self) -> Node {
        match self.trial.point.role {
            Role::Primary => self.trial.node,
            Role::Standby => self.trial.node.peer(),
        }
    }

    fn actions(&self) -> String {
        match self.passes {
            0 => "return".to_owned(),
            passes => format!("{passes}*off->return"),
        }
    }

    /// The same for a twin that comes by before it can be told.
    fn armed(&self) -> String {
        format!("{}={}", self.trial.point.name, self.actions())
    }

    fn play(&mut self, outcome: &mut Outcome) -> Result<(), CrashError> {
        let Trial { point, node, .. } = self.trial;
        if point.cause == Cause::FirstStart {
            self.site.start(node, Some(&self.armed()))?;
            self.site.wait_for_death(node)?;
            outcome.killed = true;
            return self.start_over(outcome, 0, Instant::now());
        }
        self.site.start(Node::A, None)?;
        self.site.start(Node::B, None)?;
        self.site.wait_until_protected()?;
        if self.primary() == Node::B {
            self.site.switch_over(Node::A)?;
            self.site.wait_until_protected()?;
        }
        let load = self.site.load(self.depth)?;
        wait_for_more(&load, SOME)?;
        let lead = self.random.u64(0..LEAD.as_micros() as u64);
        std::thread::sleep(Duration::from_micros(lead));
        self.kill(&load)?;
        outcome.killed = true;
        match point.then {
            Then::GoesOn => self.go_on(outcome, load),
            Then::Restarts => {
                // The last answers may be on their way through the client's host.
                std::thread::sleep(LAST_ANSWERS);
                let acked = load.progress().acked;
                let since = load.progress().last_answer.unwrap_or_else(Instant::now);
                drop(load);
                self.start_over(outcome, acked, since)
            }
        }
    }

    /// Arms the point, brings the twin to it, and sees it die.
    fn kill(&mut self, load: &Load) -> Result<(), CrashError> {
        let Trial { point, node, .. } = self.trial;
        let (primary, actions) = (self.primary(), self.actions());
        let standby = primary.peer();
        match point.cause {
            Cause::FirstStart => {}
            Cause::Load => self.site.arm(node, point, &actions)?,
            Cause::PeerKilled => {
                self.site.arm(node, point, &actions)?;
                self.site.twin(node.peer()).kill();
            }
            Cause::Switchover => {
                self.site.arm(node, point, &actions)?;
                // Who is asked may die of it, or take the guest back: neither is of interest here.
                let _ = self.site.ask_for_switchover(primary);
            }
            Cause::Filling => {
                self.stop_standby(standby, load)?;
                if node == primary {
                    self.site.arm(node, point, &actions)?;
                    self.site.start(standby, None)?;
                } else {
                    self.site.start(standby, Some(&self.armed()))?;
                }
            }
            Cause::StartAlone => {
                self.stop_standby(standby, load)?;
                self.site.twin(primary).kill();
                self.site.start(primary, Some(&self.armed()))?;
            }
            Cause::BothStart => {
                // Neither is to learn that the other is gone.
                for twin in [Node::A, Node::B] {
                    self.site.twin(twin).freeze();
                }
                for twin in [Node::A, Node::B] {
                    self.site.twin(twin).kill();
                }
                self.site.start(node, Some(&self.armed()))?;
                self.site.start(node.peer(), None)?;
            }
        }
        self.site.wait_for_death(node)
    }

    fn stop_standby(&mut self, standby: Node, load: &Load) -> Result<(), CrashError> {
        self.site.twin(standby).kill();
        self.site.wait_for_role(standby.peer(), "solo")?;
        wait_for_more(load, SOME)
    }

    /// The other twin has the guest, and the client's connection with it.
    fn go_on(&mut self, outcome: &mut Outcome, load: Load) -> Result<(), CrashError> {
        wait_for_more(&load, SOME)?;
        let began = Instant::now();
        self.site.start(self.trial.node, None)?;
        self.site.wait_until_protected()?;
        outcome.protected = began.elapsed();
        wait_for_more(&load, SOME)?;
        judge(outcome, &load.finish());
        Ok(())
    }

    /// Nobody runs the guest any more: the twins that are dead are started, and the guest has on its disk what was
    /// acknowledged.
    fn start_over(
        &mut self,
        outcome: &mut Outcome,
        acked: u64,
        since: Instant,
    ) -> Result<(), CrashError> {
        let Trial { point, node, .. } = self.trial;
        let mut dead = match point.cause {
            // The standby was started, and waits.
            Cause::Filling | Cause::BothStart => vec![node],
            _ => vec![node, node.peer()],
        };
        self.random.shuffle(&mut dead);
        let began = Instant::now();
        for twin in dead {
            self.site.start(twin, None)?;
        }
        // The client sends an INCR and a SET in turns, and the first is an INCR.
        let (incrs, sets) = (acked.div_ceil(2), acked / 2);
        let counter = self.site.number("counter")?;
        outcome.blackout = since.elapsed();
        if counter < incrs || counter > incrs + self.depth as u64 {
            outcome.lost += counter.abs_diff(incrs);
            outcome.troubles.push(format!(
                "the counter is {counter} after {incrs} were acknowledged"
            ));
        }
        if sets > 0 && self.site.number(&format!("key:{sets}"))? != sets {
            outcome.lost += 1;
            outcome.troubles.push(format!("key:{sets} is not there"));
        }
        self.site.wait_until_protected()?;
        outcome.protected = began.elapsed();
        outcome.acked = acked;
        let load = self.site.load(self.depth)?;
        wait_for_more(&load, SOME)?;
        let blackout = outcome.blackout;
        judge(outcome, &load.finish());
        outcome.blackout = blackout;
        Ok(())
    }
}

fn judge(outcome: &mut Outcome, verdict: &Verdict) {
    let seen = &verdict.progress;
    outcome.acked += seen.acked;
    outcome.blackout = seen.longest_gap;
    outcome.lost += seen.lost + seen.duplicated;
    if !verdict.is_clean() {
        outcome.lost = outcome.lost.max(1);
        outcome.troubles.push(verdict.summary());
        outcome.troubles.extend(seen.broken.clone());
        outcome.troubles.extend(seen.complaints.iter().cloned());
    }
}
