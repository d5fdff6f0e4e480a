//! A planned exchange of roles, as the primary sees it.
//!
//! The guest stands still here, as an epoch that is held like any standby's. Once that epoch
//! has committed and its output has left, the peer is asked to take over. Nobody else may:
//! the peer by the arbiter's record, or this twin again, by the next generation (I2).

use crate::bug::Bug;
use crate::context::{Context, Right};
use crate::event::{
    Action, CloseReason, Command, Envelope, Message, Refusal, Report, Role, Status,
};
use crate::record::{Answer, Record, Request};
use crate::solo::Solo;
use crate::standby::{Promoting, Standby};
use crate::starting::Starting;
use crate::state::{Event, Loss, State, out_of_place};
use crate::syncing::Syncing;
use crate::time::Time;

/// The guest stands still here as the epoch `last`.
#[derive(Debug)]
pub(crate) struct HandingOver {
    right: Right,
    last: u64,
    phase: Phase,
    /// The twin ends once it is the standby.
    leave: bool,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Until the last epoch has committed.
    Draining,
    /// The peer was asked; it has this long.
    Offered { until: Time },
    /// It is gone or slow: the arbiter says who has the right.
    Deciding { asked: Option<Record>, loss: Loss },
    /// It is gone, and without an arbiter only its return or the operator helps.
    Waiting,
}

impl HandingOver {
    /// The epoch `last` was captured and shipped, and the guest does not run any more.
    /// `committed` is the last one acknowledged.
    pub(crate) fn begin(
        cx: &mut Context,
        right: Right,
        last: u64,
        committed: u64,
        leave: bool,
    ) -> State {
        cx.report(Report::HandingOver(right.generation));
        let mut state = Self {
            right,
            last,
            phase: Phase::Draining,
            leave,
        };
        if committed == last {
            state.offer(cx);
        }
        State::HandingOver(state)
    }

    pub(crate) fn role(&self) -> Role {
        match self.phase {
            Phase::Waiting => Role::Holding,
            _ => Role::HandingOver,
        }
    }

    pub(crate) fn status(&self) -> Option<Status> {
        let epoch = self.last;
        matches!(self.phase, Phase::Waiting).then_some(Status::Synced { epoch })
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        match self.phase {
            Phase::Offered { until } => Some(until),
            _ => None,
        }
    }

    pub(crate) fn step(mut self, cx: &mut Context, event: Event) -> State {
        match (event, self.phase) {
            (Event::Message(envelope), _) => return self.hear(cx, envelope),
            (Event::LinkLost(loss), Phase::Draining) => {
                cx.act(Action::StopTracking);
                self.decide(cx, loss);
            }
            (Event::LinkLost(loss), Phase::Offered { .. }) => {
                if cx.config.has(Bug::TakeBackUnasked) {
                    let generation = self.right.generation;
                    return self.take_back(cx, generation);
                }
                self.decide(cx, loss);
            }
            // The guest is not to stand still because the peer can't make up its mind (T28).
            (Event::Tick, Phase::Offered { until }) if until <= cx.now => {
                cx.close(CloseReason::NotTakenOver);
            }
            (Event::Answer(answer), Phase::Deciding { asked, loss }) => {
                return self.answered(cx, asked, answer, loss);
            }
            (Event::Retry, Phase::Deciding { loss, .. }) => {
                self.phase = Phase::Deciding { asked: None, loss };
                cx.ask(Request::Read);
            }
            // It did not take over, or does not hold anything any more.
            (Event::Peer(Status::Cold | Status::Synced { .. }), Phase::Waiting) => {
                cx.report(Report::TakenBack(self.right.generation));
                cx.act(Action::Promote);
                return Syncing::begin(cx, self.right, true);
            }
            _ => {}
        }
        State::HandingOver(self)
    }

    /// The operator vouches that the peer is dead.
    pub(crate) fn promote_by_hand(self, cx: &mut Context) -> State {
        match self.phase {
            Phase::Waiting => {
                let generation = self.right.generation + 1;
                self.take_back(cx, generation)
            }
            _ => {
                cx.refuse(Command::Promote, Refusal::Busy);
                State::HandingOver(self)
            }
        }
    }

    /// Has this twin end once it is the standby.
    pub(crate) fn leave_then(self) -> State {
        State::HandingOver(Self {
            leave: true,
            ..self
        })
    }

