//! Filling a standby while the guest runs.

use crate::bug::Bug;
use crate::context::{Context, Right};
use crate::event::{Action, End, Message, Report};
use crate::holding::Holding;
use crate::protected::Protected;
use crate::record::Record;
use crate::rounds::{Rounds, Step};
use crate::solo::Solo;
use crate::state::{Event, State, out_of_place};

/// Sends all memory, then in rounds what was dirtied meanwhile, until little is left; slows the
/// guest if that does not come about by itself.
/// Output flows as before: the standby is not named yet (I4).
#[derive(Debug)]
pub(crate) struct Syncing {
    right: Right,
    /// Output was held before the sync, and stays held.
    gated: bool,
    rounds: Rounds,
}

impl Syncing {
    pub(crate) fn begin(cx: &mut Context, mut right: Right, gated: bool) -> State {
        // Without an arbiter: the peer had the guest later, but has lost it.
        let older = !cx.config.arbiter && cx.link.peer_generation() > right.generation;
        if older && !cx.config.has(Bug::OlderSync) {
            right = Right::new(cx.link.peer_generation() + 1);
            cx.generation = right.generation;
            cx.note(Record::solo(right.generation, cx.config.node));
        }
        cx.report(Report::Syncing(right.generation));
        cx.act(Action::StartTracking);
        cx.send(Message::SyncBegin, 0);
        name_unsynced(cx, right);
        cx.act(Action::SendMemory(right.generation));
        State::Syncing(Self {
            right,
            gated,
            rounds: Rounds::begin(cx.now),
        })
    }

    pub(crate) fn step(mut self, cx: &mut Context, event: Event) -> State {
        match event {
            Event::RoundSent => {
                self.rounds.sent(cx.now);
                cx.act(Action::Harvest);
                State::Syncing(self)
            }
            Event::Harvested(pages) => self.harvested(cx, pages),
            // T9.
            Event::LinkLost(_) => {
                if !cx.config.has(Bug::StaysSlow) {
                    self.full_speed(cx);
                }
                cx.act(Action::StopTracking);
                if self.gated {
                    Holding::for_peer(cx, self.right)
                } else {
                    Solo::enter(cx, self.right)
                }
            }
            Event::GuestExited => {
                self.full_speed(cx);
                cx.act(Action::StopTracking);
                if self.gated {
                    return Holding::exited(cx, self.right);
                }
                cx.send(Message::Bye, 0);
                cx.end(End::GuestExited)
            }
            Event::Message(envelope) => {
                out_of_place(cx, envelope.message);
                State::Syncing(self)
            }
            _ => State::Syncing(self),
        }
    }

    /// A guest is only ever slowed for the sake of a sync.
    pub(crate) fn full_speed(&self, cx: &mut Context) {
        if self.rounds.slowed() {
            cx.act(Action::SlowGuest(0));
        }
    }

    fn harvested(mut self, cx: &mut Context, pages: u64) -> State {
        match self.rounds.found(cx.now, pages, &cx.config) {
            Step::Send => {}
            // T41.
            Step::SendSlowed(percent) => cx.act(Action::SlowGuest(percent)),
            Step::Epoch => return self.protect(cx),
        }
        if cx.config.has(Bug::UnsentHarvest) {
            cx.act(Action::Harvest);
            return State::Syncing(self);
        }
        cx.act(Action::SendHarvest(self.right.generation));
        State::Syncing(self)
    }

    /// The first epoch carries what is left; nothing leaves before it commits (T8).
    fn protect(self, cx: &mut Context) -> State {
        if !cx.config.has(Bug::ForgetHarvest) {
            cx.act(Action::KeepHarvest);
        }
        if !cx.config.has(Bug::GateStaysOpen) {
            cx.act(Action::HoldOutput);
        }
        self.full_speed(cx);
        Protected::begin(cx, self.right, self.gated)
    }
}

/// Nothing, but for a test that breaks I4 on purpose.
fn name_unsynced(_cx: &mut Context, _right: Right) {
    fail::fail_point!("standby::promote_unsynced", |_| {
        use crate::record::{Record, Request};
        let (me, peer) = (_cx.config.node, _cx.config.peer);
        _cx.ask(Request::Swap {
            expected: Some(Record::solo(_right.generation, me)),
            new: Record::protected(_right.generation, me, peer),
        });
    });
}
