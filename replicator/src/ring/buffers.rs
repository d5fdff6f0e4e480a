//! Buffers that zero-copy sends leave from, registered with the ring: the kernel looks their pages up once, not for
//! each send.
//!
//! Only sends have them. A receive copies from the socket in any case, and a registered buffer saves it nothing.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use io_uring::Submitter;
use tracing::debug;

/// Bytes of a buffer.
pub(crate) const BUFFER_BYTES: usize = 800 * 1024;

/// Most buffers that a ring has. Together they stay below 8 MiB, which is what Linux lets a user lock by default; but one
/// that lies in huge pages counts as all of those.
const BUFFERS: u16 = 8;

/// A buffer of fixed length. One from a pool goes back there when it is dropped.
pub(crate) struct Buffer {
    memory: Memory,
    home: Option<Home>,
}

/// Memory that is registered stays where it is as long as its ring.
#[derive(Default)]
struct Memory {
    bytes: Box<[u8]>,
    index: Option<u16>,
}

type Home = Arc<Mutex<Vec<Memory>>>;

impl Buffer {
    /// A buffer of no pool.
    pub(crate) fn unregistered() -> Self {
        Self {
            memory: Memory::new(),
            home: None,
        }
    }

    /// By which the ring knows it.
    pub(crate) fn index(&self) -> Option<u16> {
        self.memory.index
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            let memory = std::mem::take(&mut self.memory);
            let mut spare = home.lock().unwrap_or_else(PoisonError::into_inner);
            spare.push(memory);
        }
    }
}

impl Memory {
    fn new() -> Self {
        Self {
            // Pages that are never used cost nothing.
            bytes: vec![0; BUFFER_BYTES].into_boxed_slice(),
            index: None,
        }
    }
}

/// The buffers of a ring. They are made when they are first needed.
#[derive(Default)]
pub(super) struct Pool {
    spare: Home,
    made: u16,
    limit: Limit,
}

/// How far the kernel lets us register buffers.
#[derive(Default, PartialEq)]
enum Limit {
    /// As far as is known, as many as there may be.
    #[default]
    Unknown,
    /// Not at all: none is registered.
    None,
    /// No more than there are. Unregistered ones would hit the same limit.
    Reached,
}

impl Pool {
    /// A buffer that nobody uses, registered if the kernel lets us.
    pub(super) fn take(&mut self, ring: &Submitter<'_>) -> Option<Buffer> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = spare.pop().or_else(|| {
            if self.made == BUFFERS || self.limit == Limit::Reached {
                return None;
            }
            let mut memory = Memory::new();
            if self.limit == Limit::Unknown {
                match register(ring, self.made, &mut memory.bytes) {
                    Ok(()) => memory.index = Some(self.made),
                    Err(error) => {
                        debug!(%error, registered = self.made, "no more buffers are registered");
                        if self.made > 0 {
                            self.limit = Limit::Reached;
                            return None;
                        }
                        self.limit = Limit::None;
                    }
                }
            }
            self.made += 1;
            Some(memory)
        })?;
        Some(Buffer {
            memory,
            home: Some(self.spare.clone()),
        })
    }
}

#[allow(unsafe_code)]
fn register(ring: &Submitter<'_>, index: u16, bytes: &mut [u8]) -> io::Result<()> {
    if index == 0 {
        ring.register_buffers_sparse(u32::from(BUFFERS))?;
    }
    let vector = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the bytes are on the heap, and only freed with the pool: a `Buffer` gives them back when it is dropped. The
    // pool goes after its ring.
    unsafe { ring.register_buffers_update(u32::from(index), &[vector], None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_lent_to_one_at_a_time() {
        let ring = io_uring::IoUring::new(2).expect("a ring");
        let mut pool = Pool::default();
        let mut lent: Vec<_> = std::iter::from_fn(|| pool.take(&ring.submitter()))
            .take(100)
            .collect();
        // As many as there may be, or as may be locked.
        assert!((1..=usize::from(BUFFERS)).contains(&lent.len()));
        let mut starts: Vec<_> = lent.iter().map(|buffer| buffer.as_ptr()).collect();
        starts.sort();
        starts.dedup();
        assert_eq!(starts.len(), lent.len());
        let mut indices: Vec<_> = lent.iter().filter_map(Buffer::index).collect();
        indices.sort();
        indices.dedup();
        let registered = lent
            .iter()
            .filter(|buffer| buffer.index().is_some())
            .count();
        assert_eq!(indices.len(), registered);
        assert!(registered == lent.len() || registered == 0);
        let back = lent.swap_remove(0);
        let (start, index) = (back.as_ptr(), back.index());
        assert!(pool.take(&ring.submitter()).is_none());
        drop(back);
        let again = pool.take(&ring.submitter()).expect("it is back");
        assert_eq!((again.as_ptr(), again.index()), (start, index));
        assert!(pool.take(&ring.submitter()).is_none());
    }
}