    fn hear(mut self, cx: &mut Context, envelope: Envelope) -> State {
        let Envelope {
            generation,
            epoch,
            message,
        } = envelope;
        match (message, self.phase) {
            (Message::Ack, Phase::Draining) if epoch <= self.last => {
                cx.act(Action::Committed(epoch));
                cx.act(Action::Release(epoch));
                if epoch == self.last {
                    self.offer(cx);
                }
            }
            (Message::TookOver, Phase::Offered { .. })
                if generation == self.right.generation + 1 =>
            {
                return self.follow(cx, generation);
            }
            // Without an arbiter: the peer took over before the link was lost.
            (Message::SyncBegin, Phase::Waiting) if generation > self.right.generation => {
                cx.act(Action::DropOutput);
                return Standby::begin(cx, generation);
            }
            (other, _) => out_of_place(cx, other),
        }
        State::HandingOver(self)
    }

    /// Asks the peer to take over (T26).
    fn offer(&mut self, cx: &mut Context) {
        // What the guest did is with the peer, to the last byte.
        cx.send(Message::HandOver, self.last);
        cx.act(Action::StopTracking);
        self.phase = Phase::Offered {
            until: cx.now + cx.config.timeout,
        };
    }

    /// The peer's guest goes on from what is held here, so this is its standby already (I4, T27).
    fn follow(self, cx: &mut Context, generation: u64) -> State {
        let Context { config, .. } = cx;
        let record = Record::protected(generation, config.peer, config.node);
        cx.note(record);
        cx.generation = generation;
        cx.report(Report::HandedOver(generation));
        let state = Standby::of_handed_over(cx);
        if self.leave {
            return cx.leave();
        }
        state
    }

    /// The peer is gone or too slow (T28).
    fn decide(&mut self, cx: &mut Context, loss: Loss) {
        if cx.config.arbiter {
            let asked = Some(self.strike(cx));
            self.phase = Phase::Deciding { asked, loss };
        } else {
            cx.report(Report::Holding);
            self.phase = Phase::Waiting;
        }
    }

    /// Asks for the solo right, like any primary that lost its standby.
    fn strike(&self, cx: &mut Context) -> Record {
        let Context { config, .. } = &*cx;
        let generation = self.right.generation;
        let expected = Record::protected(generation, config.node, config.peer);
        let new = Record::solo(generation + 1, config.node);
        cx.ask(Request::Swap {
            expected: Some(expected),
            new,
        });
        new
    }

    fn answered(
        mut self,
        cx: &mut Context,
        asked: Option<Record>,
        answer: Answer,
        loss: Loss,
    ) -> State {
        let record = match (answer, asked) {
            (Answer::Won, Some(new)) => Some(new),
            (Answer::Record(record) | Answer::Lost(record), _) => record,
            (Answer::Won, None) | (Answer::Failed, _) => {
                cx.back_off();
                return State::HandingOver(self);
            }
        };
        let generation = self.right.generation;
        let Context { config, .. } = cx;
        let (me, peer) = (config.node, config.peer);
        if record == Some(Record::solo(generation + 1, me)) {
            self.take_back(cx, generation + 1)
        } else if record == Some(Record::protected(generation, me, peer)) {
            if matches!(answer, Answer::Lost(_)) {
                cx.back_off();
            } else {
                let asked = Some(self.strike(cx));
                self.phase = Phase::Deciding { asked, loss };
            }
            State::HandingOver(self)
        } else if record == Some(Record::protected(generation + 1, peer, me)) {
            // The peer took over, and what is held here is what it began with (T30).
            cx.generation = generation + 1;
            cx.report(Report::HandedOver(generation + 1));
            match loss {
                Loss::Broken | Loss::Silent => Promoting::begin(cx),
                // It is well, or was a moment ago: it gets the time to go on without this twin.
                Loss::Faulty | Loss::GivenUp => Promoting::later(cx),
            }
        } else if record.is_none() {
            cx.back_off();
            State::HandingOver(self)
        } else {
            // The peer went on without this twin, perhaps from an earlier epoch (T31).
            cx.act(Action::DropOutput);
            cx.report(Report::NotNamed);
            Starting::wait(cx, None)
        }
    }

    /// The guest goes on here (T29, T35).
    fn take_back(self, cx: &mut Context, generation: u64) -> State {
        let record = Record::solo(generation, cx.config.node);
        cx.note(record);
        cx.act(Action::OpenOutput);
        cx.act(Action::Promote);
        cx.report(Report::TakenBack(generation));
        Solo::enter(cx, Right::new(generation))
    }
}
