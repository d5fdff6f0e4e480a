//! The socket device (virtio 1.2, 5.10): byte streams between the guest and programs of the
//! host, without a network.
//!
//! On the host these are Unix sockets. A program reaches port P of the guest by connecting to
//! the VM's socket and writing `CONNECT P` and a newline; the answer is `OK` and a number. The
//! guest reaches the program that listens on the VM's socket path with `_P` added.
//!
//! Packets of the guest go through the output gate whole, and only what comes out of it has
//! effects on the host (I1). Connections end with the host they were made on: the guest of a
//! promoted twin is told so.

mod connection;
mod greeting;
mod listener;
mod muxer;
mod outbox;
mod packet;
mod token;

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::{
    Backend, BackendState, Broken, DeviceIdentity, RestoreError, Served, Source, Transport,
    TransportState,
};
use crate::gate::{OutputGate, SinkId, Submit};
pub use listener::{SocketError, SocketPath};
use muxer::Muxer;
use outbox::{Outbox, OutboxSink};
use packet::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES};

/// Device type of a socket device (virtio 1.2, 5.10.1).
const DEVICE_ID: u32 = 19;

/// Queues (5.10.2) and their sizes.
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
const QUEUE_SIZES: &[u16] = &[256, 256, 64];

/// `VIRTIO_VSOCK_F_STREAM` (5.10.3).
const FEATURE_STREAM: u64 = 1 << 0;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (5.10.6.7): all connections have ended.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// Chains served in one go before other devices get their turn.
const BUDGET: usize = 256;

/// CIDs a guest may have (5.10.4): smaller ones and the largest have meanings of their own.
pub const GUEST_CIDS: std::ops::RangeInclusive<u32> = 3..=0xffff_fffe;

/// State of a socket device, as captured with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest is to be told that its connections have ended.
    reset_pending: bool,
}

/// What a socket device moved or dropped since its creation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VsockCounters {
    /// Packets given to the guest.
    pub rx_packets: u64,
    /// Packets taken from the guest.
    pub tx_packets: u64,
    /// Buffers of the guest without room for a packet, and resets it had no buffers for.
    pub rx_dropped: u64,
    /// Packets of the guest that were too short or not its own.
    pub tx_dropped: u64,
    /// Connections for which there was no room, or nobody on the host.
    pub refused: u64,
}

/// A socket device.
pub struct Vsock {
    cid: u32,
    gate: Arc<OutputGate>,
    sink: SinkId,
    outbox: Arc<Outbox>,
    muxer: Muxer,
    reset_pending: bool,
    /// The gate had no room for the news of a reset.
    reset_unsent: bool,
    /// Packets of the guest wait until the outbox has been emptied.
    stalled: bool,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    counters: VsockCounters,
}

impl Vsock {
    /// A device through which the guest has the address `cid`, one of [`GUEST_CIDS`], with the
    /// host's end at `socket`. Nothing is there before the guest's driver is up.
    ///
    /// # Errors
    /// The socket's directory can't be written to, or the host has no descriptors left.
    pub fn new(cid: u32, socket: SocketPath, gate: Arc<OutputGate>) -> Result<Self, SocketError> {
        socket.check_directory()?;
        let path = socket.as_path().to_owned();
        let error = |error| SocketError::Io { path, error };
        let outbox = Outbox::new().and_then(|outbox| {
            let muxer = Muxer::new(cid, socket, Arc::clone(&outbox))?;
            Ok((outbox, muxer))
        });
        let (outbox, muxer) = outbox.map_err(error)?;
        let sink = gate.add_sink(Box::new(OutboxSink(Arc::clone(&outbox))));
        Ok(Self {
            cid,
            gate,
            sink,
            outbox,
            muxer,
            reset_pending: false,
            reset_unsent: false,
            stalled: false,
            incoming: vec![0; HEADER_BYTES + MAX_PAYLOAD_BYTES],
            outgoing: vec![0; HEADER_BYTES + MAX_PAYLOAD_BYTES],
            counters: VsockCounters::default(),
        })
    }

    /// What moved so far.
    pub fn counters(&self) -> VsockCounters {
        let dropped = self.muxer.dropped();
        let mut counters = self.counters;
        counters.rx_dropped += dropped.resets;
        counters.refused += dropped.refused;
        counters
    }

    /// Takes packets from the guest to the gate.
    fn transmit(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        // The gate's room event comes back here.
        if !self.send_reset() {
            return Ok(());
        }
        transport.serve(TX, BUDGET, |transport, chain| {
            if self.outbox.is_full() {
                self.stalled = true;
                return Ok(Served::Later);
            }
            Ok(match self.send(transport, chain)? {
                Submit::Full => Served::Later,
                Submit::Passed | Submit::Held => Served::Done(0),
            })
        })
    }

