//! The memory-mapped transport's registers (virtio 1.2, 4.2.2, device version 2).

use std::io;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::block::Block;
use super::queue::VirtQueue;
use super::transport::status;
use super::{
    Backend, Broken, Device, DeviceIdentity, DeviceState, DiskWrite, RestoreError, Transport,
    feature,
};
use crate::GuestMemory;
use crate::bus::BusDevice;
use crate::inbound::InboundFrame;

/// Offset of the register that notifies a queue.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// Register offsets (virtio 1.2, table 4.1).
mod register {
    pub(super) const MAGIC_VALUE: u64 = 0x00;
    pub(super) const VERSION: u64 = 0x04;
    pub(super) const DEVICE_ID: u64 = 0x08;
    pub(super) const VENDOR_ID: u64 = 0x0c;
    pub(super) const DEVICE_FEATURES: u64 = 0x10;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub(super) const DRIVER_FEATURES: u64 = 0x20;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub(super) const QUEUE_SEL: u64 = 0x30;
    pub(super) const QUEUE_NUM_MAX: u64 = 0x34;
    pub(super) const QUEUE_NUM: u64 = 0x38;
    pub(super) const QUEUE_READY: u64 = 0x44;
    pub(super) const INTERRUPT_STATUS: u64 = 0x60;
    pub(super) const INTERRUPT_ACK: u64 = 0x64;
    pub(super) const STATUS: u64 = 0x70;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x80;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x84;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x90;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x94;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0xa0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0xa4;
    /// First and last of the four registers of a shared memory region.
    pub(super) const SHM_LEN_LOW: u64 = 0xb0;
    pub(super) const SHM_BASE_HIGH: u64 = 0xbc;
    pub(super) const CONFIG_GENERATION: u64 = 0xfc;
    pub(super) const CONFIG: u64 = 0x100;
}

/// "virt" in little endian.
const MAGIC: u32 = 0x7472_6976;
/// Transport version of virtio 1.0 and later.
const VERSION: u32 = 2;
/// No registered vendor.
const VENDOR: u32 = 0;

/// Token of the event loop for a back-end's sources; queues have their index.
const SOURCE: u32 = u32::MAX;

/// A device behind the memory-mapped transport.
pub struct VirtioMmio<B: Backend> {
    transport: Transport,
    backend: B,
}

impl<B: Backend> VirtioMmio<B> {
    /// Puts `backend` behind a transport that serves `mem`.
    pub fn new(mem: Arc<GuestMemory>, mut backend: B) -> io::Result<Self> {
        let transport = Transport::new(mem, backend.features(), backend.queue_max_sizes())?;
        backend.attach(transport.queue_events())?;
        Ok(Self { transport, backend })
    }

