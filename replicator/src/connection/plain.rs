//! Sending frames as they are, from where they are.

use super::{Queue, SEND_BYTES};
use crate::wire::Frame;

/// Most frames in one send: two vectors each, 1024 are allowed.
const SEND_FRAMES: usize = 256;

/// Frames on their way. All are kept until the last of them was sent.
#[derive(Default)]
pub(super) struct Plain {
    frames: Vec<Frame>,
    bytes: usize,
    sent: usize,
}

impl Plain {
    /// Takes the frames that go next, once all earlier ones were sent.
    pub(super) fn gather(&mut self, queue: &mut Queue) {
        while self.bytes < SEND_BYTES && self.frames.len() < SEND_FRAMES {
            let Some(frame) = queue.pop() else {
                break;
            };
            self.bytes += frame.len();
            self.frames.push(frame);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn unsent_bytes(&self) -> usize {
        self.bytes - self.sent
    }

    /// What is still to be sent.
    pub(super) fn unsent(&self) -> impl Iterator<Item = &[u8]> {
        let mut skip = self.sent;
        self.frames.iter().flat_map(Frame::parts).map(move |part| {
            let passed = skip.min(part.len());
            skip -= passed;
            &part[passed..]
        })
    }

    pub(super) fn sent(&mut self, len: usize) {
        self.sent = (self.sent + len).min(self.bytes);
    }

    /// The frames, once all were sent.
    pub(super) fn take(&mut self) -> Vec<Frame> {
        (self.bytes, self.sent) = (0, 0);
        std::mem::take(&mut self.frames)
    }
}
