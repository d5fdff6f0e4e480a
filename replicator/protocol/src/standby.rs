//! Following a primary, and taking over from it.

use crate::bug::Bug;
use crate::context::Context;
use crate::event::{Action, Command, Envelope, Message, Refusal, Report, Role, Status};
use crate::lapsing::{How, Lapsing};
use crate::record::{Answer, Record, Request};
use crate::starting::Starting;
use crate::state::{Event, Loss, State, out_of_place, peer_guest_ended};
use crate::takeover::TakingOver;
use crate::time::Time;

/// Holds, or is about to hold, a copy of the primary's guest.
#[derive(Debug)]
pub(crate) struct Standby {
    held: Held,
    /// The link broke, and this is when the primary is given up.
    until: Option<Time>,
}

#[derive(Clone, Copy, Debug)]
enum Held {
    /// Parts of a sync: of no use on their own.
    Parts,
    /// A committed epoch, whole (I3).
    Epoch { epoch: u64, named: bool },
}

impl Standby {
    fn holding(held: Held) -> State {
        State::Standby(Self { held, until: None })
    }

    /// A full sync starts: whatever was held before is void.
    pub(crate) fn begin(cx: &mut Context, generation: u64) -> State {
        cx.generation = generation;
        cx.drop_questions();
        cx.act(Action::Expect(generation));
        Self::holding(Held::Parts)
    }

    /// This twin's guest was handed over, and is held here as the epoch before the first of
    /// the new generation.
    pub(crate) fn of_handed_over(cx: &mut Context) -> State {
        cx.report(Report::StandbyReady(cx.generation));
        let held = Held::Epoch {
            epoch: 0,
            named: true,
        };
        Self::holding(held)
    }

    /// Without an arbiter: the operator vouches that the primary is dead (T35).
    pub(crate) fn promote_by_hand(self, cx: &mut Context) -> State {
        let refusal = match self.held {
            Held::Parts => Refusal::NothingHeld,
            Held::Epoch { .. } if cx.link.has_greeted() => Refusal::PeerIsThere,
            // Never of use: with an arbiter, a standby without a link is promoting already.
            Held::Epoch { .. } if cx.config.arbiter => Refusal::ArbiterDecides,
            // Epochs may be missing that were released: the primary was never gated on it.
            Held::Epoch { named: false, .. } => Refusal::NothingHeld,
            Held::Epoch { .. } => {
                let generation = Self::take_right(cx);
                return Lapsing::run(cx, How::Promote, generation);
            }
        };
        cx.refuse(Command::Promote, refusal);
        State::Standby(self)
    }

    /// Without an arbiter: the right is this twin's. Returns its generation.
    fn take_right(cx: &mut Context) -> u64 {
        let generation = cx.generation.saturating_add(1);
        cx.note(Record::solo(generation, cx.config.node));
        generation
    }

    /// The primary has said itself that its guest does not run any more. Its word may be late: it may run it again.
    fn without_arbiter(cx: &mut Context) -> State {
        let generation = Self::take_right(cx);
        Lapsing::begin(cx, How::Promote, generation)
    }

    pub(crate) fn role(&self) -> Role {
        match self.held {
            Held::Parts => Role::Filling,
            Held::Epoch { .. } => Role::Synced,
        }
    }

    pub(crate) fn status(&self, cx: &Context) -> Option<Status> {
        match self.held {
            // With an arbiter a standby that lost its link is promoting instead, or will be.
            Held::Epoch { epoch, .. } if !cx.config.arbiter || self.until.is_some() => {
                Some(Status::Synced { epoch })
            }
            Held::Epoch { .. } | Held::Parts => None,
        }
    }

