//! Split virtqueues (virtio 1.2, 2.7).
//!
//! A queue is divided into slots of a fixed number of descriptors, so that no free list
//! of descriptors is needed: a request takes a slot, and comes back by its number. Free
//! slots are a stack, which keeps the memory in use small and warm.

use alloc::alloc::{alloc_zeroed, handle_alloc_error};
use alloc::vec::Vec;
use core::alloc::Layout;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

/// Descriptor flags (virtio 1.2, 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Flag of both rings: no notification, please.
const NO_NOTIFICATION: u16 = 1;

const PAGE: usize = 4096;

/// A descriptor (virtio 1.2, 2.7.5).
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

/// A piece of memory for the device. Addresses are physical, which are virtual, too.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    /// First byte.
    pub(super) address: u64,
    /// Bytes.
    pub(super) length: u32,
    /// The device writes it (it reads it otherwise).
    pub(super) device_writes: bool,
}

/// Writes `segments` as one chain into `table`, whose first entry has index `first`.
fn write_chain(table: &mut [Descriptor], first: u16, segments: &[Segment]) {
    for ((entry, segment), index) in table.iter_mut().zip(segments).zip(0u16..) {
        let last = usize::from(index) + 1 == segments.len();
        *entry = Descriptor {
            address: segment.address,
            length: segment.length,
            flags: if segment.device_writes { WRITE } else { 0 } | if last { 0 } else { NEXT },
            next: if last { 0 } else { first + index + 1 },
        };
    }
}

/// Fills an indirect table, and gives the one segment that refers to it.
pub(super) fn write_indirect(table: &mut [Descriptor], segments: &[Segment]) {
    write_chain(table, 0, segments);
}

/// One queue. Its memory is never given back: a device may use it until reset.
pub(crate) struct Virtqueue {
    index: u16,
    size: u16,
    chain: u16,
    event_idx: bool,
    descriptors: *mut Descriptor,
    /// flags, index, ring, used_event
    available: *mut u16,
    /// flags, index, ring of (id, length), avail_event
    used: *mut u16,
    free: Vec<u16>,
    in_flight: Vec<bool>,
    next_available: u16,
    next_used: u16,
    kicked: u16,
}

impl Virtqueue {
    /// An empty queue; `size` is a power of two, `chain` at least 1 and at most `size`.
    pub(super) fn new(index: u16, size: u16, chain: u16, event_idx: bool) -> Self {
        let entries = usize::from(size);
        let slots = size / chain;
        Self {
            index,
            size,
            chain,
            event_idx,
            descriptors: pages(entries * size_of::<Descriptor>()).cast(),
            available: pages(6 + 2 * entries).cast(),
            used: pages(6 + 8 * entries).cast(),
            free: (0..slots).rev().collect(),
            in_flight: alloc::vec![false; usize::from(slots)],
            next_available: 0,
            next_used: 0,
            kicked: 0,
        }
    }

    pub(super) fn index(&self) -> u16 {
        self.index
    }

    /// Number of slots.
    pub(super) fn slots(&self) -> u16 {
        self.size / self.chain
    }

    /// Addresses of the descriptor table, the available ring and the used ring.
    pub(super) fn addresses(&self) -> (u64, u64, u64) {
        (
            self.descriptors as u64,
            self.available as u64,
            self.used as u64,
        )
    }

    fn available(&self, at: usize) -> &AtomicU16 {
        // SAFETY: callers stay within the ring, which lives for ever; the device shares
        // it, so all accesses are atomic.
        unsafe { AtomicU16::from_ptr(self.available.add(at)) }
    }

    fn used(&self, at: usize) -> &AtomicU16 {
        // SAFETY: as in `available`.
        unsafe { AtomicU16::from_ptr(self.used.add(at)) }
    }

