//! The disk side: operations on an image through io_uring.
//!
//! The kernel works on buffers that this module owns, never on guest memory, so that a
//! checkpoint can't catch it half way (I3).
#![allow(unsafe_code)] // io_uring takes raw pointers; see the SAFETY comments.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{IoUring, types};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::image::DiskImage;
use super::operation::{Effect, Operation, Slot};

/// Most operations in flight.
pub(super) const DEPTH: usize = 256;

/// A finished operation.
pub(super) struct Finished {
    pub(super) token: u64,
    pub(super) operation: Operation,
    pub(super) result: io::Result<Effect>,
}

/// An image and the operations in flight on it.
pub(super) struct DiskRing {
    ring: IoUring,
    image: DiskImage,
    event: EventFd,
    slots: BTreeMap<u64, Slot>,
    /// Finished, and not asked for yet.
    waited_for: Vec<Finished>,
}

impl DiskRing {
    pub(super) fn new(image: DiskImage) -> io::Result<Self> {
        let ring = IoUring::new(DEPTH as u32)?;
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            ring,
            image,
            event,
            slots: BTreeMap::new(),
            waited_for: Vec::new(),
        })
    }

    pub(super) fn image(&self) -> &DiskImage {
        &self.image
    }

    pub(super) fn image_mut(&mut self) -> &mut DiskImage {
        &mut self.image
    }

    /// Readable when operations have finished.
    pub(super) fn event_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Queues an operation under a token that is not in use; [`Self::submit`] starts it.
    pub(super) fn push(&mut self, token: u64, operation: Operation) {
        self.slots.insert(token, Slot::new(operation));
        self.start(token);
    }

    /// Has the device look for what is finished.
    pub(super) fn wake(&self) {
        let _ = self.event.write(1);
    }

    /// True when [`Self::finished`] has something to give.
    pub(super) fn has_finished(&mut self) -> bool {
        !self.waited_for.is_empty() || !self.ring.completion().is_empty()
    }

    /// Waits until nothing is under way. [`Self::finished`] gives what has finished meanwhile.
    pub(super) fn wait_until_idle(&mut self) -> io::Result<()> {
        while !self.slots.is_empty() {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {
                    let finished = self.take_finished();
                    self.waited_for.extend(finished);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if !self.waited_for.is_empty() {
            self.wake();
        }
        Ok(())
    }

    /// Starts what was queued.
    pub(super) fn submit(&mut self) {
        if self.ring.submission().is_empty() {
            return;
        }
        if let Err(error) = self.ring.submit()
            && error.kind() != io::ErrorKind::Interrupted
        {
            tracing::debug!(%error, "disk operations can't be started yet");
        }
        if !self.ring.submission().is_empty() {
            // The kernel is short of something: come back after other events.
            let _ = self.event.write(1);
        }
    }

    /// Takes what has finished. Also starts again what the kernel cut short.
    pub(super) fn finished(&mut self) -> Vec<Finished> {
        let _ = self.event.read();
        let mut finished = std::mem::take(&mut self.waited_for);
        finished.extend(self.take_finished());
        finished
    }

    fn take_finished(&mut self) -> Vec<Finished> {
        let mut finished = Vec::new();
        let mut again = Vec::new();
        let completions: Vec<(u64, i32)> = self
            .ring
            .completion()
            .map(|entry| (entry.user_data(), entry.result()))
            .collect();
        for (token, result) in completions {
            let Some(slot) = self.slots.get_mut(&token) else {
                continue;
            };
            if let Some(result) = slot.settle(result) {
                if let Some(slot) = self.slots.remove(&token) {
                    finished.push(Finished {
                        token,
                        operation: slot.operation,
                        result,
                    });
                }
            } else {
                again.push(token);
            }
        }
        for token in again {
            self.start(token);
        }
        self.submit();
        finished
    }

    fn start(&mut self, token: u64) {
        let Some(slot) = self.slots.get_mut(&token) else {
            return;
        };
        let entry = slot.entry(types::Fd(self.image.guests_file().as_raw_fd()));
        let entry = entry.user_data(token);
        // SAFETY: the entry points into the slot's own buffer, which does not move and lives
        // until its completion has been taken: `finished` removes the slot, `drop` waits.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // The queue is as deep as the most operations in flight, so it is full of
            // entries not yet handed over. If the kernel can't take them now, it can soon.
            if let Err(error) = self.ring.submit() {
                tracing::debug!(%error, "disk operations can't be started yet");
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for DiskRing {
    fn drop(&mut self) {
        if let Err(error) = self.wait_until_idle() {
            // The kernel may still write to the buffers: never free them.
            tracing::error!(%error, "disk operations can't be waited for");
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}