    pub(crate) fn step(self, cx: &mut Context, event: Event) -> State {
        match (event, self.held) {
            (Event::Message(envelope), held) => Self::hear(cx, held, envelope),
            // T21.
            (Event::LinkLost(_), Held::Parts) => {
                fail::fail_point!("standby::promote_unsynced", |_| Promoting::begin(cx));
                if cx.config.has(Bug::PromoteParts) && cx.config.arbiter {
                    return Promoting::begin(cx);
                }
                cx.report(Report::NotNamed);
                Starting::wait(cx, None)
            }
            // T40. A link that is there again breaks by silence, or as any other.
            (Event::Tick, Held::Epoch { .. })
                if self.until.is_some_and(|at| at <= cx.now) && !cx.link.is_up() =>
            {
                Promoting::begin(cx)
            }
            (Event::PeerDead, Held::Epoch { .. }) if self.misses_primary(cx) => {
                if cx.config.has(Bug::DeadIsWon) {
                    return Self::without_arbiter(cx);
                }
                Promoting::begin(cx)
            }
            (Event::Peer(Status::Cold), Held::Epoch { .. }) if self.until.is_some() => {
                Promoting::begin(cx)
            }
            (Event::Peer(Status::Primary), held @ Held::Epoch { .. }) if self.until.is_some() => {
                Self::met(cx, held)
            }
            // T37.
            (Event::LinkLost(loss), Held::Epoch { named: true, .. })
                if loss != Loss::Silent
                    && cx.config.arbiter
                    && !cx.config.reconnect.is_zero()
                    && self.until.is_none_or(|at| at > cx.now) =>
            {
                cx.report(Report::Interrupted);
                let wait = match loss {
                    Loss::Faulty => cx.config.reconnect.max(cx.config.timeout),
                    _ => cx.config.reconnect,
                };
                let until = self.until.or(Some(cx.now + wait));
                State::Standby(Self { until, ..self })
            }
            // T20.
            (Event::LinkLost(Loss::Faulty), Held::Epoch { .. }) if cx.config.arbiter => {
                Promoting::later(cx)
            }
            (Event::LinkLost(_), Held::Epoch { .. }) if cx.config.arbiter => Promoting::begin(cx),
            (Event::LinkLost(_), Held::Epoch { .. }) => {
                cx.report(Report::NotPromoting);
                State::Standby(self)
            }
            // The primary was started anew and waits for whoever holds its guest: this twin, even
            // if it was not told any more that it is named: who noted nobody boots by itself.
            (Event::Peer(Status::Cold), Held::Epoch { named, .. })
                if !cx.config.arbiter
                    && (cx.link.peer_generation() == cx.generation
                        && !cx.config.has(Bug::UnnamedWaits)
                        || named && cx.link.peer_generation() <= cx.generation) =>
            {
                Self::without_arbiter(cx)
            }
            _ => State::Standby(self),
        }
    }

    pub(crate) fn deadline(&self, cx: &Context) -> Option<Time> {
        self.until.filter(|_| !cx.link.is_up())
    }

    /// Is the primary waited for, whose link broke?
    pub(crate) fn misses_primary(&self, cx: &Context) -> bool {
        self.deadline(cx).is_some()
    }

    /// The primary is there again. If it is of the same generation, all goes on as before (T39).
    fn met(cx: &mut Context, held: Held) -> State {
        if cx.link.peer_generation() == cx.generation {
            cx.report(Report::Resumed(cx.generation));
        }
        Self::holding(held)
    }

    fn hear(cx: &mut Context, held: Held, envelope: Envelope) -> State {
        let epoch = envelope.epoch;
        let held = match (envelope.message, held) {
            (Message::SyncBegin, _) => return Self::begin(cx, envelope.generation),
            (Message::Bye, _) => return peer_guest_ended(cx),
            (Message::SyncPages, Held::Parts) => {
                cx.act(Action::Store);
                held
            }
            (Message::Epoch, Held::Parts) => {
                commit(cx, epoch);
                Held::Epoch {
                    epoch,
                    named: false,
                }
            }
            // An epoch holds what changed since the one before: none may be missing (I3, T18).
            (Message::Epoch, Held::Epoch { epoch: last, named })
                if last.checked_add(1) == Some(epoch)
                    || cx.config.has(Bug::SkipEpoch) && epoch > last =>
            {
                commit(cx, epoch);
                Held::Epoch { epoch, named }
            }
            // T19.
            (
                Message::Named,
                Held::Epoch {
                    epoch,
                    named: false,
                },
            ) => {
                let (peer, me) = (cx.config.peer, cx.config.node);
                cx.note(Record::protected(cx.generation, peer, me));
                cx.report(Report::StandbyReady(cx.generation));
                Held::Epoch { epoch, named: true }
            }
            // T32.
            (Message::HandOver, Held::Epoch { epoch: last, named })
                if named && last == epoch && cx.config.lease.is_none() =>
            {
                return TakingOver::begin(cx);
            }
            (message, held) => {
                out_of_place(cx, message);
                held
            }
        };
        Self::holding(held)
    }
}