    fn send(&mut self, transport: &Transport, chain: &Chain) -> Result<Submit, Broken> {
        let mut head = [0; HEADER_BYTES];
        let there = chain.readable.len() as usize;
        if there < HEADER_BYTES {
            self.counters.tx_dropped += 1;
            return Ok(Submit::Passed);
        }
        if !chain.readable.read(transport.memory(), 0, &mut head) {
            return Err(Broken::Memory);
        }
        let header = Header::parse(&head);
        if header.src_cid != u64::from(self.cid) {
            self.counters.tx_dropped += 1;
            return Ok(Submit::Passed);
        }
        // A payload that can't be is left out; its connection is reset for it.
        let length = Some(header.len as usize)
            .filter(|length| *length <= MAX_PAYLOAD_BYTES.min(there - HEADER_BYTES));
        let whole = &mut self.outgoing[..HEADER_BYTES + length.unwrap_or(0)];
        // The header that was looked at, not what the guest may have put there since.
        let (first, payload) = whole.split_at_mut(HEADER_BYTES);
        first.copy_from_slice(&head);
        let at = HEADER_BYTES as u32;
        if !chain.readable.read(transport.memory(), at, payload) {
            return Err(Broken::Memory);
        }
        let submit = self.gate.submit(self.sink, whole);
        if submit != Submit::Full {
            self.counters.tx_packets += 1;
        }
        Ok(submit)
    }

    /// Sends an owed reset through the gate, behind the packets before it. False if there is
    /// no room.
    fn send_reset(&mut self) -> bool {
        if self.reset_unsent {
            self.reset_unsent = self.gate.submit(self.sink, &[]) == Submit::Full;
        }
        !self.reset_unsent
    }

    /// Gives packets to the guest, as long as there are some and it has buffers.
    fn receive(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        transport.serve(RX, BUDGET, |transport, chain| {
            let room = (chain.writable.len() as usize).min(self.incoming.len());
            if room <= HEADER_BYTES {
                self.counters.rx_dropped += 1;
                return Ok(Served::Done(0));
            }
            let Some(length) = self.muxer.next_packet(&mut self.incoming[..room]) else {
                return Ok(Served::Later);
            };
            let packet = &self.incoming[..length];
            if !chain.writable.write(transport.memory(), 0, packet) {
                return Err(Broken::Memory);
            }
            self.counters.rx_packets += 1;
            Ok(Served::Done(length as u32))
        })
    }

    /// Tells the guest that its connections have ended, once it has a buffer for it (5.10.6.7).
    fn tell_reset(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        if !self.reset_pending {
            return Ok(());
        }
        transport.serve(EVENT, BUDGET, |transport, chain| {
            if !self.reset_pending {
                return Ok(Served::Later);
            }
            let event = &TRANSPORT_RESET[..];
            let fits = chain.writable.write(transport.memory(), 0, event);
            self.reset_pending = !fits;
            Ok(Served::Done(if fits { event.len() as u32 } else { 0 }))
        })
    }
}

impl Backend for Vsock {
    fn name(&self) -> &str {
        "vsock"
    }

    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity::Vsock { cid: self.cid }
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    /// `struct virtio_vsock_config` (5.10.4).
    fn config(&self) -> Vec<u8> {
        u64::from(self.cid).to_le_bytes().to_vec()
    }

    fn sources(&self) -> Vec<Source> {
        // As long as it lasts: not all of it is handled at once.
        vec![Source {
            fd: self.muxer.fd(),
            edge: false,
        }]
    }

    fn attach(&mut self, queue_events: &[EventFd]) -> io::Result<()> {
        self.gate
            .set_room_event(self.sink, queue_events[TX].try_clone()?);
        Ok(())
    }

    fn notified(&mut self, transport: &mut Transport, queue: usize) -> Result<(), Broken> {
        match queue {
            RX => self.receive(transport),
            TX => self.transmit(transport),
            _ => self.tell_reset(transport),
        }
    }

    fn source_ready(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        self.muxer.poll();
        if !transport.is_active() {
            return Ok(());
        }
        if std::mem::take(&mut self.stalled) {
            transport.reschedule(TX);
        }
        self.receive(transport)
    }

    fn driver_up(&mut self, _transport: &Transport) {
        self.muxer.driver_up();
    }

    fn reset(&mut self) {
        self.reset_pending = false;
        self.stalled = false;
        self.muxer.driver_down();
        if !std::mem::replace(&mut self.reset_unsent, true) {
            self.muxer.await_reset();
        }
        self.send_reset();
    }

    fn save(&self) -> BackendState {
        let Self {
            reset_pending,
            // The config's, and the same on both twins.
            cid: _,
            // Of this process only: the guest's connections end with it.
            gate: _,
            sink: _,
            outbox: _,
            muxer: _,
            reset_unsent: _,
            stalled: _,
            incoming: _,
            outgoing: _,
            counters: _,
        } = self;
        BackendState::Vsock(VsockState {
            reset_pending: *reset_pending,
        })
    }

    fn restore(
        &mut self,
        _transport: &TransportState,
        state: BackendState,
    ) -> Result<(), RestoreError> {
        let BackendState::Vsock(VsockState { reset_pending }) = state else {
            return Err(RestoreError::Kind);
        };
        self.reset_pending = reset_pending;
        self.reset_unsent = false;
        self.stalled = false;
        self.muxer.clear();
        Ok(())
    }

    fn resume(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        // Whatever the guest was connected to was connected to another process.
        self.reset_pending = true;
        self.tell_reset(transport)
    }
}

#[cfg(test)]
mod tests;
