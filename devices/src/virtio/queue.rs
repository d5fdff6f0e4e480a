//! One virtqueue: its registers and its position in the rings (virtio 1.2, 2.7).

use std::ops::Deref;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use super::chain::{Chain, Table};
use super::{Broken, QueueState, RestoreError};
use crate::GuestMemory;

/// Bytes of a ring before its entries: flags and index (virtio 1.2, 2.7.6 and 2.7.8).
const AVAIL_HEADER_BYTES: u64 = 4;
const USED_HEADER_BYTES: u64 = 4;
/// Bytes of an entry of the used ring: head and length (2.7.8).
const USED_ELEMENT_BYTES: u64 = 8;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (virtio 1.2, 2.7.6).
const AVAIL_NO_INTERRUPT: u16 = 1;

/// A virtqueue as the guest's driver sets it up and uses it.
#[derive(Debug)]
pub(crate) struct VirtQueue {
    index: usize,
    max_size: u16,
    /// What the guest wrote to the queue's registers; used when it says the queue is ready.
    pub(crate) setup: Setup,
    indirect: bool,
    /// Chains given back since the guest was last considered for an interrupt.
    completed: u16,
    live: Option<Queue>,
}

/// A queue's registers (virtio 1.2, 4.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) size: u32,
    pub(crate) descriptors: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
}

impl Setup {
    fn new(max_size: u16) -> Self {
        Self {
            size: u32::from(max_size),
            descriptors: 0,
            driver: 0,
            device: 0,
        }
    }
}

impl VirtQueue {
    pub(crate) fn new(index: usize, max_size: u16) -> Self {
        Self {
            index,
            max_size,
            setup: Setup::new(max_size),
            indirect: false,
            completed: 0,
            live: None,
        }
    }

