//! A world of two twins under one clock, one seed, and faults of all kinds.

mod arbiter;
mod check;
mod machine;
mod network;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use evertwin_protocol::{
    Action, Answer, Command, Config, Envelope, Input, Message, NodeId, Record, Report, Request,
    Role, Time, Twin,
};
use machine::Machine;

const MILLI: u64 = 1_000_000;

/// A small, seeded source of randomness (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % limit
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What the wire carries: a message, and with an epoch the guest's history up to it.
#[derive(Clone, Debug)]
struct Packet {
    envelope: Envelope,
    history: Vec<u64>,
}

#[derive(Clone, Debug)]
enum Event {
    Tick(usize),
    Step(usize),
    Deliver {
        to: usize,
        connection: u64,
        packet: Packet,
    },
    Cut {
        at: usize,
        connection: u64,
    },
    Dial,
    /// The arbiter acts on a question of this process.
    Ask {
        node: usize,
        life: u64,
        request: Request,
    },
    Answer {
        node: usize,
        life: u64,
        answer: Answer,
    },
    /// The arbiter acts on a question that was given up long ago.
    Overdue(Request),
    RoundSent {
        node: usize,
        life: u64,
        sync: u64,
    },
    Fault,
    Restart(usize),
}

/// One process, alive until it ends or is killed.
struct Node {
    twin: Twin,
    machine: Machine,
    life: u64,
    connection: Option<u64>,
    /// The history that came with the epoch just received.
    received: Vec<u64>,
    syncs: u64,
    /// The standby has acknowledged an epoch since the sync began.
    acknowledged: bool,
    next_tick: u64,
    ready: bool,
}

/// Counts what happened, so that a test sees that it tested something.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) boots: u64,
    pub(crate) promotions: u64,
    pub(crate) fenced: u64,
    pub(crate) protected: u64,
    pub(crate) released: u64,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) tally: Tally,
    seed: u64,
    names: [NodeId; 2],
    has_arbiter: bool,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    pending: std::collections::BTreeMap<u64, Event>,
    serial: u64,
    nodes: [Option<Node>; 2],
    network: network::Network,
    arbiter: arbiter::Register,
    world: check::Outside,
    faults: bool,
}

impl World {
    pub(crate) fn new(seed: u64, has_arbiter: bool) -> Self {
        let name = |name: &str| name.parse().expect("a valid name");
        let mut world = Self {
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            tally: Tally::default(),
            seed,
            names: [name("a"), name("b")],
            has_arbiter,
            now: 0,
            events: BinaryHeap::new(),
            pending: Default::default(),
            serial: 0,
            nodes: [None, None],
            network: network::Network::default(),
            arbiter: arbiter::Register::default(),
            world: check::Outside::default(),
            faults: true,
        };
        world.at(0, Event::Dial);
        world.at(0, Event::Fault);
        for node in 0..2 {
            let delay = world.random.below(50 * MILLI);
            world.at(delay, Event::Restart(node));
        }
        world
    }

    /// A phase full of faults.
    pub(crate) fn shake(&mut self, millis: u64) {
        self.run(millis);
    }

    /// A phase without faults, in which the pair must recover and be protected again.
    pub(crate) fn recover(&mut self, millis: u64) {
        self.faults = false;
        self.network.heal();
        self.run(millis);
        let released = self.tally.released;
        self.run(200);
        let roles = [0, 1].map(|node| self.role(node));
        let seed = self.seed;
        assert!(
            roles.contains(&Some(Role::Protected)) && roles.contains(&Some(Role::Synced)),
            "seed {seed}: the pair did not recover: {roles:?}, record {:?}",
            self.arbiter.record
        );
        assert!(
            self.tally.released > released,
            "seed {seed}: no output leaves"
        );
        let ready = self.nodes.iter().flatten().any(|node| node.ready);
        assert!(
            ready,
            "seed {seed}: the standby was not told that it is named"
        );
    }

