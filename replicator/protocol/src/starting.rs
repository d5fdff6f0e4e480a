//! Before a guest runs anywhere that this twin knows of.

use crate::bug::Bug;
use crate::config::Config;
use crate::context::Context;
use crate::event::{Command, Message, Refusal, Report, Status};
use crate::lapsing::{How, Lapsing};
use crate::node::NodeId;
use crate::record::{Answer, Record, Request};
use crate::standby::Standby;
use crate::state::{Event, State, out_of_place, peer_guest_ended};

/// Finding out whether to boot the guest, to wait, or to follow.
#[derive(Debug)]
pub(crate) struct Starting(Phase);

#[derive(Debug)]
enum Phase {
    Reading,
    /// Asked for this record, or reading whether it was written.
    Claiming(Record),
    /// The record, when it was read and may still be in force.
    Waiting(Option<Record>),
}

impl Starting {
    pub(crate) fn new() -> Self {
        Self(Phase::Waiting(None))
    }

    pub(crate) fn begin(cx: &mut Context) -> State {
        if cx.config.arbiter {
            cx.ask(Request::Read);
            State::Starting(Self(Phase::Reading))
        } else {
            let noted = cx.config.noted;
            // The peer is told, so that of two notes the newer one counts.
            cx.generation = noted.map_or(0, |record| record.generation);
            decide(cx, noted)
        }
    }

    /// Without an arbiter: the operator vouches that the peer is dead, and wants the guest to
    /// be booted from the disks of this host.
    pub(crate) fn promote_by_hand(self, cx: &mut Context) -> State {
        match self.0 {
            _ if cx.config.arbiter => cx.refuse(Command::Promote, Refusal::ArbiterDecides),
            _ if cx.link.has_greeted() => cx.refuse(Command::Promote, Refusal::PeerIsThere),
            Phase::Waiting(Some(record)) if record.releaser == cx.config.node => {
                let generation = note_claim(cx, Some(record)).generation;
                return Lapsing::run(cx, How::Boot, generation);
            }
            // The disks of a standby without its epoch are of no use.
            _ => cx.refuse(Command::Promote, Refusal::NothingHeld),
        }
        State::Starting(self)
    }

    /// Waits for a peer that is, or knows, the primary. Also the place of a standby that
    /// lost its primary before it was of use: it will never promote what it holds (I4).
    pub(crate) fn wait(cx: &mut Context, record: Option<Record>) -> State {
        if let Some(named) = record
            && named.releaser == cx.config.node
            && cx.link.peer() == Some(Status::Cold)
        {
            // A claim that the arbiter did not take: the peer will not greet again.
            return claim(cx, record);
        }
        if cx.config.arbiter && (record.is_none() || peer_waits(cx)) {
            cx.retry();
        }
        cx.report(Report::WaitingForPeer(record));
        State::Starting(Self(Phase::Waiting(record)))
    }

    pub(crate) fn waits(&self) -> bool {
        matches!(self.0, Phase::Waiting(_))
    }

