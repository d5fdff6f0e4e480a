//! How frames become bytes on the wire.

use super::Queue;
use super::message::Message;
use super::plain::Plain;
use super::zero_copy::Cargo;
use crate::ring::{Buffer, Parts};
use crate::tls::{Session, TlsError};

pub(super) enum Channel {
    Plain(Plain),
    Tls(Box<Session>),
}

impl Channel {
    pub(super) fn new(session: Option<Session>) -> Self {
        match session {
            Some(session) => Self::Tls(Box::new(session)),
            None => Self::Plain(Plain::default()),
        }
    }

    /// Takes from the queue what goes next, once all earlier was sent.
    pub(super) fn fill(&mut self, queue: &mut Queue) -> Result<(), TlsError> {
        match self {
            Self::Plain(plain) if plain.is_empty() => plain.gather(queue),
            Self::Tls(session) if session.unsent().is_empty() => session.seal(queue)?,
            _ => {}
        }
        Ok(())
    }

    /// Bytes that were taken from the queue and are still to be sent.
    pub(super) fn unsent_bytes(&self) -> usize {
        match self {
            Self::Plain(plain) => plain.unsent_bytes(),
            Self::Tls(session) => session.unsent().len(),
        }
    }

    /// Points the message to them.
    pub(super) fn point(&self, message: &mut Message) -> *const libc::msghdr {
        match self {
            Self::Plain(plain) => message.point(plain.unsent()),
            Self::Tls(session) => message.point(std::iter::once(session.unsent())),
        }
    }

    /// Where they are in a buffer that the ring knows, or else the message that points to them.
    pub(super) fn parts(&self, message: &mut Message) -> Parts {
        if let Self::Tls(session) = self
            && let Some(index) = session.buffer().index()
        {
            let unsent = session.unsent();
            let (at, len) = (unsent.as_ptr(), unsent.len() as u32);
            return Parts::Registered { at, len, index };
        }
        Parts::Message(self.point(message))
    }

    /// The socket took so many of them.
    pub(super) fn sent(&mut self, len: usize) {
        match self {
            Self::Plain(plain) => plain.sent(len),
            Self::Tls(session) => session.sent(len),
        }
    }

    /// Do bytes have to be put somewhere else than frames are?
    pub(super) fn has_buffer(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Gives away what was sent, all of it; a buffer is replaced by the spare one.
    pub(super) fn give(&mut self, spare: Option<Buffer>) -> Cargo {
        match self {
            Self::Plain(plain) => Cargo::Frames {
                _frames: plain.take(),
            },
            Self::Tls(session) => {
                let spare = spare.unwrap_or_else(Buffer::unregistered);
                let _buffer = session.exchange(spare);
                Cargo::Records { _buffer }
            }
        }
    }

    /// Drops frames that were sent, all of them.
    pub(super) fn clear(&mut self) {
        if let Self::Plain(plain) = self {
            plain.take();
        }
    }

    /// Is nothing left of what was taken from the queue, and of TLS's own words?
    pub(super) fn is_flushed(&self) -> bool {
        match self {
            Self::Plain(plain) => plain.is_empty(),
            Self::Tls(session) => session.is_flushed(),
        }
    }

    /// The engine that seals frames, if there is one.
    pub(super) fn session(&self) -> Option<&Session> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(session) => Some(session),
        }
    }
}
