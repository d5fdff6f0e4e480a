//! One twin on a test bench: inputs go in, actions come out.

// Each test binary has its own copy of this module and uses a part of it.
#![allow(dead_code)]

use std::time::Duration;

use evertwin_protocol::{
    Action, Answer, Config, Envelope, Input, Message, NodeId, Record, Report, Request, Role,
    Status, Time, Twin,
};

pub(crate) fn node(name: &str) -> NodeId {
    name.parse().expect("a valid name")
}

pub(crate) struct Bench {
    pub(crate) twin: Twin,
    pub(crate) now: u64,
}

impl Bench {
    pub(crate) fn new(name: &str, arbiter: bool) -> Self {
        let peer = if name == "a" { "b" } else { "a" };
        let twin = Twin::new(Config::new(node(name), node(peer), arbiter));
        Self { twin, now: 0 }
    }

    /// The same as another, with time for its peer to be back after their link broke.
    pub(crate) fn patient(name: &str) -> Self {
        let peer = if name == "a" { "b" } else { "a" };
        let mut config = Config::new(node(name), node(peer), true);
        config.reconnect = Duration::from_millis(200);
        let twin = Twin::new(config);
        Self { twin, now: 0 }
    }

    /// A twin of a pair of which only the disks are replicated.
    pub(crate) fn leased(name: &str, lease: Duration) -> Self {
        Self::with_lease(name, lease, true)
    }

    /// The same without an arbiter.
    pub(crate) fn leased_by_hand(name: &str, lease: Duration) -> Self {
        Self::with_lease(name, lease, false)
    }

    fn with_lease(name: &str, lease: Duration, arbiter: bool) -> Self {
        let peer = if name == "a" { "b" } else { "a" };
        let mut config = Config::new(node(name), node(peer), arbiter);
        config.lease = Some(lease);
        let twin = Twin::new(config);
        Self { twin, now: 0 }
    }

    /// A twin without an arbiter, on a host that noted this.
    pub(crate) fn noted(name: &str, noted: Option<Record>) -> Self {
        let peer = if name == "a" { "b" } else { "a" };
        let mut config = Config::new(node(name), node(peer), false);
        config.noted = noted;
        let twin = Twin::new(config);
        Self { twin, now: 0 }
    }

    pub(crate) fn role(&self) -> Role {
        self.twin.role()
    }

    /// What the twin tells the operator.
    pub(crate) fn reports(&mut self, input: Input) -> Vec<Report> {
        self.now += 1000;
        self.twin.handle(Time::from_nanos(self.now), input);
        std::iter::from_fn(|| self.twin.poll_action())
            .filter_map(|action| match action {
                Action::Report(report) => Some(report),
                _ => None,
            })
            .collect()
    }

    /// The pause before the arbiter is asked again is over.
    pub(crate) fn pass_retry(&mut self) -> Vec<Action> {
        let mut actions = self.pass(Duration::from_millis(101));
        actions.retain(|action| !matches!(action, Action::Send(_)));
        actions
    }

    /// The peer gave signs of life only, for as long as the timeout.
    pub(crate) fn pass_timeout(&mut self) -> Vec<Action> {
        for _ in 0..4 {
            self.pass(Duration::from_millis(120));
            self.hear(1, 0, Message::Heartbeat);
        }
        let mut actions = self.pass(Duration::from_millis(120));
        actions.retain(|action| !matches!(action, Action::Send(_)));
        actions
    }

    /// What the twin does, without what it tells the operator.
    pub(crate) fn give(&mut self, input: Input) -> Vec<Action> {
        self.now += 1000;
        self.twin.handle(Time::from_nanos(self.now), input);
        std::iter::from_fn(|| self.twin.poll_action())
            .filter(|action| !matches!(action, Action::Report(_)))
            .collect()
    }

    pub(crate) fn pass(&mut self, span: Duration) -> Vec<Action> {
        self.now += u64::try_from(span.as_nanos()).expect("a short time");
        self.give(Input::Tick)
    }

    pub(crate) fn hear(&mut self, generation: u64, epoch: u64, message: Message) -> Vec<Action> {
        self.give(Input::Received(Envelope {
            generation,
            epoch,
            message,
        }))
    }

    /// A primary that has shipped epoch 1 of its first sync.
    pub(crate) fn shipped() -> Self {
        Self::new("a", true).ship()
    }

    fn ship(mut self) -> Self {
        let bench = &mut self;
        bench.give(Input::Start);
        bench.give(Input::Arbiter(Answer::Record(None)));
        bench.give(Input::Arbiter(Answer::Won));
        bench.give(Input::LinkUp);
        bench.hear(0, 0, Message::Hello(Status::Cold));
        bench.give(Input::RoundSent);
        bench.give(Input::Harvested(0));
        let epoch = 1;
        bench.give(Input::Captured { epoch, idle: false });
        self
    }

    /// A primary whose standby is named, with epoch 1 committed.
    pub(crate) fn protected() -> Self {
        Self::new("a", true).protect()
    }

    pub(crate) fn protect(self) -> Self {
        let mut bench = self.ship();
        bench.hear(1, 1, Message::Ack);
        let actions = bench.give(Input::Arbiter(Answer::Won));
        assert_eq!(actions[0], Action::Release(1));
        assert_eq!(bench.twin.role(), Role::Protected);
        bench
    }

    /// A standby that holds epoch 1 of generation 1.
    pub(crate) fn synced(arbiter: bool) -> Self {
        Self::new("b", arbiter).sync(arbiter)
    }

    pub(crate) fn sync(mut self, arbiter: bool) -> Self {
        let bench = &mut self;
        bench.give(Input::Start);
        if arbiter {
            bench.give(Input::Arbiter(Answer::Record(Some(claimed()))));
        }
        bench.give(Input::LinkUp);
        bench.hear(1, 0, Message::Hello(Status::Primary));
        assert_eq!(bench.hear(1, 0, Message::SyncBegin), [Action::Expect(1)]);
        assert_eq!(bench.hear(1, 0, Message::SyncPages), [Action::Store]);
        let actions = bench.hear(1, 1, Message::Epoch);
        assert_eq!(actions, [ack(1), Action::Apply(1)], "acknowledged first");
        self
    }
}

pub(crate) fn claimed() -> Record {
    Record::solo(1, node("a"))
}

pub(crate) fn ack(epoch: u64) -> Action {
    Action::Send(Envelope {
        generation: 1,
        epoch,
        message: Message::Ack,
    })
}

pub(crate) fn swap(expected: Option<Record>, new: Record) -> Action {
    Action::Ask(Request::Swap { expected, new })
}
