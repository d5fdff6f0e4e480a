//! A driver for tests: sets a device up through its registers and uses its queues in guest
//! memory, with a real event loop between.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use vm_memory::{Bytes, GuestAddress};

use super::mmio::VirtioMmio;
use super::{Backend, Device, DeviceState};
use crate::GuestMemory;
use crate::bus::BusDevice;

/// Size of the test guest's memory.
pub(super) const MEMORY_BYTES: usize = 16 << 20;
/// Where tests put their data.
pub(super) const DATA: u64 = 0x10_0000;
/// Bytes of one descriptor.
const DESCRIPTOR_BYTES: u64 = 16;

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// Registers the driver uses; numbers from virtio 1.2, 4.2.2.
pub(super) mod reg {
    pub(in super::super) const DEVICE_FEATURES: u64 = 0x10;
    pub(in super::super) const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub(in super::super) const DRIVER_FEATURES: u64 = 0x20;
    pub(in super::super) const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub(in super::super) const QUEUE_SEL: u64 = 0x30;
    pub(in super::super) const QUEUE_NUM_MAX: u64 = 0x34;
    pub(in super::super) const QUEUE_NUM: u64 = 0x38;
    pub(in super::super) const QUEUE_READY: u64 = 0x44;
    pub(in super::super) const QUEUE_NOTIFY: u64 = 0x50;
    pub(in super::super) const INTERRUPT_STATUS: u64 = 0x60;
    pub(in super::super) const INTERRUPT_ACK: u64 = 0x64;
    pub(in super::super) const STATUS: u64 = 0x70;
    pub(in super::super) const QUEUE_DESC: u64 = 0x80;
    pub(in super::super) const QUEUE_DRIVER: u64 = 0x90;
    pub(in super::super) const QUEUE_DEVICE: u64 = 0xa0;
    pub(in super::super) const CONFIG: u64 = 0x100;
}

pub(super) fn memory() -> Arc<GuestMemory> {
    Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap())
}

/// A second memory with the same contents, as a twin has it.
pub(super) fn copy(mem: &GuestMemory) -> Arc<GuestMemory> {
    let twin = memory();
    let mut bytes = vec![0; MEMORY_BYTES];
    mem.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    twin.write_slice(&bytes, GuestAddress(0)).unwrap();
    twin
}

/// A buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buf {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) writable: bool,
}

pub(super) fn readable(addr: u64, len: u32) -> Buf {
    Buf {
        addr,
        len,
        writable: false,
    }
}

pub(super) fn writable(addr: u64, len: u32) -> Buf {
    Buf {
        addr,
        len,
        writable: true,
    }
}

/// The driver's place in a queue.
#[derive(Debug, Clone, Copy, Default)]
struct Ring {
    size: u16,
    next_descriptor: u16,
    next_avail: u16,
    next_used: u16,
}

pub(super) struct Driver<B: Backend> {
    pub(super) mem: Arc<GuestMemory>,
    device: Arc<Mutex<VirtioMmio<B>>>,
    events: EventManager<Arc<Mutex<VirtioMmio<B>>>>,
    rings: Vec<Ring>,
}

impl<B: Backend> Driver<B> {
    /// A device whose driver has done nothing yet.
    pub(super) fn new(mem: Arc<GuestMemory>, backend: B) -> Self {
        let queues = backend.queue_max_sizes().len();
        let device = VirtioMmio::new(Arc::clone(&mem), backend).unwrap();
        let device = Arc::new(Mutex::new(device));
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(Arc::clone(&device));
        Self {
            mem,
            device,
            events,
            rings: vec![Ring::default(); queues],
        }
    }

    /// A device that is up, with queues of `size` and all of `features` accepted.
    pub(super) fn up(mem: Arc<GuestMemory>, backend: B, features: u64, size: u16) -> Self {
        let mut driver = Self::new(mem, backend);
        driver.start(features, size);
        driver
    }

    /// Brings the device up, as after a reset.
    pub(super) fn start(&mut self, features: u64, size: u16) {
        self.set(reg::STATUS, 1);
        self.set(reg::STATUS, 3);
        for word in 0..2 {
            self.set(reg::DRIVER_FEATURES_SEL, word);
            self.set(reg::DRIVER_FEATURES, (features >> (32 * word)) as u32);
        }
        self.set(reg::STATUS, 11);
        assert_eq!(self.get(reg::STATUS), 11, "features refused");
        for queue in 0..self.rings.len() {
            self.set_up_queue(queue, size);
            assert_eq!(self.get(reg::QUEUE_READY), 1);
        }
        self.set(reg::STATUS, 15);
        assert_eq!(self.get(reg::STATUS), 15);
    }

    pub(super) fn set_up_queue(&mut self, queue: usize, size: u16) {
        self.rings[queue] = Ring {
            size,
            ..Ring::default()
        };
        self.mem
            .write_slice(&[0; 0x4000], GuestAddress(table(queue)))
            .unwrap();
        self.set(reg::QUEUE_SEL, queue as u32);
        self.set(reg::QUEUE_NUM, size.into());
        for (register, address) in [
            (reg::QUEUE_DESC, table(queue)),
            (reg::QUEUE_DRIVER, avail(queue)),
            (reg::QUEUE_DEVICE, used(queue)),
        ] {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
        self.set(reg::QUEUE_READY, 1);
    }

    /// Carries on as the driver of another device with the same state.
    pub(super) fn take_over(&mut self, other: &Self) {
        self.rings = other.rings.clone();
    }

    pub(super) fn device(&self) -> MutexGuard<'_, VirtioMmio<B>> {
        self.device.lock().unwrap()
    }

