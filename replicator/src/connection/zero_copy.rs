//! Sends that the card takes from where the bytes are, and what is kept for it meanwhile.
//!
//! Such a send ends twice: when the socket has taken the bytes, so that the next send may begin, and, a network's round trip
//! later, when the kernel has let go of them. Until then the *batch* of frames or records that they belong to is held here.
//!
//! Where packets end on the same host the kernel has to copy after all, later and at a higher price: over the loopback and
//! over veth a link that insists on this is a quarter to a half slower. The kernel tells, and is then spared the detour.

#[cfg(test)]
mod tests;

use tracing::debug;

use super::channel::Channel;
use crate::ring::{Buffer, Completion, Ring};
use crate::wire::Frame;

/// Fewest bytes that are not copied: the pages of fewer cost as much to hold as to copy. The kernel's documentation of
/// MSG_ZEROCOPY puts the balance at 10 KB.
const FEWEST_BYTES: usize = 32 * 1024;

/// Most bytes that are held at a time; what goes meanwhile is copied. As much as a socket of Linux holds by default.
const HELD_BYTES: usize = 4 << 20;

/// Most batches that are held at a time.
const HELD: usize = 16;

/// After so many batches in a row that the kernel had to copy after all (on the loopback, to a TAP, through a card that
/// can't gather), it is not asked again.
const COPIES: u8 = 3;

/// Errors that a send with copying need not have: this socket can't, or the limit on locked memory is reached.
const REFUSALS: [i32; 4] = [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOMEM, libc::ENOBUFS];

/// What a batch consists of. Nobody but the kernel looks at it any more.
pub(super) enum Cargo {
    Frames { _frames: Vec<Frame> },
    Records { _buffer: Buffer },
}

/// When sends are not copied.
enum Policy {
    /// One at a time, as long as each was copied after all: so many in a row.
    Tried(u8),
    /// The network takes bytes from where they are.
    Proven,
    /// Not at all.
    Never,
    /// Whatever the kernel says.
    #[cfg(test)]
    Always,
}

/// The zero-copy sends of one connection.
pub(super) struct ZeroCopy {
    policy: Policy,
    /// Number of the batch that is being sent, if it has anything outstanding.
    batch: u8,
    /// How long that batch is.
    bytes: usize,
    /// Notifications that are to come for it.
    outstanding: u32,
    /// A zero-copy send is under way.
    sending: bool,
    /// Batches that were sent.
    held: Vec<Held>,
    /// Takes the place of a buffer that will be held.
    spare: Option<Buffer>,
}

struct Held {
    batch: u8,
    outstanding: u32,
    bytes: usize,
    _cargo: Cargo,
}

impl Default for ZeroCopy {
    fn default() -> Self {
        Self {
            policy: Policy::Tried(0),
            batch: 0,
            bytes: 0,
            outstanding: 0,
            sending: false,
            held: Vec::new(),
            spare: None,
        }
    }
}

impl ZeroCopy {
    /// Is the send that begins, of so many bytes from the channel, not to be copied? Then it belongs to the batch with
    /// this number, and must be submitted.
    pub(super) fn begin(&mut self, bytes: usize, channel: &Channel, ring: &mut Ring) -> Option<u8> {
        let proven = match self.policy {
            Policy::Never => return None,
            Policy::Tried(_) => false,
            _ => true,
        };
        let held: usize = self.held.iter().map(|held| held.bytes).sum();
        let full = self.held.len() >= HELD || held + bytes > HELD_BYTES;
        if bytes < FEWEST_BYTES || full || (!proven && self.waits()) || !ring.zero_copy {
            return None;
        }
        if channel.has_buffer() && self.spare.is_none() {
            // None is registered for a network that may have no use for it.
            self.spare = Some(if proven {
                ring.take_buffer()?
            } else {
                Buffer::unregistered()
            });
        }
        if self.outstanding == 0 {
            let held = |number| self.held.iter().any(|held| held.batch == number);
            self.batch = (0..=u8::MAX).find(|number| !held(*number))?;
            self.bytes = bytes;
        }
        self.outstanding += 1;
        self.sending = true;
        Some(self.batch)
    }

    /// A send has its result. True if the kernel will not send without copying: nothing was sent then.
    pub(super) fn ended(&mut self, completion: &Completion) -> bool {
        if !std::mem::take(&mut self.sending) {
            return false;
        }
        if !completion.more {
            self.outstanding = self.outstanding.saturating_sub(1);
        }
        let refused = REFUSALS.contains(&completion.result.wrapping_neg());
        if refused {
            self.policy = Policy::Never;
        }
        refused
    }

    /// The channel's batch was sent to its end: what the kernel still has of it is held.
    pub(super) fn passed(&mut self, channel: &mut Channel) {
        if self.outstanding == 0 {
            return channel.clear();
        }
        self.held.push(Held {
            batch: self.batch,
            outstanding: std::mem::take(&mut self.outstanding),
            bytes: self.bytes,
            _cargo: channel.give(self.spare.take()),
        });
    }

    /// A notification has come.
    pub(super) fn notified(&mut self, completion: &Completion) {
        let batch = completion.batch;
        if self.outstanding > 0 && self.batch == batch {
            self.outstanding -= 1;
        } else if let Some(at) = self.held.iter().position(|held| held.batch == batch) {
            self.held[at].outstanding -= 1;
            if self.held[at].outstanding == 0 {
                self.held.swap_remove(at);
            }
        }
        self.policy = match (&self.policy, completion.copied()) {
            (Policy::Tried(_), false) => Policy::Proven,
            (Policy::Proven, true) => Policy::Tried(1),
            (Policy::Tried(copies), true) if copies + 1 < COPIES => Policy::Tried(copies + 1),
            (Policy::Tried(_), true) => {
                debug!("the network copies what is sent; it is copied beforehand");
                Policy::Never
            }
            _ => return,
        };
    }

    /// Has the kernel bytes that it was to take from where they are?
    pub(super) fn waits(&self) -> bool {
        self.outstanding > 0 || !self.held.is_empty()
    }
}