    pub(crate) fn max_size(&self) -> u16 {
        self.max_size
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.live.is_some()
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.index, self.max_size);
    }

    /// The guest says that the queue is ready to use.
    pub(crate) fn enable(
        &mut self,
        mem: &GuestMemory,
        event_idx: bool,
        indirect: bool,
    ) -> Result<(), Broken> {
        let state = virtio_queue::QueueState {
            max_size: self.max_size,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: event_idx,
            size: u16::try_from(self.setup.size).map_err(|_| Broken::QueueSetup(self.index))?,
            ready: true,
            desc_table: self.setup.descriptors,
            avail_ring: self.setup.driver,
            used_ring: self.setup.device,
        };
        self.live = Some(checked(mem, state).ok_or(Broken::QueueSetup(self.index))?);
        self.indirect = indirect;
        Ok(())
    }

    /// Takes the next chain the guest offers.
    pub(crate) fn pop(&mut self, mem: &GuestMemory) -> Result<Option<Chain>, Broken> {
        let Some(queue) = &mut self.live else {
            return Ok(None);
        };
        let head = match queue.iter(mem).map_err(|_| Broken::AvailIndex)?.next() {
            Some(found) => found.head_index(),
            None => return Ok(None),
        };
        self.parse(mem, head).map(Some)
    }

    /// Descriptors in the queue; 0 while it is not in use.
    pub(crate) fn size(&self) -> u16 {
        self.live.as_ref().map_or(0, QueueT::size)
    }

    /// Puts the chain taken last back, to be taken again.
    pub(crate) fn unpop(&mut self) {
        if let Some(queue) = &mut self.live {
            queue.go_to_previous_position();
        }
    }

    /// Reads the chain at `head` again: its request was in flight when a state was captured.
    pub(crate) fn parse(&self, mem: &GuestMemory, head: u16) -> Result<Chain, Broken> {
        let Some(queue) = &self.live else {
            return Err(Broken::QueueSetup(self.index));
        };
        let table = Table {
            addr: GuestAddress(queue.desc_table()),
            size: queue.size(),
            indirect: self.indirect,
        };
        Ok(Chain::parse(mem, table, head)?)
    }

    /// Gives chains back, each with so many bytes in its writable part. The guest sees all
    /// of them at once (2.7.8).
    pub(crate) fn complete(
        &mut self,
        mem: &GuestMemory,
        chains: &[(u16, u32)],
    ) -> Result<(), Broken> {
        let Some(queue) = &mut self.live else {
            return Ok(());
        };
        let ring = queue.used_ring();
        let mut next = queue.next_used();
        for (head, written) in chains {
            let slot = u64::from(next % queue.size());
            let mut element = [0; USED_ELEMENT_BYTES as usize];
            element[..2].copy_from_slice(&head.to_le_bytes());
            element[4..].copy_from_slice(&written.to_le_bytes());
            let at = GuestAddress(ring + USED_HEADER_BYTES + USED_ELEMENT_BYTES * slot);
            mem.write_slice(&element, at).map_err(|_| Broken::Memory)?;
            next = next.wrapping_add(1);
        }
        // The elements must be there before the index says so.
        mem.store(next.to_le(), GuestAddress(ring + 2), Ordering::Release)
            .map_err(|_| Broken::Memory)?;
        queue.set_next_used(next);
        self.completed = self.completed.wrapping_add(chains.len() as u16);
        ring_written(mem, queue);
        Ok(())
    }

    /// Whether the guest wants an interrupt for what was completed since the last call.
    pub(crate) fn wants_interrupt(&mut self, mem: &GuestMemory) -> Result<bool, Broken> {
        let Some(queue) = &mut self.live else {
            return Ok(false);
        };
        let completed = std::mem::take(&mut self.completed);
        if completed == 0 {
            return Ok(false);
        }
        // The used index must be out before the guest's wishes are read.
        fence(Ordering::SeqCst);
        let load = |offset: u64| -> Result<u16, Broken> {
            let at = GuestAddress(queue.avail_ring() + offset);
            let word = mem.load(at, Ordering::Relaxed);
            word.map(u16::from_le).map_err(|_| Broken::Memory)
        };
        if !queue.event_idx_enabled() {
            return Ok(load(0)? & AVAIL_NO_INTERRUPT == 0);
        }
        // `used_event` (2.7.7) is behind the ring. Is it one of the entries filled meanwhile?
        let event = load(AVAIL_HEADER_BYTES + 2 * u64::from(queue.size()))?;
        Ok(queue.next_used().wrapping_sub(event).wrapping_sub(1) < completed)
    }

    /// Asks the guest to notify of new chains. True when some have come meanwhile.
    pub(crate) fn enable_notification(&mut self, mem: &GuestMemory) -> Result<bool, Broken> {
        let Some(queue) = &mut self.live else {
            return Ok(false);
        };
        let more = queue.enable_notification(mem).map_err(|_| Broken::Memory)?;
        ring_written(mem, queue);
        Ok(more)
    }

    /// Tells the guest that it need not notify of new chains for now.
    pub(crate) fn disable_notification(&mut self, mem: &GuestMemory) -> Result<(), Broken> {
        let Some(queue) = &mut self.live else {
            return Ok(());
        };
        queue
            .disable_notification(mem)
            .map_err(|_| Broken::Memory)?;
        ring_written(mem, queue);
        Ok(())
    }

    /// Captures the queue's state.
    pub(crate) fn save(&self) -> QueueState {
        let Self {
            index: _,
            max_size: _,
            setup,
            indirect: _,
            // Interrupts are settled before anyone else gets the device.
            completed: _,
            live,
        } = self;
        let Setup {
            size,
            descriptors,
            driver,
            device,
        } = *setup;
        QueueState {
            size,
            descriptors,
            driver,
            device,
            ready: live.is_some(),
            next_avail: live.as_ref().map_or(0, QueueT::next_avail),
            next_used: live.as_ref().map_or(0, QueueT::next_used),
        }
    }

    /// Builds a queue from a captured state.
    pub(crate) fn restored(
        index: usize,
        max_size: u16,
        mem: &GuestMemory,
        state: &QueueState,
        event_idx: bool,
        indirect: bool,
    ) -> Result<Self, RestoreError> {
        let QueueState {
            size,
            descriptors,
            driver,
            device,
            ready,
            next_avail,
            next_used,
        } = *state;
        let mut queue = Self::new(index, max_size);
        queue.setup = Setup {
            size,
            descriptors,
            driver,
            device,
        };
        if ready {
            let bad = RestoreError::Queue(index);
            queue
                .enable(mem, event_idx, indirect)
                .map_err(|_| bad.clone())?;
            let live = queue.live.as_mut().ok_or(bad)?;
            live.set_next_avail(next_avail);
            live.set_next_used(next_used);
        }
        Ok(queue)
    }
}

/// Called after each write to a used ring, so that a failpoint can make it miss the dirty
/// bitmap.
#[cfg_attr(not(feature = "failpoints"), allow(unused_variables))]
fn ring_written(mem: &GuestMemory, queue: &Queue) {
    fail::fail_point!("device::mark", |_| {
        let ring = GuestAddress(queue.used_ring());
        super::chain::forget_dirty(mem, ring, 6 + 8 * usize::from(queue.size()));
    });
}

/// A queue whose size and alignment are right and whose rings are in guest memory.
fn checked<M>(mem: M, state: virtio_queue::QueueState) -> Option<Queue>
where
    M: Deref<Target = GuestMemory>,
{
    let queue = Queue::try_from(state).ok()?;
    let size = usize::from(queue.size());
    // Sizes of the three parts: virtio 1.2, 2.7.
    let parts = [
        (queue.desc_table(), 16 * size),
        (queue.avail_ring(), 6 + 2 * size),
        (queue.used_ring(), 6 + 8 * size),
    ];
    let inside = |&(addr, len): &(u64, usize)| {
        mem.check_range(GuestAddress(addr), len, Permissions::ReadWrite)
    };
    // The library takes a ring at address 0 for one that was never set up.
    (queue.avail_ring() != 0 && parts.iter().all(inside)).then_some(queue)
}
