//! Two hosts under one clock: what happens, in order, and who is told.

use std::time::Duration;

use evertwin_protocol::{Bug, Config, Input, NodeId, Twin};

use crate::arbiter::Arbiter;
use crate::check::{Clients, Commits, Invariant, Liveness, Rights, Verdict, Violation};
use crate::host::{Host, Process, Round};
use crate::machine::{Load, Machine};
use crate::network::Network;
use crate::queue::{Event, Queue};
use crate::schedule::Schedule;
use crate::story::Story;

/// A thousandth and a millionth of a second in nanoseconds.
pub(crate) const MICRO: u64 = 1_000;
pub(crate) const MILLI: u64 = 1_000_000;

/// Silence after which a twin takes its peer for dead.
pub(crate) const TIMEOUT: u64 = 60 * MILLI;

/// How long a guest of which only the disks are replicated may run on an acknowledgement.
const LEASE: u64 = 2 * TIMEOUT;

/// All must be well again this long after everything has healed.
const RECOVERY: u64 = 3_000 * MILLI;

/// How often that is looked at.
const LOOK: u64 = 15 * MILLI;

/// More events than any schedule has: something spins.
const MOST_EVENTS: u64 = 300_000;

/// Counts what happened, so that one sees that something was tested.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Events of all kinds.
    pub events: u64,
    /// What the core did at each host.
    pub actions: [u64; 2],
    /// Guests started from their kernel.
    pub boots: u64,
    /// Standbys that took over.
    pub promotions: u64,
    /// Guests that changed their host on request.
    pub handovers: u64,
    /// Primaries that lost their right.
    pub fenced: u64,
    /// Times that a pair became protected.
    pub protected: u64,
    /// Times that a guest was slowed, more each time, for the sake of a sync.
    pub slowed: u64,
    /// Twins that died.
    pub crashes: u64,
    /// Answers that clients got.
    pub answers: u64,
    /// Simulated microseconds from the end of the faults until the pair was protected.
    pub recovery_us: u64,
}

impl Tally {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        let Self {
            events,
            actions,
            boots,
            promotions,
            handovers,
            fenced,
            protected,
            slowed,
            crashes,
            answers,
            recovery_us,
        } = other;
        self.events += events;
        for (sum, host) in self.actions.iter_mut().zip(actions) {
            *sum += host;
        }
        self.boots += boots;
        self.promotions += promotions;
        self.handovers += handovers;
        self.fenced += fenced;
        self.protected += protected;
        self.slowed += slowed;
        self.crashes += crashes;
        self.answers += answers;
        self.recovery_us = self.recovery_us.max(*recovery_us);
    }
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Faults,
    /// Healed at this time: the pair must be protected soon.
    Recovering(u64),
    /// The primary lost its power at this time: the standby must take over soon.
    LastBlow {
        at: u64,
        survivor: usize,
    },
    Done,
}

pub(crate) struct World<'a> {
    pub(crate) schedule: &'a Schedule,
    bug: Option<Bug>,
    trace: bool,
    pub(crate) now: u64,
    pub(crate) queue: Queue,
    pub(crate) names: [NodeId; 2],
    pub(crate) hosts: [Host; 2],
    pub(crate) network: Network,
    pub(crate) arbiter: Arbiter,
    pub(crate) story: Story,
    /// What messages carry.
    pub(crate) loads: Vec<Load>,
    pub(crate) clients: Clients,
    pub(crate) commits: Commits,
    pub(crate) rights: Rights,
    pub(crate) liveness: Liveness,
    /// Where a guest was started last, from its kernel or from an epoch.
    pub(crate) last_ran: Option<usize>,
    pub(crate) phase: Phase,
    pub(crate) tally: Tally,
    pub(crate) violation: Option<Violation>,
}

impl<'a> World<'a> {
    pub(crate) fn new(schedule: &'a Schedule, bug: Option<Bug>, trace: bool) -> Self {
        let seed = schedule.seed;
        let name = |name: &str| name.parse().expect("a valid name");
        let mut world = Self {
            schedule,
            bug,
            trace,
            now: 0,
            queue: Queue::default(),
            names: [name("a"), name("b")],
            hosts: [0, 1].map(|host| Host::new(seed, host)),
            network: Network::new(seed),
            arbiter: Arbiter::new(seed),
            story: Story::new(),
            loads: vec![Load::default()],
            clients: Clients::default(),
            commits: Commits::default(),
            rights: Rights::default(),
            liveness: Liveness::default(),
            last_ran: None,
            phase: Phase::Faults,
            tally: Tally::default(),
            violation: None,
        };
        world.queue.push(0, Event::Dial);
        world.queue.push(0, Event::Start { host: 0 });
        let second = schedule.second_us * MICRO;
        world.queue.push(second, Event::Start { host: 1 });
        world.queue.push(schedule.heal_us * MICRO, Event::Heal);
        for (index, fault) in schedule.faults.iter().enumerate() {
            let event = Event::Fault(index as u32);
            world.queue.push(fault.at_us * MICRO, event);
        }
        world
    }