    /// The device behind the transport.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    fn queue(&mut self) -> Option<&mut VirtQueue> {
        let index = usize::try_from(self.transport.queue_sel).ok()?;
        self.transport.queues.get_mut(index)
    }

    fn read_register(&mut self, offset: u64) -> u32 {
        match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.backend.device_id(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => match self.transport.device_features_sel {
                0 => self.transport.offered() as u32,
                1 => (self.transport.offered() >> 32) as u32,
                _ => 0,
            },
            register::QUEUE_NUM_MAX => self.queue().map_or(0, |queue| queue.max_size().into()),
            register::QUEUE_READY => self.queue().map_or(0, |queue| queue.is_ready().into()),
            register::INTERRUPT_STATUS => self.transport.interrupt_status,
            register::STATUS => self.transport.status,
            // No shared memory region: all ones (4.2.2).
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            register::CONFIG_GENERATION => self.transport.config_generation,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let transport = &mut self.transport;
        match offset {
            register::DEVICE_FEATURES_SEL => transport.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => transport.driver_features_sel = value,
            register::DRIVER_FEATURES => self.accept_features(value),
            register::QUEUE_SEL => transport.queue_sel = value,
            register::QUEUE_READY => self.set_queue_ready(value),
            QUEUE_NOTIFY => self.notify(value as usize),
            register::INTERRUPT_ACK => transport.interrupt_status &= !value,
            register::STATUS => self.set_status(value),
            _ => self.set_up_queue(offset, value),
        }
    }

    /// Features may be chosen only before `FEATURES_OK` (virtio 1.2, 3.1.1).
    fn accept_features(&mut self, value: u32) {
        let transport = &mut self.transport;
        if transport.status & (status::DRIVER | status::FEATURES_OK) != status::DRIVER {
            return;
        }
        let shift = match transport.driver_features_sel {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let word = u64::from(u32::MAX) << shift;
        transport.driver_features =
            (transport.driver_features & !word) | (u64::from(value) << shift);
    }

    fn set_up_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queue().filter(|queue| !queue.is_ready()) else {
            return;
        };
        let low = |old: u64| (old & !u64::from(u32::MAX)) | u64::from(value);
        let high = |old: u64| (old & u64::from(u32::MAX)) | (u64::from(value) << 32);
        let setup = &mut queue.setup;
        match offset {
            register::QUEUE_NUM => setup.size = value,
            register::QUEUE_DESC_LOW => setup.descriptors = low(setup.descriptors),
            register::QUEUE_DESC_HIGH => setup.descriptors = high(setup.descriptors),
            register::QUEUE_DRIVER_LOW => setup.driver = low(setup.driver),
            register::QUEUE_DRIVER_HIGH => setup.driver = high(setup.driver),
            register::QUEUE_DEVICE_LOW => setup.device = low(setup.device),
            register::QUEUE_DEVICE_HIGH => setup.device = high(setup.device),
            _ => {}
        }
    }

    fn set_queue_ready(&mut self, value: u32) {
        let usable = status::FEATURES_OK | status::NEEDS_RESET;
        if self.transport.status & usable != status::FEATURES_OK {
            return;
        }
        let event_idx = self.transport.has(feature::EVENT_IDX);
        let indirect = self.transport.has(feature::INDIRECT_DESC);
        // A live queue is taken away only by a reset: its requests may be in flight.
        let removable = self.transport.status & status::DRIVER_OK == 0;
        let mem = Arc::clone(self.transport.memory());
        let Some(queue) = self.queue() else {
            return;
        };
        match (value, queue.is_ready()) {
            (1, false) => {
                let result = queue.enable(&mem, event_idx, indirect);
                self.settle(result);
            }
            (0, true) if removable => queue.reset(),
            _ => {}
        }
    }

    /// Device status (virtio 1.2, 2.1): the driver only adds bits, except that 0 resets.
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.transport.reset();
            self.backend.reset();
            return;
        }
        let old = self.transport.status;
        let mut added = value & status::ALL & !status::NEEDS_RESET & !old;
        if added & status::FEATURES_OK != 0 {
            let accepted = self.transport.driver_features;
            let offered = self.transport.offered();
            if accepted & !offered != 0 || accepted & feature::VERSION_1 == 0 {
                added &= !status::FEATURES_OK;
            }
        }
        if added & status::DRIVER_OK != 0 && (old | added) & status::FEATURES_OK == 0 {
            added &= !status::DRIVER_OK;
        }
        self.transport.status |= added;
        if added & status::DRIVER_OK != 0 {
            tracing::debug!(device = self.backend.name(), "driver is up");
            self.backend.driver_up(&self.transport);
            self.kick_all();
        }
    }

    fn kick_all(&mut self) {
        for index in 0..self.transport.queues.len() {
            self.notify(index);
        }
    }

    fn notify(&mut self, index: usize) {
        if self.transport.is_active()
            && self
                .transport
                .queues
                .get(index)
                .is_some_and(VirtQueue::is_ready)
        {
            let result = self.backend.notified(&mut self.transport, index);
            self.settle(result);
        }
    }

    /// Stops the device if the guest broke a rule.
    fn settle(&mut self, result: Result<(), Broken>) {
        if let Err(error) = result {
            // At debug level: a guest can do this as often as it likes.
            tracing::debug!(device = self.backend.name(), %error, "device needs a reset");
            self.transport.break_down();
        }
    }
}

