//! Captured state of the transport and its queues.

use serde::{Deserialize, Serialize};

/// State of the memory-mapped transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Features the driver accepted.
    pub(crate) driver_features: u64,
    /// Feature word the guest reads.
    pub(crate) device_features_sel: u32,
    /// Feature word the guest writes.
    pub(crate) driver_features_sel: u32,
    /// Queue the guest sets up.
    pub(crate) queue_sel: u32,
    /// Device status.
    pub(crate) status: u32,
    /// Interrupt status.
    pub(crate) interrupt_status: u32,
    /// Generation of the configuration space.
    pub(crate) config_generation: u32,
    /// The queues.
    pub(crate) queues: Vec<QueueState>,
}

/// State of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Size register.
    pub(crate) size: u32,
    /// Address of the descriptor table.
    pub(crate) descriptors: u64,
    /// Address of the driver's (available) ring.
    pub(crate) driver: u64,
    /// Address of the device's (used) ring.
    pub(crate) device: u64,
    /// Whether the queue is in use.
    pub(crate) ready: bool,
    /// Next entry of the available ring to take.
    pub(crate) next_avail: u16,
    /// Next entry of the used ring to fill.
    pub(crate) next_used: u16,
}

/// Why a captured device state was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The state is of another kind of device.
    #[error("state of another kind of device: give both twins the same list of devices")]
    Kind,
    /// The driver had accepted features this device doesn't offer.
    #[error("state uses features {0:#x} that this device lacks: run one version on both twins")]
    Features(u64),
    /// The device status has impossible bits.
    #[error("device status {0:#x} is impossible: the state is corrupt")]
    Status(u32),
    /// Another number of queues.
    #[error("state has {0} queues: run one version on both twins")]
    QueueCount(usize),
    /// A queue's size, addresses or position make no sense.
    #[error("queue {0} is not in guest memory or of a bad size: the state is corrupt")]
    Queue(usize),
    /// A disk of another size.
    #[error("the disk has {0} sectors, and its image here is smaller: make it as large")]
    Size(u64),
    /// The requests in flight make no sense.
    #[error("requests in flight are impossible: the state is corrupt")]
    InFlight,
    /// More learnt addresses than a device keeps.
    #[error("{0} learnt addresses are too many: the state is corrupt")]
    Addresses(usize),
}
