//! Virtio drivers over MMIO (virtio 1.2, chapters 2, 4.2, 5.1 and 5.2).

pub(crate) mod block;
pub(crate) mod mmio;
pub(crate) mod net;
mod queue;

use pico::command_line::CommandLine;

use self::block::BlockDevice;
use self::mmio::Transport;
use self::net::NetDevice;
use crate::hardware::console::say;

/// Device ids (virtio 1.2, 5).
const NET: u32 = 1;
const BLOCK: u32 = 2;

/// Feature bits that both drivers use (virtio 1.2, 6).
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT_DESC: u64 = 1 << 28;

/// The devices that were announced on the command line: the first of each kind is used.
#[derive(Default)]
pub(crate) struct Devices {
    /// The first block device, "vda".
    pub(crate) block: Option<BlockDevice>,
    /// The first network device.
    pub(crate) net: Option<NetDevice>,
}

/// Finds and starts the devices. What can't be used is said on the console and left out.
pub(crate) fn discover(line: CommandLine<'_>) -> Devices {
    let mut devices = Devices::default();
    // Bit 0 is the timer's.
    for (device, bit) in line.virtio_mmio_devices().zip(1..=15u8) {
        let Some((transport, id)) = Transport::probe(&device, bit) else {
            say!("virtio: no device at {:#x}", device.base);
            continue;
        };
        let started = match id {
            NET if devices.net.is_none() => {
                NetDevice::start(transport).map(|net| devices.net = Some(net))
            }
            BLOCK if devices.block.is_none() => {
                BlockDevice::start(transport).map(|block| devices.block = Some(block))
            }
            _ => continue,
        };
        if let Err(refusal) = started {
            say!(
                "WARNING virtio: device {id} at {:#x} {refusal}",
                device.base
            );
        }
    }
    devices
}