    fn role(&self, node: usize) -> Option<Role> {
        self.nodes[node].as_ref().map(|node| node.twin.role())
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((self.now + delay, self.serial)));
        self.pending.insert(self.serial, event);
    }

    fn run(&mut self, millis: u64) {
        let until = self.now + millis * MILLI;
        while let Some(Reverse((time, serial))) = self.events.peek().copied() {
            if time > until {
                break;
            }
            self.events.pop();
            self.now = time;
            if let Some(event) = self.pending.remove(&serial) {
                self.happen(event);
            }
        }
        self.now = until;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(node) => self.input(node, Input::Tick),
            Event::Step(node) => self.step(node),
            Event::Deliver {
                to,
                connection,
                packet,
            } => self.deliver(to, connection, packet),
            Event::Cut { at, connection } => {
                if let Some(node) = &mut self.nodes[at]
                    && node.connection == Some(connection)
                {
                    node.connection = None;
                    let fault = self.random.chance(20);
                    let how = [Input::LinkDown, Input::LinkFault][usize::from(fault)];
                    self.input(at, how);
                }
            }
            Event::Dial => self.dial(),
            Event::Ask {
                node,
                life,
                request,
            } => self.arbitrate(node, life, request),
            Event::Answer { node, life, answer } => {
                if self.lives(node, life) {
                    self.input(node, Input::Arbiter(answer));
                }
            }
            Event::Overdue(request) => {
                self.act_on(request);
            }
            Event::RoundSent { node, life, sync } => {
                let current = |node: &Node| node.life == life && node.syncs == sync;
                if self.nodes[node].as_ref().is_some_and(current) {
                    self.input(node, Input::RoundSent);
                }
            }
            Event::Fault => self.fault(),
            Event::Restart(node) => self.restart(node),
        }
    }

    fn lives(&self, node: usize, life: u64) -> bool {
        self.nodes[node]
            .as_ref()
            .is_some_and(|node| node.life == life)
    }

    fn restart(&mut self, node: usize) {
        if self.nodes[node].is_some() {
            return;
        }
        let mut config = Config::new(self.names[node], self.names[1 - node], self.has_arbiter);
        let millis = std::time::Duration::from_millis;
        config.epoch = millis(5);
        config.heartbeat = millis(10);
        config.timeout = millis(60);
        config.retry = millis(20);
        config.window = 1 + self.random.below(3);
        self.serial += 1;
        self.nodes[node] = Some(Node {
            twin: Twin::new(config),
            machine: Machine::default(),
            life: self.serial,
            connection: None,
            received: Vec::new(),
            syncs: 0,
            acknowledged: false,
            next_tick: u64::MAX,
            ready: false,
        });
        self.input(node, Input::Start);
        self.at(MILLI, Event::Step(node));
    }

    fn kill(&mut self, node: usize) {
        if let Some(dead) = self.nodes[node].take() {
            if let Some(connection) = dead.connection {
                self.cut_later(1 - node, connection);
            }
            let delay = self.random.below(300) * MILLI;
            self.at(delay, Event::Restart(node));
        }
    }

    fn fault(&mut self) {
        let pause = (5 + self.random.below(200)) * MILLI;
        self.at(pause, Event::Fault);
        if !self.faults {
            return;
        }
        let node = self.random.below(2) as usize;
        match self.random.below(11) {
            9 => self.input(node, Input::Operator(Command::Switchover)),
            10 if self.has_arbiter => {
                let command = [Command::Leave, Command::Promote][self.random.below(2) as usize];
                self.input(node, Input::Operator(command));
            }
            // Without an arbiter a restarted primary starts afresh: that is another story.
            0..=1 if self.has_arbiter => self.kill(node),
            0..=1 => {}
            2 => self.break_connection(),
            3 => self.network.silent = true,
            4 => self.network.partitioned = true,
            5 | 6 => self.network.heal(),
            7 => self.arbiter.failing = self.random.below(60),
            _ => self.arbiter.failing = 0,
        }
    }

    /// The guest does something and tells the world.
    fn step(&mut self, node: usize) {
        let delay = MILLI / 2 + self.random.below(4 * MILLI);
        let Some(process) = &mut self.nodes[node] else {
            return;
        };
        self.serial += 1;
        let token = self.serial;
        let waits = process.machine.step(token);
        self.at(delay, Event::Step(node));
        self.emit(node);
        if waits {
            self.input(node, Input::OutputWaiting);
        }
    }

    fn emit(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node] else {
            return;
        };
        let open = process.machine.open;
        for history in process.machine.drain_emitted() {
            self.tally.released += 1;
            if open && self.has_arbiter {
                let record = self.arbiter.record.expect("the right was claimed");
                let solo = record.releaser == self.names[node] && record.standby.is_none();
                assert!(
                    solo,
                    "seed {}: released alone under {record:?} (I2)",
                    self.seed
                );
            }
            self.world.see(self.seed, history);
        }
    }

    fn input(&mut self, node: usize, input: Input) {
        let Some(process) = &mut self.nodes[node] else {
            return;
        };
        process.twin.handle(Time::from_nanos(self.now), input);
        let mut answers = Vec::new();
        while let Some(action) = self.nodes[node]
            .as_mut()
            .and_then(|process| process.twin.poll_action())
        {
            self.act(node, action, &mut answers);
        }
        self.emit(node);
        for answer in answers {
            self.input(node, answer);
        }
        self.schedule(node);
    }

    fn schedule(&mut self, node: usize) {
        let now = self.now;
        let Some(process) = &mut self.nodes[node] else {
            return;
        };
        if let Some(at) = process.twin.poll_timeout().map(Time::as_nanos) {
            // A tick that was asked for before may come as well: it does no harm.
            if at < process.next_tick || process.next_tick <= now {
                let at = at.max(now + 1);
                process.next_tick = at;
                self.at(at - now, Event::Tick(node));
            }
        }
    }

    fn act(&mut self, node: usize, action: Action, answers: &mut Vec<Input>) {
        let seed = self.seed;
        let Some(process) = &mut self.nodes[node] else {
            return;
        };
        let machine = &mut process.machine;
        match action {
            Action::Send(envelope) => self.send(node, envelope, Vec::new()),
            Action::Close(_) => {
                if let Some(connection) = process.connection.take() {
                    self.cut_later(1 - node, connection);
                }
            }
            Action::Ask(request) => {
                let life = process.life;
                if let Request::Swap { new, .. } = request {
                    // Who takes over names the twin whose guest it has.
                    let holds = process.machine.applied.is_some();
                    let eligible = new.standby.is_none() || process.acknowledged || holds;
                    assert!(eligible, "seed {seed}: named before it was synced (I4)");
                }
                let delay = self.random.below(10 * MILLI);
                self.at(
                    delay,
                    Event::Ask {
                        node,
                        life,
                        request,
                    },
                );
            }
            Action::Boot => {
                self.tally.boots += 1;
                self.serial += 1;
                machine.boot(self.serial);
                self.world.begin(self.serial);
            }
            Action::HoldOutput => machine.open = false,
            Action::OpenOutput => machine.open_output(),
            Action::Release(epoch) => {
                let named = self.arbiter.named.contains(&process.twin.generation());
                assert!(
                    named || !self.has_arbiter,
                    "seed {seed}: gated on a standby nobody knows of (I4)"
                );
                machine.release(epoch);
            }
            Action::StartTracking => {
                process.acknowledged = false;
                machine.tracking = true;
            }
            Action::StopTracking => {
                machine.tracking = false;
                process.syncs += 1;
            }
            Action::SendMemory(generation) | Action::SendHarvest(generation) => {
                self.send_round(node, generation);
            }
            Action::Harvest => {
                let pages = self.random.below(4000);
                answers.push(Input::Harvested(pages));
            }
            Action::KeepHarvest => {}
            Action::Peek => {
                let dirty = self.random.chance(50);
                answers.push(Input::Dirty(dirty));
            }
            Action::DropOutput => machine.drop_output(),
            Action::Note(_) => {}
            Action::CaptureLast(epoch) => {
                if self.random.chance(10) {
                    answers.push(Input::CaptureFailed);
                } else {
                    machine.capture(epoch);
                    machine.stay();
                    let idle = self.random.chance(10);
                    answers.push(Input::Captured { epoch, idle });
                }
            }
            Action::Capture(epoch) => {
                assert!(
                    machine.tracking,
                    "seed {seed}: captured without tracking (I5)"
                );
                if self.random.chance(2) {
                    answers.push(Input::CaptureFailed);
                } else {
                    machine.capture(epoch);
                    let idle = self.random.chance(10);
                    answers.push(Input::Captured { epoch, idle });
                }
            }
            Action::Ship { generation, epoch } => {
                let history = machine.captured(epoch);
                let envelope = Envelope {
                    generation,
                    epoch,
                    message: Message::Epoch,
                };
                self.send(node, envelope, history);
            }
            Action::Committed(epoch) => machine.committed(epoch),
            Action::Expect(_) => machine.applied = None,
            Action::Store => {}
            Action::Apply(_) => machine.applied = Some(std::mem::take(&mut process.received)),
            Action::Promote => {
                self.tally.promotions += 1;
                self.check_promotion(node);
                if let Some(process) = &mut self.nodes[node] {
                    process.machine.promote();
                }
            }
            Action::Fence => machine.fence(),
            Action::Report(Report::StandbyReady(_)) => process.ready = true,
            Action::Report(Report::Protected(_)) => self.tally.protected += 1,
            Action::Report(Report::Fenced) => self.tally.fenced += 1,
            Action::Report(_) => {}
            Action::End(_) => self.kill(node),
        }
    }

    /// I2, I3, I4 at the moment of promotion.
    fn check_promotion(&mut self, node: usize) {
        let seed = self.seed;
        let Some(process) = &self.nodes[node] else {
            return;
        };
        let applied = process.machine.applied.as_ref();
        let applied = applied.unwrap_or_else(|| panic!("seed {seed}: nothing whole is held (I3)"));
        self.world.check_continues(seed, applied);
        if !self.has_arbiter {
            return;
        }
        let (me, peer) = (self.names[node], self.names[1 - node]);
        let record = self
            .arbiter
            .record
            .expect("there is a record to promote by");
        let before = self.arbiter.before.expect("somebody was named");
        let generation = before.generation + 1;
        let rights = [
            Record::solo(generation, me),
            Record::protected(generation, me, peer),
        ];
        assert!(rights.contains(&record), "seed {seed}: {record:?} (I2)");
        // Or it takes back the guest that it was about to hand over.
        let eligible = before.standby == Some(me) || before.releaser == me;
        assert!(eligible, "seed {seed}: not eligible (I4)");
    }
}