    pub(crate) fn step(self, cx: &mut Context, event: Event) -> State {
        match (self.0, event) {
            (Phase::Reading, Event::Answer(Answer::Record(record))) => decide(cx, record),
            // T4.
            (Phase::Claiming(new), Event::Answer(Answer::Won)) => boot(cx, new.generation),
            (
                Phase::Claiming(new),
                Event::Answer(Answer::Lost(record) | Answer::Record(record)),
            ) => {
                // A claim of ours whose answer was lost. A first record may be of an earlier
                // life, though: then it had only vanished for a while, and is claimed anew.
                if record == Some(new)
                    && (new.generation > 1 || cx.config.has(Bug::FirstClaimIsMine))
                {
                    boot(cx, new.generation)
                } else {
                    decide(cx, record)
                }
            }
            (Phase::Claiming(new), Event::Answer(Answer::Failed))
                if cx.config.has(Bug::BootUnclaimed) =>
            {
                boot(cx, new.generation)
            }
            (phase @ (Phase::Reading | Phase::Claiming(_)), Event::Answer(_)) => {
                cx.back_off();
                State::Starting(Self(phase))
            }
            (phase @ (Phase::Reading | Phase::Claiming(_)), Event::Retry) => {
                cx.ask(Request::Read);
                State::Starting(Self(phase))
            }
            // Both are cold, so nothing live is left to protect: who had the right boots (T3).
            (Phase::Waiting(Some(record)), Event::Peer(Status::Cold))
                if record.releaser == cx.config.node
                    && (cx.config.arbiter
                        || cx.link.peer_generation() <= record.generation
                        || cx.config.has(Bug::OlderNoteBoots)) =>
            {
                claim(cx, Some(record))
            }
            // Perhaps what was read was no record, or is old: a swap of an earlier life may have been
            // on its way. Then nobody else would say who boots (T36).
            (
                phase @ Phase::Waiting(_),
                Event::Peer(Status::Cold | Status::Synced { .. }) | Event::Retry,
            ) if cx.config.arbiter && !cx.config.has(Bug::WaitsUnread) => {
                cx.ask(Request::Read);
                State::Starting(Self(phase))
            }
            (Phase::Waiting(_), Event::Answer(Answer::Record(record))) => decide(cx, record),
            (phase @ Phase::Waiting(_), Event::Answer(_)) => {
                cx.back_off();
                State::Starting(Self(phase))
            }
            // T5.
            (Phase::Waiting(_), Event::Message(envelope))
                if envelope.message == Message::SyncBegin =>
            {
                Standby::begin(cx, envelope.generation)
            }
            (Phase::Waiting(_), Event::Message(envelope)) if envelope.message == Message::Bye => {
                peer_guest_ended(cx)
            }
            (phase, Event::Message(envelope)) => {
                out_of_place(cx, envelope.message);
                State::Starting(Self(phase))
            }
            (phase, _) => State::Starting(Self(phase)),
        }
    }
}

/// Whether a twin that starts need not wait for its peer to boot the guest: the record is as R1 or R2 want it.
pub fn claims_at_once(record: Option<Record>, node: NodeId, peer: NodeId) -> bool {
    match record {
        // The lower name comes first.
        None => node < peer,
        // Nobody was named, so nobody holds anything newer.
        Some(record) => record.releaser == node && record.standby.is_none(),
    }
}

/// What the record says (T1, T2).
fn decide(cx: &mut Context, record: Option<Record>) -> State {
    let Config { node, peer, .. } = cx.config;
    let broken = record.is_some_and(|record| {
        record.releaser == node && cx.config.has(Bug::BootBesideNewer)
            || cx.config.has(Bug::ClaimPeersRight)
    });
    if claims_at_once(record, node, peer) || broken {
        return claim(cx, record);
    }
    // The peer runs the guest, or may hold an epoch newer than anything here.
    Starting::wait(cx, record)
}

/// Is the peer there, and no primary? It greets once for each link: what it said may be over.
fn peer_waits(cx: &Context) -> bool {
    matches!(cx.link.peer(), Some(Status::Cold | Status::Synced { .. }))
}

/// Nothing runs before the claim is durable: a guest writes to its disk from the start (I2).
fn claim(cx: &mut Context, expected: Option<Record>) -> State {
    if !cx.config.arbiter {
        let generation = note_claim(cx, expected).generation;
        return boot(cx, generation);
    }
    let new = claim_after(cx, expected);
    cx.ask(Request::Swap { expected, new });
    State::Starting(Starting(Phase::Claiming(new)))
}

/// The record to have after this one.
fn claim_after(cx: &Context, before: Option<Record>) -> Record {
    let generation = before.map_or(1, |record| record.generation.saturating_add(1));
    Record::solo(generation, cx.config.node)
}

/// Without an arbiter: has it, durably.
fn note_claim(cx: &mut Context, before: Option<Record>) -> Record {
    let new = claim_after(cx, before);
    cx.note(new);
    new
}

fn boot(cx: &mut Context, generation: u64) -> State {
    Lapsing::begin(cx, How::Boot, generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_need_not_wait_claims_at_once() {
        let [a, b]: [NodeId; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        assert!(claims_at_once(None, a, b) && !claims_at_once(None, b, a));
        let alone = Some(Record::solo(3, b));
        assert!(claims_at_once(alone, b, a) && !claims_at_once(alone, a, b));
        let pair = Some(Record::protected(3, b, a));
        assert!(!claims_at_once(pair, b, a) && !claims_at_once(pair, a, b));
    }
}