    fn position(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// Whether a slot is free.
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes a free slot.
    pub(super) fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// Gives a slot back that was taken or popped.
    pub(super) fn release(&mut self, slot: u16) {
        debug_assert!(!self.in_flight[usize::from(slot)]);
        self.free.push(slot);
    }

    fn table(&mut self, slot: u16) -> &mut [Descriptor] {
        let (first, count) = (usize::from(slot * self.chain), usize::from(self.chain));
        // SAFETY: slots are parts of the table; the device doesn't write it, and reads
        // the part of a slot only while the slot is in flight.
        unsafe { core::slice::from_raw_parts_mut(self.descriptors.add(first), count) }
    }

    /// Makes a taken slot available to the device: at most `chain` segments.
    ///
    /// # Safety
    /// The segments must stay valid, and what the device writes unread, until the slot
    /// is popped.
    pub(super) unsafe fn submit(&mut self, slot: u16, segments: &[Segment]) {
        let first = slot * self.chain;
        assert!(
            segments.len() <= usize::from(self.chain),
            "too many segments for a slot"
        );
        write_chain(self.table(slot), first, segments);
        self.publish(slot);
    }

    /// Like [`Self::submit`], with an indirect table that was filled before.
    ///
    /// # Safety
    /// As for `submit`, and for the table, too.
    pub(super) unsafe fn submit_indirect(&mut self, slot: u16, table: &[Descriptor]) {
        self.table(slot)[0] = Descriptor {
            address: table.as_ptr() as u64,
            length: size_of_val(table) as u32,
            flags: INDIRECT,
            next: 0,
        };
        self.publish(slot);
    }

    fn publish(&mut self, slot: u16) {
        self.in_flight[usize::from(slot)] = true;
        let at = 2 + self.position(self.next_available);
        self.available(at)
            .store(slot * self.chain, Ordering::Relaxed);
        self.next_available = self.next_available.wrapping_add(1);
        self.available(1)
            .store(self.next_available, Ordering::Release);
    }

    /// Whether the device wants to hear of what was submitted since the last kick
    /// (virtio 1.2, 2.7.10).
    pub(super) fn needs_kick(&mut self) -> bool {
        if self.kicked == self.next_available {
            return false;
        }
        // The index must be visible before the device's wish is read.
        fence(Ordering::SeqCst);
        let (old, new) = (self.kicked, self.next_available);
        self.kicked = new;
        if self.event_idx {
            let event = self
                .used(2 + 4 * usize::from(self.size))
                .load(Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.used(0).load(Ordering::Relaxed) & NO_NOTIFICATION == 0
        }
    }

    /// The next slot that the device is done with, and the bytes it wrote. The slot is
    /// the caller's until it is released or submitted again.
    pub(super) fn pop(&mut self) -> Option<(u16, u32)> {
        if self.used(1).load(Ordering::Acquire) == self.next_used {
            return None;
        }
        let at = 2 + 4 * self.position(self.next_used);
        let word = |at: usize| {
            // SAFETY: an element of the used ring: 4-byte aligned, never freed.
            unsafe { AtomicU32::from_ptr(self.used.add(at).cast()) }.load(Ordering::Relaxed)
        };
        let (id, length) = (word(at), word(at + 2));
        self.next_used = self.next_used.wrapping_add(1);
        let slot = (id / u32::from(self.chain)) as usize;
        match self.in_flight.get_mut(slot) {
            Some(in_flight) if *in_flight && id.is_multiple_of(u32::from(self.chain)) => {
                *in_flight = false;
                Some((slot as u16, length))
            }
            _ => panic!(
                "virtio queue {}: used descriptor {id} was not in flight",
                self.index
            ),
        }
    }

    /// Asks for an interrupt at the next used buffer. False: there is one already, so
    /// look again instead of sleeping.
    pub(super) fn want_interrupt(&mut self) -> bool {
        if self.event_idx {
            let at = 2 + usize::from(self.size);
            self.available(at).store(self.next_used, Ordering::Relaxed);
        } else {
            self.available(0).store(0, Ordering::Relaxed);
        }
        // The wish must be visible before the ring is looked at for the last time.
        fence(Ordering::SeqCst);
        self.used(1).load(Ordering::Acquire) == self.next_used
    }

    /// Asks for no interrupts. With event indices there is nothing to do: no interrupt
    /// comes before the next wish, apart from one in 65536 buffers.
    pub(super) fn refuse_interrupt(&mut self) {
        if !self.event_idx {
            self.available(0).store(NO_NOTIFICATION, Ordering::Relaxed);
        }
    }
}

/// Whole zeroed pages that are never given back.
fn pages(bytes: usize) -> *mut u8 {
    let size = bytes.next_multiple_of(PAGE);
    let layout = Layout::from_size_align(size, PAGE).expect("a ring is small");
    // SAFETY: the layout's size isn't zero.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    memory
}