    /// Runs to the end of the schedule, or to the first violation.
    pub(crate) fn run(&mut self) {
        while self.violation.is_none() && self.phase != Phase::Done {
            let Some((at, event)) = self.queue.pop() else {
                break;
            };
            self.now = at;
            self.tally.events += 1;
            if self.tally.events > MOST_EVENTS {
                self.judge(Err((Invariant::Bounds, "too much happens".to_owned())));
                break;
            }
            self.happen(event);
        }
        self.tally.answers = self.clients.answers();
    }

    /// Takes a checker's answer. The first violation ends the run.
    pub(crate) fn judge(&mut self, verdict: Verdict) {
        if let Err((invariant, what)) = verdict
            && self.violation.is_none()
        {
            self.note(|| format!("VIOLATION of {invariant}: {what}"));
            self.violation = Some(Violation {
                invariant,
                what,
                at_us: self.now / MICRO,
            });
        }
    }

    /// A line of the trace, if there is one.
    pub(crate) fn note(&self, line: impl FnOnce() -> String) {
        if self.trace {
            let us = self.now / MICRO;
            println!("{:>6}.{:03} {}", us / 1000, us % 1000, line());
        }
    }

    /// Whom the event is for, if a pause keeps it from being noticed.
    fn unnoticed(&self, event: &Event) -> Option<usize> {
        let host = match *event {
            Event::Tick { host, .. }
            | Event::Answer { host, .. }
            | Event::Round { host, .. }
            | Event::Probe { host, .. }
            | Event::OutputWaits { host, .. }
            | Event::GuestExits { host }
            | Event::Operator { host, .. } => host,
            Event::Deliver { to, .. } => to,
            Event::Ended { at, .. } => at,
            Event::Accept { .. } => 0,
            _ => return None,
        };
        (self.hosts[host].paused_until > self.now).then_some(host)
    }

    pub(crate) fn happen(&mut self, event: Event) {
        if let Some(host) = self.unnoticed(&event) {
            return self.hosts[host].backlog.push(event);
        }
        match event {
            Event::Tick { host, life } => {
                if self.hosts[host].lives(life) {
                    self.input(host, Input::Tick);
                }
            }
            Event::Step { host, life } => self.step(host, life),
            Event::Dial => self.dial(),
            Event::Accept { life, connection } => self.accept(life, connection),
            Event::Deliver {
                to,
                connection,
                frame,
            } => self.deliver(to, connection, frame),
            Event::Ended { at, connection } => self.ended(at, connection),
            Event::Effect {
                host,
                life,
                request,
                answer_at,
            } => self.effect(host, life, request, answer_at),
            Event::Answer { host, life, answer } => {
                if self.hosts[host].lives(life) {
                    self.note(|| format!("host {host} is answered {answer:?}"));
                    self.input(host, Input::Arbiter(answer));
                }
            }
            Event::Round { host, life, round } => self.round(host, life, round),
            Event::Probe { host, life, since } => self.probe(host, life, since),
            Event::OutputWaits { host, life } => {
                if self.hosts[host].lives(life) {
                    self.input(host, Input::OutputWaiting);
                }
            }
            Event::GuestExits { host } => self.guest_exits(host),
            Event::Operator { host, command } => self.operate(host, command),
            Event::Fault(index) => self.fault(index),
            Event::Crash { host, armed } => {
                if self.hosts[host]
                    .armed
                    .is_some_and(|now| now.serial == armed)
                {
                    self.crash(host);
                }
            }
            Event::Start { host } => self.start(host),
            Event::Resume { host } => self.resume(host),
            Event::Heal => self.heal(),
            Event::Look => self.look(),
        }
    }

