//! The MMIO transport's registers (virtio 1.2, 4.2.2).

use core::fmt;

use pico::command_line::VirtioMmioDevice;

use super::queue::Virtqueue;
use crate::hardware::{interrupts, paging};

const MAGIC_VALUE: usize = 0x000;
const VERSION: usize = 0x004;
const DEVICE_ID: usize = 0x008;
const DEVICE_FEATURES: usize = 0x010;
const DEVICE_FEATURES_SELECT: usize = 0x014;
const DRIVER_FEATURES: usize = 0x020;
const DRIVER_FEATURES_SELECT: usize = 0x024;
const QUEUE_SELECT: usize = 0x030;
const QUEUE_SIZE_MAX: usize = 0x034;
const QUEUE_SIZE: usize = 0x038;
const QUEUE_READY: usize = 0x044;
const QUEUE_NOTIFY: usize = 0x050;
const INTERRUPT_STATUS: usize = 0x060;
const INTERRUPT_ACK: usize = 0x064;
const STATUS: usize = 0x070;
const QUEUE_DESCRIPTORS: usize = 0x080;
const QUEUE_DRIVER: usize = 0x090;
const QUEUE_DEVICE: usize = 0x0a0;
const CONFIG_GENERATION: usize = 0x0fc;
const CONFIG: usize = 0x100;

const MAGIC: u32 = 0x7472_6976;

/// Device status bits (virtio 1.2, 2.1).
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

/// Interrupt status bit of a changed configuration (virtio 1.2, 4.2.2).
const CONFIGURATION_CHANGED: u32 = 1 << 1;

/// Why a device can't be used.
pub(crate) enum Refusal {
    /// It doesn't offer what the driver can't do without.
    Features(u64),
    /// It has no such queue, or one that is too small.
    Queue(u16),
    /// Its configuration can't be right.
    Config(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Features(offered) => write!(f, "refuses our features, offers {offered:#x}"),
            Self::Queue(index) => write!(f, "has no usable queue {index}"),
            Self::Config(what) => write!(f, "has {what}"),
        }
    }
}

/// One device's registers.
pub(crate) struct Transport {
    base: usize,
    wake: u32,
}

impl Transport {
    /// Maps the registers and routes the interrupt to bit `wake_bit` of
    /// [`interrupts::take_wake`]. The device and its id, if one is there.
    pub(crate) fn probe(device: &VirtioMmioDevice, wake_bit: u8) -> Option<(Self, u32)> {
        if device.size < 0x200 || !paging::map_device(device.base, device.size) {
            return None;
        }
        let transport = Self {
            base: device.base as usize,
            wake: 1 << wake_bit,
        };
        if transport.read(MAGIC_VALUE) != MAGIC || transport.read(VERSION) != 2 {
            return None;
        }
        let id = transport.read(DEVICE_ID);
        if id == 0 {
            return None;
        }
        interrupts::route(device.gsi, wake_bit);
        Some((transport, id))
    }

    fn read(&self, register: usize) -> u32 {
        // SAFETY: `probe` mapped the device's window, and registers lie inside it.
        unsafe { ((self.base + register) as *const u32).read_volatile() }
    }

    fn write(&self, register: usize, value: u32) {
        // SAFETY: as in `read`. The addresses of rings that are told to the device here
        // belong to queues, which live for ever.
        unsafe { ((self.base + register) as *mut u32).write_volatile(value) }
    }

    fn write_address(&self, register: usize, address: u64) {
        self.write(register, address as u32);
        self.write(register + 4, (address >> 32) as u32);
    }

    /// Resets the device and agrees on features (virtio 1.2, 3.1.1): what is offered of
    /// `wanted`.
    ///
    /// # Errors
    /// The device lacks a feature of `needed`, or doesn't accept the choice.
    pub(crate) fn negotiate(&self, wanted: u64, needed: u64) -> Result<u64, Refusal> {
        self.write(STATUS, 0);
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        self.write(DEVICE_FEATURES_SELECT, 0);
        let low = self.read(DEVICE_FEATURES);
        self.write(DEVICE_FEATURES_SELECT, 1);
        let offered = u64::from(low) | u64::from(self.read(DEVICE_FEATURES)) << 32;
        let chosen = offered & (wanted | needed);
        if chosen & needed != needed {
            return Err(Refusal::Features(offered));
        }
        self.write(DRIVER_FEATURES_SELECT, 0);
        self.write(DRIVER_FEATURES, chosen as u32);
        self.write(DRIVER_FEATURES_SELECT, 1);
        self.write(DRIVER_FEATURES, (chosen >> 32) as u32);
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if self.read(STATUS) & FEATURES_OK == 0 {
            return Err(Refusal::Features(offered));
        }
        Ok(chosen)
    }

    /// Sets one queue up, with at most `size` descriptors, `chain` of them for each
    /// request.
    ///
    /// # Errors
    /// The device has no such queue, or one of less than `chain` descriptors.
    pub(crate) fn add_queue(
        &self,
        index: u16,
        size: u16,
        chain: u16,
        event_idx: bool,
    ) -> Result<Virtqueue, Refusal> {
        self.write(QUEUE_SELECT, u32::from(index));
        let most = self.read(QUEUE_SIZE_MAX).min(u32::from(size)) as u16;
        if most < chain {
            return Err(Refusal::Queue(index));
        }
        let size = 1 << most.ilog2();
        let queue = Virtqueue::new(index, size, chain, event_idx);
        let (descriptors, driver, device) = queue.addresses();
        self.write(QUEUE_SIZE, u32::from(size));
        self.write_address(QUEUE_DESCRIPTORS, descriptors);
        self.write_address(QUEUE_DRIVER, driver);
        self.write_address(QUEUE_DEVICE, device);
        self.write(QUEUE_READY, 1);
        Ok(queue)
    }

    /// Sets the device going.
    pub(crate) fn driver_ok(&self) {
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Tells the device about new buffers, if it wants to know.
    pub(crate) fn kick(&self, queue: &mut Virtqueue) {
        if queue.needs_kick() {
            self.write(QUEUE_NOTIFY, u32::from(queue.index()));
        }
    }

    /// Takes the device's interrupt, if `wake` says that it came. True: its
    /// configuration has changed.
    pub(crate) fn take_interrupt(&self, wake: u32) -> bool {
        if wake & self.wake == 0 {
            return false;
        }
        let status = self.read(INTERRUPT_STATUS);
        self.write(INTERRUPT_ACK, status);
        status & CONFIGURATION_CHANGED != 0
    }

    /// Reads `N` bytes of the configuration at `offset`, all of one generation.
    pub(crate) fn config<const N: usize>(&self, offset: usize) -> [u8; N] {
        loop {
            let generation = self.read(CONFIG_GENERATION);
            let bytes = core::array::from_fn(|i| {
                // SAFETY: as in `read`; the configuration may be read bytewise.
                unsafe { ((self.base + CONFIG + offset + i) as *const u8).read_volatile() }
            });
            if self.read(CONFIG_GENERATION) == generation {
                return bytes;
            }
        }
    }
}
