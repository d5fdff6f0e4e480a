//! One twin: takes inputs, gives actions.

use std::time::Duration;

use crate::bug::Bug;
use crate::config::Config;
use crate::context::Context;
use crate::event::{Action, CloseReason, End, Envelope, Input, Message, Role};
use crate::link::Link;
use crate::record::Answer;
use crate::starting::Starting;
use crate::state::{Event, Loss, State};
use crate::time::Time;

/// The protocol's state machine for one twin.
#[derive(Debug)]
pub struct Twin {
    cx: Context,
    state: State,
}

impl Twin {
    /// A twin that has yet to be told [`Input::Start`].
    pub fn new(config: Config) -> Self {
        let cx = Context {
            config,
            now: Time::default(),
            link: Link::default(),
            lease: Default::default(),
            actions: Default::default(),
            retry_at: None,
            closed: None,
            asked: 0,
            void: 0,
            generation: 0,
        };
        Self {
            cx,
            state: State::Starting(Starting::new()),
        }
    }

    /// Whether the guest runs alone here and nothing is under way, so that its level of protection can change.
    pub fn runs_alone(&self) -> bool {
        matches!(&self.state, State::Solo(solo) if solo.is_quiet())
    }

    /// Replicates all of the guest from now on, or with a lease only its disks. To be called while
    /// [it runs alone](Self::runs_alone): then nobody relies on the level that it had.
    pub fn set_lease(&mut self, lease: Option<Duration>) {
        self.cx.config.lease = lease;
    }

