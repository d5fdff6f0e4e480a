//! Sending frames as they are, from where they are.

use std::collections::VecDeque;

use super::{Queue, SEND_BYTES};
use crate::wire::Frame;

/// Most frames in one send: two vectors each, 1024 are allowed.
const SEND_FRAMES: usize = 256;

/// Frames on their way.
#[derive(Default)]
pub(super) struct Plain {
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that were sent before.
    sent: usize,
}

impl Plain {
    /// Takes the frames that go next, once all earlier ones were sent.
    pub(super) fn gather(&mut self, queue: &mut Queue) {
        let mut bytes = 0;
        while bytes < SEND_BYTES && self.frames.len() < SEND_FRAMES {
            let Some(frame) = queue.pop() else {
                break;
            };
            bytes += frame.len();
            self.frames.push_back(frame);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
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
        self.sent += len;
        while let Some(frame) = self.frames.front() {
            if self.sent < frame.len() {
                break;
            }
            self.sent -= frame.len();
            self.frames.pop_front();
        }
    }
}
