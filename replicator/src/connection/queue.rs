//! Frames that wait to be sent.

use std::collections::VecDeque;

use crate::wire::Frame;

/// Frames of control overtake bulk frames.
#[derive(Default)]
pub(crate) struct Queue {
    control: VecDeque<Frame>,
    bulk: VecDeque<Frame>,
    bulk_bytes: usize,
}

impl Queue {
    pub(crate) fn push_control(&mut self, frame: Frame) {
        self.control.push_back(frame);
    }

    pub(crate) fn push_bulk(&mut self, frame: Frame) {
        self.bulk_bytes += frame.len();
        self.bulk.push_back(frame);
    }

    /// Bytes of bulk frames.
    pub(crate) fn bulk_bytes(&self) -> usize {
        self.bulk_bytes
    }

    pub(crate) fn drop_bulk(&mut self) {
        self.bulk.clear();
        self.bulk_bytes = 0;
    }

    pub(crate) fn clear(&mut self) {
        self.control.clear();
        self.drop_bulk();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.control.is_empty() && self.bulk.is_empty()
    }

    /// The frame that goes next.
    pub(crate) fn pop(&mut self) -> Option<Frame> {
        let control = self.control.pop_front();
        control.or_else(|| {
            let frame = self.bulk.pop_front()?;
            self.bulk_bytes -= frame.len();
            Some(frame)
        })
    }
}