    /// Takes in what happened. All actions that follow must be done before the next input.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.cx.now = now;
        // One that was frozen finds its time over before it acts on anything.
        self.cx.look_at_lease();
        match input {
            Input::Start => {
                let config = &self.cx.config;
                debug_assert!(config.node != config.peer && config.window > 0);
                self.state = Starting::begin(&mut self.cx);
            }
            Input::Tick => self.tick(),
            Input::LinkUp => {
                self.link_lost();
                self.cx.link.up(now);
            }
            Input::LinkDown => self.link_lost(),
            Input::LinkFault => self.link_gone(Loss::Faulty),
            Input::Unreachable if self.cx.link.is_up() => self.close(CloseReason::Unreachable),
            Input::Unreachable => {}
            Input::Heard => self.heard(),
            Input::Received(envelope) => self.receive(envelope),
            Input::Arbiter(answer) if self.cx.answered() => self.answered(answer),
            Input::Arbiter(_) => {}
            Input::RoundSent => self.step(Event::RoundSent),
            Input::Harvested(pages) => self.step(Event::Harvested(pages)),
            Input::Captured { epoch, idle } => self.step(Event::Captured { epoch, idle }),
            Input::CaptureFailed => self.step(Event::CaptureFailed),
            Input::Dirty(dirty) => self.step(Event::Dirty(dirty)),
            Input::OutputWaiting => self.step(Event::OutputWaiting),
            Input::GuestExited => self.step(Event::GuestExited),
            Input::PeerDead => self.step(Event::PeerDead),
            Input::Stop => self.stop(),
            Input::Operator(command) => self.step(Event::Operator(command)),
        }
        self.greet();
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.cx.actions.pop_front()
    }

    /// When [`Input::Tick`] is wanted next.
    pub fn poll_timeout(&self) -> Option<Time> {
        let cx = &self.cx;
        [
            cx.link
                .silent_at(cx.config.timeout)
                .filter(|_| !cx.config.has(Bug::SilenceUnnoticed)),
            cx.link.heartbeat_at(cx.config.heartbeat),
            cx.retry_at,
            cx.lease
                .deadline()
                .filter(|_| !cx.config.has(Bug::LeaseIgnored)),
            self.state.deadline(cx),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What this twin is doing.
    pub fn role(&self) -> Role {
        self.state.role()
    }

    /// Generation of the right that this twin has or follows; 0 while it knows of none.
    pub fn generation(&self) -> u64 {
        self.cx.generation
    }

    /// Is a new link of use now? While a race is open it is not.
    pub fn wants_link(&self) -> bool {
        !self.cx.link.is_up() && self.state.status(&self.cx).is_some()
    }

    /// Is the peer waited for after its link broke? Then it is worth looking whether it lives:
    /// see [`Input::PeerDead`].
    pub fn misses_peer(&self) -> bool {
        self.state.misses_peer(&self.cx)
    }

    fn step(&mut self, event: Event) {
        self.advance(event);
        // A state that closed the link is then told that it is gone, like any other loss.
        while let Some(loss) = self.cx.closed.take() {
            self.advance(Event::LinkLost(loss));
        }
    }

    fn advance(&mut self, event: Event) {
        let state = std::mem::replace(&mut self.state, State::Ended);
        self.state = state.step(&mut self.cx, event);
    }

    fn link_lost(&mut self) {
        self.link_gone(Loss::Broken);
    }

    fn link_gone(&mut self, loss: Loss) {
        if self.cx.link.is_up() {
            // Whatever tells of the end now: this twin may have been frozen since it came.
            let silent = self.cx.link.silent(self.cx.now, self.cx.config.timeout);
            let loss = if silent { Loss::Silent } else { loss };
            self.cx.link.down();
            self.step(Event::LinkLost(loss));
        }
    }

    fn close(&mut self, reason: CloseReason) {
        self.cx.close(reason);
        if let Some(loss) = self.cx.closed.take() {
            self.step(Event::LinkLost(loss));
        }
    }

    fn tick(&mut self) {
        let now = self.cx.now;
        let deaf = self.cx.config.has(Bug::SilenceUnnoticed);
        if self.cx.link.silent(now, self.cx.config.timeout) && !deaf {
            self.close(CloseReason::Silent);
        }
        if self.cx.retry_at.is_some_and(|at| at <= now) {
            self.cx.retry_at = None;
            self.step(Event::Retry);
        }
        self.step(Event::Tick);
        if self.cx.link.heartbeat_due(now, self.cx.config.heartbeat) {
            self.cx.send(Message::Heartbeat, 0);
        }
    }

    /// After a silence as long as the timeout the peer may have gone on without this twin,
    /// which was perhaps stopped itself: what reached it meanwhile releases nothing any more.
    fn heard(&mut self) {
        let now = self.cx.now;
        if self.cx.link.silent(now, self.cx.config.timeout) {
            self.close(CloseReason::Silent);
        } else {
            self.cx.link.heard(now);
        }
    }

    /// The same goes for what a silent peer had acknowledged when the arbiter was asked.
    fn answered(&mut self, answer: Answer) {
        if self.cx.link.silent(self.cx.now, self.cx.config.timeout) {
            self.close(CloseReason::Silent);
        }
        self.step(Event::Answer(answer));
    }

    fn receive(&mut self, envelope: Envelope) {
        self.heard();
        if !self.cx.link.is_up() {
            return;
        }
        let stale = match envelope.message {
            Message::Hello(status) => {
                self.cx.link.greeted_by(status, envelope.generation);
                return;
            }
            Message::Heartbeat | Message::Bye => false,
            // A new sync may only come under a right that is not older than what we know.
            Message::SyncBegin | Message::TookOver => envelope.generation < self.cx.generation,
            Message::SyncPages
            | Message::Epoch
            | Message::Ack
            | Message::Named
            | Message::HandOver => envelope.generation != self.cx.generation,
        };
        if stale && !self.cx.config.has(Bug::StaleGeneration) {
            self.close(CloseReason::StaleGeneration);
        } else if self.cx.link.peer().is_some() {
            self.step(Event::Message(envelope));
        } else if !matches!(envelope.message, Message::Heartbeat) {
            self.close(CloseReason::OutOfPlace(envelope.message));
        }
    }

    fn greet(&mut self) {
        if let Some(status) = self.state.status(&self.cx)
            && self.cx.link.greet()
        {
            self.cx.send(Message::Hello(status), 0);
        }
        if let Some(peer) = self.cx.link.announce() {
            self.step(Event::Peer(peer));
        }
    }

    fn stop(&mut self) {
        // The guest must not run beside the standby that takes over from here.
        if self.state.runs_guest() {
            self.state.full_speed(&mut self.cx);
            self.cx.act(Action::Fence);
        }
        self.state = self.cx.end(End::Stopped);
    }
}