/// The epoch is here whole and verified, and nothing can take it away any more: it is
/// acknowledged first and applied right after.
fn commit(cx: &mut Context, epoch: u64) {
    cx.send(Message::Ack, epoch);
    if cx.config.has(Bug::AckWithoutApply) && epoch.is_multiple_of(2) {
        return;
    }
    cx.act(Action::Apply(epoch));
}

/// The primary is silent or gone: races for the right to run the guest (I2).
#[derive(Debug)]
pub(crate) struct Promoting {
    /// The record that makes this twin eligible (I4).
    named: Record,
    /// The record to have.
    new: Record,
}

impl Promoting {
    fn new(cx: &Context) -> Self {
        let Context {
            config, generation, ..
        } = cx;
        Self {
            named: Record::protected(*generation, config.peer, config.node),
            new: Record::solo(generation.saturating_add(1), config.node),
        }
    }

    pub(crate) fn begin(cx: &mut Context) -> State {
        let state = Self::new(cx);
        cx.report(Report::Promoting(state.new.generation));
        state.ask(cx)
    }

    /// A bad frame is no reason to take the guest from a primary that is alive: it gets the
    /// time to go solo. If it does not use it, it is dead after all.
    pub(crate) fn later(cx: &mut Context) -> State {
        cx.retry_at = Some(cx.now + cx.config.timeout);
        State::Promoting(Self::new(cx))
    }

    fn ask(self, cx: &mut Context) -> State {
        cx.ask(Request::Swap {
            expected: Some(self.named),
            new: self.new,
        });
        State::Promoting(self)
    }

    pub(crate) fn step(self, cx: &mut Context, event: Event) -> State {
        match event {
            Event::Answer(answer) => self.answered(cx, answer),
            Event::Retry => {
                cx.ask(Request::Read);
                State::Promoting(self)
            }
            _ => State::Promoting(self),
        }
    }

    fn answered(self, cx: &mut Context, answer: Answer) -> State {
        match answer {
            Answer::Won => self.promote(cx),
            Answer::Failed if cx.config.has(Bug::PromoteFailedIsWon) => self.promote(cx),
            // A swap of ours whose answer was lost.
            Answer::Record(record) | Answer::Lost(record) if record == Some(self.new) => {
                self.promote(cx)
            }
            Answer::Record(record) if record == Some(self.named) => self.ask(cx),
            Answer::Failed | Answer::Record(None) | Answer::Lost(None) => {
                cx.back_off();
                State::Promoting(self)
            }
            Answer::Lost(record) if record == Some(self.named) => {
                cx.back_off();
                State::Promoting(self)
            }
            // Not named yet, but the swap that does so may be on its way, and so may ours that
            // follows it (T23). Who forgot the epoch now could find itself the winner without it.
            // The primary, if it lives, ends this generation.
            Answer::Record(record) | Answer::Lost(record) if record == Some(self.unnamed()) => {
                if cx.config.has(Bug::PromoteUnnamed) {
                    cx.ask(Request::Swap {
                        expected: record,
                        new: self.new,
                    });
                    return State::Promoting(self);
                }
                if cx.config.has(Bug::ForgetEpochUnnamed) {
                    return Starting::wait(cx, None);
                }
                cx.report(Report::NotNamedYet);
                cx.retry();
                State::Promoting(self)
            }
            // Struck off, or never named: what is held here may be old. It is never run (T24).
            Answer::Record(_) | Answer::Lost(_) => {
                cx.report(Report::NotNamed);
                Starting::wait(cx, None)
            }
        }
    }

    /// The record before the primary has named this twin.
    fn unnamed(&self) -> Record {
        Record::solo(self.named.generation, self.named.releaser)
    }

    /// The right is this twin's (T22).
    fn promote(self, cx: &mut Context) -> State {
        Lapsing::begin(cx, How::Promote, self.new.generation)
    }
}
