//! Frames from the network that are in no committed epoch yet.
//!
//! The primary passes them on as they come. If it dies, its guest's memory of them dies with
//! it, and their senders would wait for a timeout of theirs before they try again: so the
//! promoted twin gives them to the guest once more. A network may lose and repeat frames,
//! so nothing here is acknowledged.

use std::time::{Duration, Instant};

use evertwin_protocol::Role;

use super::Driver;
use crate::machine::InboundFrame;
use crate::wire::{Header, Kind, WireError, inbound, inbound_frame};

/// Most bytes that a standby keeps.
const KEPT_BYTES: usize = 4 << 20;

/// Charged for each frame besides its bytes, so that tiny ones are bounded as well.
const FRAME_OVERHEAD: usize = 64;

/// How long what comes for a guest is passed on after it was handed over. Its announcement takes
/// that long at most to reach the switches and neighbours.
const FORWARD: Duration = Duration::from_millis(300);

/// What a standby keeps, in the order in which the guest got it.
#[derive(Default)]
pub(super) struct Kept {
    frames: Vec<InboundFrame>,
    bytes: usize,
    /// The last epoch whose frames the guest's state has.
    through: u64,
}

impl Kept {
    fn keep(&mut self, frame: InboundFrame) {
        let cost = frame.bytes.len() + FRAME_OVERHEAD;
        // One that comes behind its own epoch is of no use.
        if frame.epoch > self.through && self.bytes + cost <= KEPT_BYTES {
            self.bytes += cost;
            self.frames.push(frame);
        }
    }

    /// The guest's state has the frames of all epochs up to this one.
    pub(super) fn committed(&mut self, epoch: u64) {
        self.through = epoch;
        self.frames.retain(|frame| frame.epoch > epoch);
        let costs = self
            .frames
            .iter()
            .map(|frame| frame.bytes.len() + FRAME_OVERHEAD);
        self.bytes = costs.sum();
    }

    /// What the last committed epoch does not have.
    pub(super) fn take(&mut self) -> Vec<InboundFrame> {
        std::mem::take(self).frames
    }
}

impl Driver<'_> {
    /// The guest got frames from the network.
    pub(super) fn pass_inbound(&mut self) {
        let frames = self.machine.take_inbound();
        let passes = match self.twin.role() {
            // Before the first epoch is captured, that epoch will have them.
            Role::Naming | Role::Protected | Role::HandingOver => true,
            // The network may not know yet where the guest is now.
            _ => self.forward_until.is_some(),
        };
        if passes {
            let generation = self.twin.generation();
            for frame in &frames {
                self.queue(inbound_frame(generation, frame));
            }
        }
    }

    /// The guest was handed over: what comes for it here is passed on for a while.
    pub(super) fn forward_for_a_while(&mut self) {
        self.forward_until = Some(Instant::now() + FORWARD);
    }

    /// Ends that when it is time.
    pub(super) fn forward_no_longer(&mut self) {
        if self.forward_until.is_some_and(|at| at <= Instant::now()) {
            self.forward_until = None;
            self.machine.stop_forwarding();
        }
    }

    /// A frame that the guest got at the primary, or that came for a guest that was handed over.
    pub(super) fn take_in(&mut self, header: Header, payload: &[u8]) -> Result<(), WireError> {
        let (ours, theirs) = (self.twin.generation(), header.generation);
        let handed_over = match self.twin.role() {
            Role::Filling | Role::Synced | Role::Promoting if theirs == ours => false,
            // Who handed it over may not have heard that it was taken.
            Role::Protected if theirs == ours || theirs + 1 == ours => true,
            // The guest that they are for moves on already: they are lost, as on a wire.
            Role::HandingOver if theirs == ours || theirs + 1 == ours => return Ok(()),
            _ => return Err(WireError::OutOfPlace(Kind::Inbound)),
        };
        // Breaks no invariant, but takes away what can hide a broken one: repeated requests.
        fail::fail_point!("inbound::skip", |_| Ok(()));
        let frame = inbound(header.epoch, payload).ok_or(WireError::Malformed(Kind::Inbound))?;
        if handed_over {
            self.machine.receive(vec![frame]);
        } else {
            self.kept.keep(frame);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(epoch: u64, len: usize) -> InboundFrame {
        InboundFrame {
            card: 0,
            epoch,
            bytes: vec![0; len],
        }
    }

    #[test]
    fn what_has_committed_is_not_given_again() {
        let mut kept = Kept::default();
        for epoch in [3, 3, 4, 6] {
            kept.keep(frame(epoch, 100));
        }
        kept.committed(3);
        kept.keep(frame(3, 50));
        assert_eq!(kept.take(), [frame(4, 100), frame(6, 100)]);
        assert_eq!(kept.take(), []);
    }

    #[test]
    fn a_peer_can_not_fill_the_memory() {
        let mut kept = Kept::default();
        for _ in 0..100 {
            kept.keep(frame(1, KEPT_BYTES / 4 - FRAME_OVERHEAD));
        }
        assert_eq!(kept.frames.len(), 4);
        kept.committed(1);
        kept.keep(frame(2, KEPT_BYTES - FRAME_OVERHEAD));
        assert_eq!(kept.take().len(), 1);
    }
}