    /// A twin is started, if none runs on this host.
    pub(crate) fn start(&mut self, host: usize) {
        if self.hosts[host].process.is_some() {
            return;
        }
        let (me, peer) = (self.names[host], self.names[1 - host]);
        let schedule = self.schedule;
        let mut config = Config::new(me, peer, schedule.arbiter);
        let millis = Duration::from_millis;
        config.epoch = Duration::from_micros(schedule.epoch_us);
        config.idle = millis(20);
        config.heartbeat = millis(10);
        config.timeout = Duration::from_nanos(TIMEOUT);
        config.retry = millis(15);
        config.window = schedule.window;
        config.reconnect = Duration::from_micros(schedule.reconnect_us);
        config.lease = schedule.ha.then_some(Duration::from_nanos(LEASE));
        config.last_round_pages = 4;
        config.rounds = 14;
        config.first_epoch = millis(2);
        config.leave = millis(100);
        config.noted = self.hosts[host].noted;
        config.bug = self.bug;
        let place = &mut self.hosts[host];
        place.lives += 1;
        place.backlog.clear();
        place.process = Some(Process {
            twin: Twin::new(config),
            machine: Machine::new(schedule.ha),
            life: place.lives,
            started: self.now,
            link: None,
            strangers: Vec::new(),
            outbox: Vec::new(),
            inputs: Default::default(),
            busy: false,
            received: 0,
            whole: None,
            promised: None,
            shipped: 0,
            acknowledged: false,
            round: Round::default(),
            next_tick: u64::MAX,
            probing: false,
            arbiter_free_at: 0,
        });
        self.note(|| format!("host {host} starts"));
        self.liveness.begins(host);
        self.input(host, Input::Start);
    }

    /// All faults end: what is dead is started, what is late arrives.
    fn heal(&mut self) {
        self.note(|| "everything heals".to_owned());
        self.phase = Phase::Recovering(self.now);
        self.network.heal();
        self.arbiter.heal();
        for host in 0..2 {
            let place = &mut self.hosts[host];
            place.armed = None;
            place.damage_next = false;
            place.lose_epoch = false;
            place.capture_fails = 0;
            place.tracking_fails = false;
            place.paused_until = place.paused_until.min(self.now);
            place.guest_paused_until = 0;
            self.queue.push(self.now, Event::Resume { host });
            self.queue.push(self.now, Event::Start { host });
        }
        self.liveness.protected();
        self.queue.push(self.now + LOOK, Event::Look);
    }

    /// Has the pair recovered?
    fn look(&mut self) {
        let protected = self.liveness.protected();
        let protected = protected.filter(|primary| self.is_named(*primary));
        match (self.phase, protected) {
            (Phase::Recovering(since), Some(primary)) => {
                self.tally.recovery_us = (self.now - since) / MICRO;
                if !(self.schedule.last_blow && self.schedule.arbiter) {
                    self.phase = Phase::Done;
                    return;
                }
                self.note(|| format!("the pair is protected; host {primary} loses its power"));
                self.phase = Phase::LastBlow {
                    at: self.now,
                    survivor: 1 - primary,
                };
                self.lose_for_good(primary);
            }
            (Phase::Recovering(since), None) if self.now > since + RECOVERY => {
                let roles = self.roles();
                let record = self.rights.record();
                let what = format!("the pair is not protected: {roles}, record {record:?}");
                self.judge(Err((Invariant::Liveness, what)));
            }
            // The primary's last word was that it goes on alone.
            (Phase::LastBlow { survivor, .. }, _) if self.went_alone(1 - survivor) => {
                self.phase = Phase::Done;
            }
            (Phase::LastBlow { at, survivor }, _) if self.now > at + RECOVERY => {
                let roles = self.roles();
                let what = format!("host {survivor} did not take over: {roles}");
                self.judge(Err((Invariant::Liveness, what)));
            }
            _ => {}
        }
        self.queue.push(self.now + LOOK, Event::Look);
    }

    /// Does the arbiter know that this host's guest is protected?
    fn is_named(&self, primary: usize) -> bool {
        let [me, peer] = [primary, 1 - primary].map(|host| self.names[host]);
        let record = self.rights.record();
        !self.schedule.arbiter
            || record.is_some_and(|record| (record.releaser, record.standby) == (me, Some(peer)))
    }

    /// Does the arbiter know that this host's guest is not protected any more?
    fn went_alone(&self, primary: usize) -> bool {
        let record = self.rights.record();
        record.is_some_and(|record| {
            record.releaser == self.names[primary] && record.standby.is_none()
        })
    }

    fn roles(&self) -> String {
        let role = |host: usize| match &self.hosts[host].process {
            Some(process) => format!("{:?}", process.twin.role()),
            None => "dead".to_owned(),
        };
        format!("{} and {}", role(0), role(1))
    }
}
