//! Frames on their way out, and frames found in what came in.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::WireError;
use super::header::{HEADER_LEN, Header, Kind, MAX_PAYLOAD};
use super::packed::unpack;
use crate::give_back;
use crate::machine::Capture;

/// Bytes of the longest frame.
pub(crate) const MAX_FRAME: usize = HEADER_LEN + MAX_PAYLOAD as usize;

/// A frame to be sent: the head holds the header and the payload's start, the body the rest.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) head: Vec<u8>,
    pub(crate) body: Body,
}

/// Bytes of a captured epoch that are sent from where they are.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    None,
    Pages(Arc<Capture>, Range<usize>),
    State(Arc<Capture>, Range<usize>),
    /// The bytes of a disk write, and a range of them.
    Disk(Bytes, Range<usize>),
}

impl Body {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Pages(capture, range) => &capture.bytes[range.clone()],
            Self::State(capture, range) => &capture.state[range.clone()],
            Self::Disk(bytes, range) => &bytes[range.clone()],
        }
    }
}

impl Frame {
    /// A frame whose whole payload is at hand.
    pub(crate) fn new(kind: Kind, generation: u64, epoch: u64, payload: &[u8]) -> Self {
        let mut head = Vec::with_capacity(HEADER_LEN + payload.len());
        head.resize(HEADER_LEN, 0);
        head.extend_from_slice(payload);
        Self::seal(head, kind, generation, epoch, Body::None).0
    }

    /// A frame from a head with room for its header. Returns its checksum, too.
    pub(crate) fn seal(
        mut head: Vec<u8>,
        kind: Kind,
        generation: u64,
        epoch: u64,
        body: Body,
    ) -> (Self, u64) {
        let checksum = Header::seal(&mut head, kind, generation, epoch, body.bytes());
        (Self { head, body }, checksum)
    }

    /// Its bytes, in two pieces.
    pub(crate) fn parts(&self) -> [&[u8]; 2] {
        [&self.head, self.body.bytes()]
    }

    pub(crate) fn len(&self) -> usize {
        self.head.len() + self.body.bytes().len()
    }
}

/// Bytes received and not used yet. Has room for a few frames, and never grows.
#[derive(Debug)]
pub(crate) struct FrameReader {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Of the packed frame that was taken last.
    unpacked: Vec<u8>,
}

impl FrameReader {
    const CAPACITY: usize = 4 * MAX_FRAME;

    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; Self::CAPACITY].into_boxed_slice(),
            start: 0,
            end: 0,
            unpacked: Vec::new(),
        }
    }

    /// A reader without room, to stand in for one that is in use.
    pub(crate) fn empty() -> Self {
        Self {
            buffer: Box::default(),
            start: 0,
            end: 0,
            unpacked: Vec::new(),
        }
    }

    /// Room for what is received next: for a frame at least, once all whole frames were taken.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < MAX_FRAME {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Gives back the memory of what was taken from it.
    pub(crate) fn give_back_memory(&mut self) {
        if self.start == self.end {
            give_back::pages_of(&mut self.buffer);
        }
        self.unpacked = Vec::new();
    }

    /// Adds bytes that came by another way than the room.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let room = self.room().get_mut(..bytes.len());
        room.ok_or("more was received than there is room for")?
            .copy_from_slice(bytes);
        self.filled(bytes.len());
        Ok(())
    }

    /// `len` bytes were put into the room.
    pub(crate) fn filled(&mut self, len: usize) {
        self.end = (self.end + len).min(self.buffer.len());
    }

    /// True when the connection would be cut within a frame.
    pub(crate) fn torn(&self) -> bool {
        self.start < self.end
    }

    /// The next whole frame, verified; of a packed one, the frame in it.
    pub(crate) fn next(&mut self) -> Result<Option<(Header, &[u8])>, WireError> {
        let have = &self.buffer[self.start..self.end];
        // A record of TLS (RFC 8446, 5.1), which may be shorter than a header.
        if let [20..=23, 3, ..] = have {
            return Err(WireError::Tls);
        }
        let Some((head, rest)) = have.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let header = Header::decode(head)?;
        let Some(payload) = rest.get(..header.len as usize) else {
            return Ok(None);
        };
        header.verify(head, payload)?;
        self.start += HEADER_LEN + payload.len();
        if header.kind == Kind::Packed {
            let inner = unpack(&header, payload, &mut self.unpacked)?;
            return Ok(Some((inner, &self.unpacked)));
        }
        Ok(Some((header, payload)))
    }
}