    pub(super) fn set(&mut self, register: u64, value: u32) {
        self.device().write(register, &value.to_le_bytes());
    }

    pub(super) fn get(&self, register: u64) -> u32 {
        let mut word = [0; 4];
        self.device().read(register, &mut word);
        u32::from_le_bytes(word)
    }

    pub(super) fn config(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0xff; length];
        self.device().read(reg::CONFIG + offset, &mut data);
        data
    }

    pub(super) fn save(&self) -> DeviceState {
        self.device().save()
    }

    /// Writes a descriptor.
    pub(super) fn descriptor(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; DESCRIPTOR_BYTES as usize];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.mem.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Offers a chain of buffers. Returns its head.
    pub(super) fn offer(&mut self, queue: usize, buffers: &[Buf]) -> u16 {
        let ring = self.rings[queue];
        let head = ring.next_descriptor;
        for (i, buffer) in buffers.iter().enumerate() {
            let index = (head + i as u16) % ring.size;
            let last = i + 1 == buffers.len();
            let flags = if buffer.writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let at = table(queue) + DESCRIPTOR_BYTES * u64::from(index);
            self.descriptor(at, buffer.addr, buffer.len, flags, (index + 1) % ring.size);
        }
        self.rings[queue].next_descriptor = (head + buffers.len() as u16) % ring.size;
        self.publish(queue, head);
        head
    }

    /// Offers a chain of buffers through an indirect table at `at`.
    pub(super) fn offer_indirect(&mut self, queue: usize, at: u64, buffers: &[Buf]) -> u16 {
        for (i, buffer) in buffers.iter().enumerate() {
            let last = i + 1 == buffers.len();
            let flags = if buffer.writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let place = at + DESCRIPTOR_BYTES * i as u64;
            self.descriptor(place, buffer.addr, buffer.len, flags, i as u16 + 1);
        }
        let ring = self.rings[queue];
        let head = ring.next_descriptor;
        let place = table(queue) + DESCRIPTOR_BYTES * u64::from(head);
        let length = DESCRIPTOR_BYTES as u32 * buffers.len() as u32;
        self.descriptor(place, at, length, INDIRECT, 0);
        self.rings[queue].next_descriptor = (head + 1) % ring.size;
        self.publish(queue, head);
        head
    }

    /// Puts a head into the available ring.
    pub(super) fn publish(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = avail(queue) + 4 + 2 * u64::from(ring.next_avail % ring.size);
        ring.next_avail = ring.next_avail.wrapping_add(1);
        let index = ring.next_avail;
        self.mem.write_obj(head, GuestAddress(slot)).unwrap();
        self.mem
            .write_obj(index, GuestAddress(avail(queue) + 2))
            .unwrap();
    }

    /// Notifies a queue as KVM's ioeventfd does.
    pub(super) fn kick(&self, queue: usize) {
        self.device().queue_events()[queue].write(1).unwrap();
    }

    /// Takes what the device gave back: heads and lengths.
    pub(super) fn returned(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let mut returned = Vec::new();
        let index: u16 = self.mem.read_obj(GuestAddress(used(queue) + 2)).unwrap();
        let ring = &mut self.rings[queue];
        while ring.next_used != index {
            let at = used(queue) + 4 + 8 * u64::from(ring.next_used % ring.size);
            returned.push((
                self.mem.read_obj(GuestAddress(at)).unwrap(),
                self.mem.read_obj(GuestAddress(at + 4)).unwrap(),
            ));
            ring.next_used = ring.next_used.wrapping_add(1);
        }
        returned
    }

    /// The used index for which the driver wants an interrupt.
    pub(super) fn set_used_event(&self, queue: usize, index: u16) {
        let at = avail(queue) + 4 + 2 * u64::from(self.rings[queue].size);
        self.mem.write_obj(index, GuestAddress(at)).unwrap();
    }

    /// True when the interrupt was raised since the last call.
    pub(super) fn interrupted(&self) -> bool {
        self.device().irq().read().is_ok()
    }

    /// Handles the events that are there.
    pub(super) fn turn(&mut self) {
        for _ in 0..100_000 {
            if self.events.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("events without end");
    }

    /// Handles events until `count` chains of a queue have come back.
    pub(super) fn wait(&mut self, queue: usize, count: usize) -> Vec<(u32, u32)> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut all = self.returned(queue);
        while all.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} came", all.len());
            self.events.run_with_timeout(100).unwrap();
            all.extend(self.returned(queue));
        }
        all
    }

    pub(super) fn bytes(&self, addr: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.mem.read_slice(&mut data, GuestAddress(addr)).unwrap();
        data
    }

    pub(super) fn fill(&self, addr: u64, data: &[u8]) {
        self.mem.write_slice(data, GuestAddress(addr)).unwrap();
    }
}

/// Address of a queue's descriptor table.
pub(super) fn table(queue: usize) -> u64 {
    0x1_0000 * (queue as u64 + 1)
}

/// Address of a queue's available ring.
pub(super) fn avail(queue: usize) -> u64 {
    table(queue) + 0x1000
}

/// Address of a queue's used ring.
pub(super) fn used(queue: usize) -> u64 {
    table(queue) + 0x2000
}
