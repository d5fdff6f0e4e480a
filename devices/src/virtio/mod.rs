//! Virtio devices behind the memory-mapped transport (virtio 1.2, 4.2).

pub mod block;
pub mod chain;
#[cfg(test)]
mod hostile;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
mod state;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod vsock;

use std::fmt;
use std::io;

use bytes::Bytes;
use event_manager::MutEventSubscriber;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::inbound::InboundFrame;

use block::Block;
pub use mmio::VirtioMmio;
pub use state::{QueueState, RestoreError, TransportState};
pub use transport::{Served, Transport};

/// Feature bits every device of ours may offer (virtio 1.2, 6).
pub mod feature {
    /// `VIRTIO_F_INDIRECT_DESC`.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `VIRTIO_F_EVENT_IDX`.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`.
    pub const VERSION_1: u64 = 1 << 32;
    /// The ones above: what the transport handles for each device.
    pub const TRANSPORT: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
}

/// A disk write that completed on the primary, to be repeated on its twin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskWrite {
    /// Number of the disk, as in the config.
    pub disk: u32,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// What was written.
    pub data: DiskData,
}

/// What was written to a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskData {
    /// These very bytes.
    Bytes(Bytes),
    /// As many zeroes, which take no room here.
    Zeroes {
        /// How many.
        len: u64,
        /// The disk's space was given back.
        unmap: bool,
    },
}

impl DiskData {
    /// Bytes of the disk that it covers.
    pub fn span(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeroes { len, .. } => *len,
        }
    }
}

/// What both twins must agree on about a device, besides its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceIdentity {
    /// A block device.
    Block {
        /// Number of the disk.
        disk: u32,
        /// Size in sectors of 512 bytes.
        sectors: u64,
        /// Whether the guest may not write.
        read_only: bool,
        /// Its serial number.
        serial: String,
    },
    /// A network device.
    Net {
        /// Its address.
        mac: [u8; 6],
    },
    /// An entropy device.
    Rng,
    /// A socket device.
    Vsock {
        /// Address of its guest.
        cid: u32,
    },
}

impl fmt::Display for DeviceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block {
                disk,
                sectors,
                read_only,
                serial,
            } => {
                let mode = if *read_only { ", read-only" } else { "" };
                write!(f, "disk {disk}, {serial}, of {sectors} sectors{mode}")
            }
            Self::Net {
                mac: [a, b, c, d, e, g],
            } => {
                write!(f, "net {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
            Self::Rng => f.write_str("rng"),
            Self::Vsock { cid } => write!(f, "vsock, cid {cid}"),
        }
    }
}

/// A device as the machine sees it. Held as `Arc<Mutex<dyn Device>>` and shared by the
/// bus, the event loop and the checkpointer; whoever has the mutex finds the device
/// between two requests.
pub trait Device: BusDevice + MutEventSubscriber {
    /// A short name for logs: `disk0`, `net0`.
    fn name(&self) -> &str;

    /// What a twin's device must match.
    fn identity(&self) -> DeviceIdentity;

    /// One event fd per queue: written when the guest notifies the queue.
    fn queue_events(&self) -> &[EventFd];

    /// Written when the device raises its interrupt (edge).
    fn irq(&self) -> &EventFd;

    /// Whether the guest's driver has set the device up (`DRIVER_OK`, virtio 1.2, 2.1).
    fn driver_ready(&self) -> bool;

    /// Puts the device back to its state at power-on, as if the guest had reset it.
    fn reset(&mut self);

    /// Captures the device's state. Never waits for a disk: requests in flight are part of
    /// the state.
    fn save(&self) -> DeviceState;

    /// Takes over a captured state, with guest memory already in place. Nothing moves until
    /// [`Device::resume`]. The state is untrusted; on an error the device is as before.
    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError>;

    /// Gets a restored device going (I7): issues the requests that were in flight, kicks
    /// every queue and raises the interrupt again if one is pending.
    fn resume(&mut self);

    /// Tells the network where the guest is now. Nothing to do for other devices.
    fn announce(&mut self);

    /// Gives a promoted guest the frames that its twin had received in epochs which never
    /// committed, before anything newer. Frames of other cards are left out.
    fn receive_again(&mut self, frames: &[InboundFrame]);

    /// Disk writes completed since the last call while recording was on, in order.
    fn take_disk_writes(&mut self) -> Vec<DiskWrite>;

    /// Starts or stops recording disk writes; stopping forgets what was recorded.
    fn record_disk_writes(&mut self, on: bool);

    /// Repeats the twin's writes on this side's disk. Writes for other disks are left out.
    fn apply_disk_writes(&mut self, writes: &[DiskWrite]) -> io::Result<()>;

    /// The next contents of a writable disk at or after byte `from`, at most `limit` bytes,
    /// with holes passed over. None at the disk's end, and for all other devices.
    fn next_disk_contents(&self, from: u64, limit: usize) -> io::Result<Option<DiskWrite>>;

