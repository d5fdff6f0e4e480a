//! What the gate has let go, on its way to the device's thread.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, eventfd};

use crate::gate::Sink;
use crate::lock;

/// With more bytes than this waiting, the device takes nothing more from the guest. What the
/// gate releases still comes in: it is bounded by the gate's own limit.
const LIMIT_BYTES: usize = 1 << 20;
/// Charged for each packet besides its bytes.
const PACKET_OVERHEAD: usize = 64;

#[derive(Default)]
struct Packets {
    waiting: VecDeque<Vec<u8>>,
    cost: usize,
}

/// Packets in order, and an event that says that there are some.
pub(super) struct Outbox {
    packets: Mutex<Packets>,
    event: OwnedFd,
}

impl Outbox {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            packets: Mutex::default(),
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        }))
    }

    pub(super) fn event(&self) -> &OwnedFd {
        &self.event
    }

    pub(super) fn is_full(&self) -> bool {
        lock(&self.packets).cost >= LIMIT_BYTES
    }

    /// Takes all that are there.
    pub(super) fn take(&self) -> VecDeque<Vec<u8>> {
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        let mut packets = lock(&self.packets);
        packets.cost = 0;
        std::mem::take(&mut packets.waiting)
    }
}

/// The gate's way to an outbox. Sockets are left to the device: a release never waits for them.
pub(super) struct OutboxSink(pub(super) Arc<Outbox>);

impl Sink for OutboxSink {
    fn emit(&mut self, packet: &[u8]) {
        let mut packets = lock(&self.0.packets);
        packets.cost += packet.len() + PACKET_OVERHEAD;
        packets.waiting.push_back(packet.to_vec());
        if packets.waiting.len() == 1 {
            // Its counter can't overflow: it grows once per taking.
            let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
        }
    }
}
