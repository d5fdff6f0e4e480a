//! What reached the guest from outside, kept for the twin.
//!
//! A frame that the guest took in an epoch that never commits would be lost with its host,
//! and its sender would only notice after a timeout of its own (200 ms and more for TCP).
//! So frames are copied to the standby as they come in, and a promoted twin gives the guest
//! those that are in no committed epoch. Losing one here is no worse than losing it on the
//! wire, so everything is bounded.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::lock;

/// Most bytes of frames recorded in one epoch: its first ones. A sender whose first frames
/// are answered finds out about the others by itself.
pub const EPOCH_BYTES: usize = 256 << 10;

/// Charged for each frame besides its bytes, so that tiny ones are bounded as well.
const FRAME_OVERHEAD: usize = 64;

/// A frame that was given to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundFrame {
    /// Number of the network card, as in the config.
    pub card: u32,
    /// The epoch in which the guest got it.
    pub epoch: u64,
    /// The frame as it came from the TAP, with its header.
    pub bytes: Vec<u8>,
}

#[derive(Default)]
struct State {
    recording: bool,
    epoch: u64,
    /// Bytes recorded in this epoch.
    bytes: usize,
    frames: Vec<InboundFrame>,
}

/// Collects frames until somebody takes them. One per VM.
pub struct InboundLog {
    state: Mutex<State>,
    waiting: EventFd,
}

impl InboundLog {
    /// A log that records nothing yet.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            state: Mutex::default(),
            waiting: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        }))
    }

    /// Starts or stops recording, and forgets what was recorded before.
    pub fn record(&self, on: bool) {
        *lock(&self.state) = State {
            recording: on,
            ..State::default()
        };
    }

    /// The guest is about to get a frame from a network card.
    pub fn push(&self, card: u32, frame: &[u8]) {
        let mut state = lock(&self.state);
        let cost = frame.len() + FRAME_OVERHEAD;
        if !state.recording || state.bytes + cost > EPOCH_BYTES {
            return;
        }
        state.bytes += cost;
        let epoch = state.epoch;
        state.frames.push(InboundFrame {
            card,
            epoch,
            bytes: frame.to_vec(),
        });
        if state.frames.len() == 1 {
            // Its counter can't overflow: it grows once per taking.
            let _ = self.waiting.write(1);
        }
    }

    /// `epoch` ends here: what comes now belongs to the one after it.
    pub fn seal(&self, epoch: u64) {
        let mut state = lock(&self.state);
        state.epoch = epoch + 1;
        state.bytes = 0;
    }

    /// Takes what was recorded since the last time, in order.
    pub fn take(&self) -> Vec<InboundFrame> {
        std::mem::take(&mut lock(&self.state).frames)
    }

    /// An eventfd, written when there is something to take after there was nothing.
    pub fn waiting(&self) -> RawFd {
        self.waiting.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_the_epoch_in_which_they_came() {
        let log = InboundLog::new().unwrap();
        log.push(0, b"before anything is recorded");
        log.record(true);
        log.seal(4);
        log.push(0, b"one");
        log.seal(5);
        log.push(1, b"two");
        let frame = |card, epoch, bytes: &[u8]| InboundFrame {
            card,
            epoch,
            bytes: bytes.to_vec(),
        };
        assert_eq!(log.take(), [frame(0, 5, b"one"), frame(1, 6, b"two")]);
        // Two frames, taken together: one wake-up.
        assert_eq!(log.waiting.read().unwrap(), 1);
        log.push(0, b"three");
        assert_eq!(log.waiting.read().unwrap(), 1);
        log.record(false);
        log.push(0, b"after it");
        assert_eq!(log.take(), []);
    }

    #[test]
    fn an_epoch_keeps_its_first_frames_only() {
        let log = InboundLog::new().unwrap();
        log.record(true);
        let frame = vec![7; EPOCH_BYTES / 2 - FRAME_OVERHEAD];
        for _ in 0..5 {
            log.push(0, &frame);
        }
        assert_eq!(log.take().len(), 2);
        log.push(0, &frame);
        assert_eq!(
            log.take(),
            [],
            "taking does not make room: the epoch's end does"
        );
        log.seal(1);
        log.push(0, &frame);
        assert_eq!(log.take().len(), 1);
    }
}