impl<B: Backend> BusDevice for VirtioMmio<B> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(register::CONFIG) {
            let config = self.backend.config();
            for (byte, value) in data.iter_mut().zip(
                config
                    .iter()
                    .skip(usize::try_from(at).unwrap_or(usize::MAX)),
            ) {
                *byte = *value;
            }
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            // Registers are 32 bits wide and aligned (4.2.2.2).
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // No device of ours has a configuration space that the driver may write.
        if offset < register::CONFIG
            && let Ok(word) = <[u8; 4]>::try_from(data)
        {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }
}

impl<B: Backend> MutEventSubscriber for VirtioMmio<B> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let mut watch = |events: Events| {
            if let Err(error) = ops.add(events) {
                tracing::error!(%error, "a device's events can't be watched: it will stall");
            }
        };
        for (index, event) in self.transport.queue_events().iter().enumerate() {
            watch(Events::with_data(event, index as u32, EventSet::IN));
        }
        for source in self.backend.sources() {
            let mut set = EventSet::IN;
            if source.edge {
                set |= EventSet::EDGE_TRIGGERED;
            }
            watch(Events::with_data_raw(source.fd, SOURCE, set));
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        if events.data() == SOURCE {
            let result = self.backend.source_ready(&mut self.transport);
            self.settle(result);
            return;
        }
        let index = events.data() as usize;
        if let Some(event) = self.transport.queue_events().get(index) {
            // Read before the queue is looked at, so that no later notification is lost.
            let _ = event.read();
            self.notify(index);
        }
    }
}

impl<B: Backend> Device for VirtioMmio<B> {
    fn name(&self) -> &str {
        self.backend.name()
    }

    fn identity(&self) -> DeviceIdentity {
        self.backend.identity()
    }

    fn queue_events(&self) -> &[EventFd] {
        self.transport.queue_events()
    }

    fn irq(&self) -> &EventFd {
        self.transport.irq()
    }

    fn driver_ready(&self) -> bool {
        self.transport.is_active()
    }

    fn reset(&mut self) {
        self.set_status(0);
    }

    fn save(&self) -> DeviceState {
        DeviceState {
            transport: self.transport.save(),
            backend: self.backend.save(),
        }
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        fail::fail_point!("device::restore", |_| Ok(()));
        let DeviceState { transport, backend } = state;
        let queues = self.transport.check(&transport)?;
        self.backend.restore(&transport, backend)?;
        self.transport.restore(transport, queues);
        Ok(())
    }

    fn resume(&mut self) {
        self.transport.running = true;
        fail::fail_point!("device::resume", |_| ());
        if self.transport.is_active() {
            self.backend.driver_up(&self.transport);
            let result = self.backend.resume(&mut self.transport);
            self.settle(result);
        }
        self.kick_all();
        self.transport.interrupt_again();
    }

    fn announce(&mut self) {
        self.backend.announce(&mut self.transport);
    }

    fn receive_again(&mut self, frames: &[InboundFrame]) {
        let result = self.backend.receive_again(&mut self.transport, frames);
        self.settle(result);
    }

    fn take_disk_writes(&mut self) -> Vec<DiskWrite> {
        self.backend.take_disk_writes()
    }

    fn record_disk_writes(&mut self, on: bool) {
        self.backend.record_disk_writes(on);
    }

    fn apply_disk_writes(&mut self, writes: &[DiskWrite]) -> io::Result<()> {
        self.backend.apply_disk_writes(writes)
    }

    fn next_disk_contents(&self, from: u64, limit: usize) -> io::Result<Option<DiskWrite>> {
        self.backend.next_disk_contents(from, limit)
    }

    fn grow(&mut self, sectors: u64) -> bool {
        let grown = self.backend.grow(sectors);
        if grown {
            self.transport.config_changed();
        }
        grown
    }

    fn disk(&mut self) -> Option<&mut Block> {
        self.backend.disk()
    }
}

#[cfg(test)]
mod tests;