    /// Has the guest's disk grow to so many sectors of its image, and tells the guest (virtio 1.2, 5.2.3). False, and
    /// nothing has changed, if there is no such room or this is no disk.
    fn grow(&mut self, sectors: u64) -> bool;
    /// The writable disk that this is, if it is one.
    fn disk(&mut self) -> Option<&mut Block>;
}

/// State of a device, as captured with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    transport: TransportState,
    backend: BackendState,
}

impl DeviceState {
    /// The sectors of a disk that has grown since its twin was filled.
    pub fn grown_to(&self) -> Option<u64> {
        match &self.backend {
            BackendState::GrownBlock(_, sectors) => Some(*sectors),
            _ => None,
        }
    }
}

/// The part of a device's state behind the transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackendState {
    /// Of a block device.
    Block(block::BlockState),
    /// Of a network device.
    Net(net::NetState),
    /// Of an entropy device, which has none.
    Rng,
    /// Of a socket device.
    Vsock(vsock::VsockState),
    /// Of a block device that has grown since its twin was filled, and its sectors. The others' sizes were agreed on then.
    GrownBlock(block::BlockState, u64),
}

/// A queue or register can't be used as the guest set it up: the device stops and asks
/// for a reset (virtio 1.2, 2.1.2, `DEVICE_NEEDS_RESET`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The available ring's index is further ahead than the ring is long.
    #[error("available ring index is further ahead than the queue is long")]
    AvailIndex,
    /// A descriptor chain breaks the rules of virtio 1.2, 2.7.
    #[error("descriptor chain is malformed: {0}")]
    Chain(#[from] chain::ChainError),
    /// A ring isn't in guest memory.
    #[error("queue {0} is not in guest memory, misaligned or of a bad size")]
    QueueSetup(usize),
    /// A block request without a byte for its status.
    #[error("block request has no status byte")]
    NoStatus,
    /// Writing to a ring or buffer failed.
    #[error("guest memory can't be written")]
    Memory,
}

/// What a device does behind the transport.
pub trait Backend: Send {
    /// A short name for logs.
    fn name(&self) -> &str;
    /// What a twin's device must match.
    fn identity(&self) -> DeviceIdentity;
    /// Device type (virtio 1.2, 5).
    fn device_id(&self) -> u32;
    /// Largest size of each queue.
    fn queue_max_sizes(&self) -> &'static [u16];
    /// Features offered, without those of the transport.
    fn features(&self) -> u64;
    /// The device's configuration space.
    fn config(&self) -> Vec<u8>;
    /// File descriptors to watch for input, besides the queues.
    fn sources(&self) -> Vec<Source>;
    /// Called once the transport has its event fds.
    fn attach(&mut self, queue_events: &[EventFd]) -> io::Result<()>;
    /// The guest notified `queue`.
    fn notified(&mut self, transport: &mut Transport, queue: usize) -> Result<(), Broken>;
    /// A source is ready. Called even while the guest's driver is not, to clear the event.
    fn source_ready(&mut self, transport: &mut Transport) -> Result<(), Broken>;
    /// The guest's driver is up, with features that stay until a reset.
    fn driver_up(&mut self, _transport: &Transport) {}
    /// The guest reset the device.
    fn reset(&mut self);
    /// Captures the state.
    fn save(&self) -> BackendState;
    /// Takes over a captured state; the transport's is already in place. On an error
    /// nothing has changed.
    fn restore(
        &mut self,
        transport: &TransportState,
        state: BackendState,
    ) -> Result<(), RestoreError>;
    /// Issues again what was in flight when the state was captured.
    fn resume(&mut self, transport: &mut Transport) -> Result<(), Broken>;
    /// See [`Device::announce`].
    fn announce(&mut self, _transport: &mut Transport) {}
    /// See [`Device::receive_again`].
    fn receive_again(
        &mut self,
        _transport: &mut Transport,
        _frames: &[InboundFrame],
    ) -> Result<(), Broken> {
        Ok(())
    }
    /// See [`Device::take_disk_writes`].
    fn take_disk_writes(&mut self) -> Vec<DiskWrite> {
        Vec::new()
    }
    /// See [`Device::record_disk_writes`].
    fn record_disk_writes(&mut self, _on: bool) {}
    /// See [`Device::apply_disk_writes`].
    fn apply_disk_writes(&mut self, _writes: &[DiskWrite]) -> io::Result<()> {
        Ok(())
    }
    /// See [`Device::next_disk_contents`].
    fn next_disk_contents(&self, _from: u64, _limit: usize) -> io::Result<Option<DiskWrite>> {
        Ok(None)
    }
    /// See [`Device::grow`].
    fn grow(&mut self, _sectors: u64) -> bool {
        false
    }
    /// See [`Device::disk`].
    fn disk(&mut self) -> Option<&mut Block> {
        None
    }
}

/// A file descriptor the event loop watches for a [`Backend`].
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// The descriptor; it lives as long as the backend.
    pub fd: std::os::fd::RawFd,
    /// Report each new readiness once, rather than as long as it lasts.
    pub edge: bool,
}
