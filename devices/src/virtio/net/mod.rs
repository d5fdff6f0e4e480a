//! The network device (virtio 1.2, 5.1) over a TAP.

mod announce;
mod header;
mod receive;
mod tap;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::{
    Backend, BackendState, Broken, DeviceIdentity, RestoreError, Served, Source, Transport,
    TransportState,
};
use crate::gate::{OutputGate, SinkId, Submit};
use crate::inbound::{InboundFrame, InboundLog};
use announce::{Address, Addresses};
use header::{From, HEADER_BYTES, Offloads};
pub use tap::{TapError, open as open_tap};

/// Device type of a network device (virtio 1.2, 5.1.1).
const DEVICE_ID: u32 = 1;

/// Queues (5.1.2) and their sizes.
const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;
const QUEUE_SIZES: &[u16] = &[256, 256, 64];

/// Feature bits (5.1.3).
mod feature {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
    pub(super) const CTRL_VQ: u64 = 1 << 17;
    pub(super) const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// What spares one side the work on each packet.
    pub(super) const OFFLOADS: u64 =
        CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6 | MRG_RXBUF;
}

/// Bits of the configuration space's status (5.1.4).
const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;

/// Longest frame: 65535 bytes, an Ethernet header and some slack for a tag.
const MAX_FRAME_BYTES: usize = 65550;
/// Shortest frame: an Ethernet header.
const MIN_FRAME_BYTES: usize = 14;

/// Commands of the control queue (5.1.6.5).
const CONTROL_ANNOUNCE: [u8; 2] = [3, 0];
const CONTROL_OK: u8 = 0;
const CONTROL_ERR: u8 = 1;

/// Most bytes of frames from the guest's twin that wait for buffers of the guest; twice what a
/// promotion brings.
const AGAIN_BYTES: usize = 8 << 20;
/// Charged for each of them besides its bytes.
const AGAIN_OVERHEAD: usize = 64;

/// Chains served in one go before other devices get their turn.
const BUDGET: usize = 256;

/// State of a network device, as captured with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The guest was asked to announce itself and has not answered.
    announce: bool,
    addresses: Vec<Address>,
}

/// What a network device dropped or moved since its creation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// Frames given to the guest.
    pub rx_frames: u64,
    /// Frames taken from the guest.
    pub tx_frames: u64,
    /// Frames too long for the guest's buffers, or left undone in a way it does not take.
    pub rx_dropped: u64,
    /// Frames of the guest that were too short, too long, left undone in a way that was not
    /// agreed on, or refused by the TAP.
    pub tx_dropped: u64,
}

/// A network device.
pub struct Net {
    number: u32,
    name: String,
    mac: [u8; 6],
    tap: Arc<OwnedFd>,
    gate: Arc<OutputGate>,
    sink: SinkId,
    inbound: Arc<InboundLog>,
    /// Frames that the guest's twin had taken in, to be given to it again.
    again: VecDeque<Vec<u8>>,
    /// What `again` takes, in bytes.
    again_cost: usize,
    /// Frames that came while the guest did not run here or had no driver.
    early: VecDeque<(Instant, Vec<u8>)>,
    announce: bool,
    addresses: Addresses,
    /// The frame in hand with its header, and one that waits here for buffers of the guest.
    buffer: Vec<u8>,
    waiting: Option<usize>,
    /// The same for a frame that the guest sends.
    outgoing: Vec<u8>,
    counters: NetCounters,
    tap_dropped: Arc<AtomicU64>,
}

impl Net {
    /// Network device `number` with the address `mac`, over `tap`: an open TAP, or anything
    /// else that moves one frame, behind a header of 12 bytes, per read and write. It is made
    /// non-blocking. Frames go out through `gate`; those that come in are recorded in
    /// `inbound`.
    pub fn new(
        number: u32,
        tap: OwnedFd,
        mac: [u8; 6],
        gate: Arc<OutputGate>,
        inbound: Arc<InboundLog>,
    ) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&tap, true)?;
        let tap = Arc::new(tap);
        let tap_dropped = Arc::new(AtomicU64::new(0));
        let sink = gate.add_sink(Box::new(tap::TapSink {
            tap: Arc::clone(&tap),
            dropped: Arc::clone(&tap_dropped),
        }));
        Ok(Self {
            number,
            name: format!("net{number}"),
            mac,
            tap,
            gate,
            sink,
            inbound,
            again: VecDeque::new(),
            again_cost: 0,
            early: VecDeque::new(),
            announce: false,
            addresses: Addresses::default(),
            buffer: vec![0; HEADER_BYTES + MAX_FRAME_BYTES],
            waiting: None,
            outgoing: vec![0; HEADER_BYTES + MAX_FRAME_BYTES],
            counters: NetCounters::default(),
            tap_dropped,
        })
    }

    /// What moved so far.
    pub fn counters(&self) -> NetCounters {
        let mut counters = self.counters;
        counters.tx_dropped += self.tap_dropped.load(Ordering::Relaxed);
        counters
    }

    /// Tells the TAP what it may leave undone.
    fn set_offloads(&self, offloads: Offloads) {
        if let Err(error) = tap::set_offloads(&self.tap, offloads) {
            // It took them when it was opened. What it leaves undone is looked at again.
            tracing::warn!(device = self.name, %error, "the TAP's offloads can't be changed");
        }
    }

    /// Takes frames from the guest to the gate.
    fn transmit(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        transport.serve(TX, BUDGET, |transport, chain| {
            Ok(match self.send(transport, chain)? {
                // The gate's room event notifies this queue.
                Submit::Full => Served::Later,
                Submit::Passed | Submit::Held => Served::Done(0),
            })
        })
    }

    fn send(&mut self, transport: &Transport, chain: &Chain) -> Result<Submit, Broken> {
        let length = (chain.readable.len() as usize).saturating_sub(HEADER_BYTES);
        if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&length) {
            self.counters.tx_dropped += 1;
            return Ok(Submit::Passed);
        }
        let whole = &mut self.outgoing[..HEADER_BYTES + length];
        if !chain.readable.read(transport.memory(), 0, whole) {
            return Err(Broken::Memory);
        }
        let passes = whole
            .first_chunk_mut()
            .and_then(|header| Offloads::of_device(transport).pass(header, From::Guest));
        if passes.is_none() {
            self.counters.tx_dropped += 1;
            return Ok(Submit::Passed);
        }
        let submit = self.gate.submit(self.sink, whole);
        if submit != Submit::Full {
            self.addresses.learn(&whole[HEADER_BYTES..]);
            self.counters.tx_frames += 1;
        }
        Ok(submit)
    }

    /// Serves the control queue (5.1.6.5). Announcements are the one class offered.
    fn control(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        transport.serve(CONTROL, BUDGET, |transport, chain| {
            let mut command = [0; 2];
            let known = chain.readable.read(transport.memory(), 0, &mut command)
                && command == CONTROL_ANNOUNCE
                && transport.has(feature::CTRL_VQ | feature::GUEST_ANNOUNCE);
            if known {
                self.announce = false;
            }
            let ack = [if known { CONTROL_OK } else { CONTROL_ERR }];
            let written = chain.writable.write(transport.memory(), 0, &ack);
            Ok(Served::Done(u32::from(written)))
        })
    }
}

impl Backend for Net {
    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity::Net { mac: self.mac }
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        feature::OFFLOADS
            | feature::MAC
            | feature::STATUS
            | feature::CTRL_VQ
            | feature::GUEST_ANNOUNCE
    }

    /// `struct virtio_net_config` (5.1.4) up to `status`.
    fn config(&self) -> Vec<u8> {
        let announce = if self.announce { ANNOUNCE } else { 0 };
        let mut config = self.mac.to_vec();
        config.extend((LINK_UP | announce).to_le_bytes());
        config
    }

    fn sources(&self) -> Vec<Source> {
        // Edge: while the guest has no buffers, frames wait in the TAP without an event.
        vec![Source {
            fd: self.tap.as_raw_fd(),
            edge: true,
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
            _ => self.control(transport),
        }
    }

    fn source_ready(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        if transport.is_active() {
            self.receive(transport)?;
        } else {
            self.take_early();
        }
        Ok(())
    }

    fn driver_up(&mut self, transport: &Transport) {
        self.set_offloads(Offloads::of_guest(transport));
    }

    fn reset(&mut self) {
        self.set_offloads(Offloads::default());
        self.waiting = None;
        self.again.clear();
        self.again_cost = 0;
        self.announce = false;
        self.addresses.clear();
    }

    fn save(&self) -> BackendState {
        let Self {
            announce,
            addresses,
            // The config's, and the same on both twins.
            number: _,
            name: _,
            mac: _,
            // Of this process only.
            tap: _,
            gate: _,
            sink: _,
            inbound: _,
            buffer: _,
            counters: _,
            tap_dropped: _,
            // The guest has not seen them: if they are lost, they were lost on the wire.
            again: _,
            again_cost: _,
            early: _,
            waiting: _,
            outgoing: _,
        } = self;
        BackendState::Net(NetState {
            announce: *announce,
            addresses: addresses.to_vec(),
        })
    }

    fn restore(
        &mut self,
        _transport: &TransportState,
        state: BackendState,
    ) -> Result<(), RestoreError> {
        let BackendState::Net(NetState {
            announce,
            addresses,
        }) = state
        else {
            return Err(RestoreError::Kind);
        };
        let count = addresses.len();
        self.addresses = Addresses::from_vec(addresses).ok_or(RestoreError::Addresses(count))?;
        self.announce = announce;
        self.waiting = None;
        Ok(())
    }

    fn resume(&mut self, _transport: &mut Transport) -> Result<(), Broken> {
        // Nothing is in flight between the guest and the gate.
        Ok(())
    }

    fn receive_again(
        &mut self,
        transport: &mut Transport,
        frames: &[InboundFrame],
    ) -> Result<(), Broken> {
        let ours = frames.iter().filter(|frame| {
            frame.card == self.number && frame.bytes.len() <= HEADER_BYTES + MAX_FRAME_BYTES
        });
        for frame in ours {
            let cost = frame.bytes.len() + AGAIN_OVERHEAD;
            if self.again_cost + cost > AGAIN_BYTES {
                self.counters.rx_dropped += 1;
                continue;
            }
            self.again_cost += cost;
            self.again.push_back(frame.bytes.clone());
        }
        if transport.is_active() {
            self.receive(transport)?;
        }
        Ok(())
    }

    fn announce(&mut self, transport: &mut Transport) {
        for frame in self.addresses.frames(self.mac) {
            let frame = [&[0; HEADER_BYTES][..], &frame].concat();
            if let Err(error) = rustix::io::write(&self.tap, &frame) {
                tracing::warn!(device = self.name, %error, "announcement could not be sent");
            }
        }
        // The guest knows best which addresses it has, IPv6 among them.
        if transport.is_active()
            && transport.has(feature::STATUS | feature::CTRL_VQ | feature::GUEST_ANNOUNCE)
        {
            self.announce = true;
            transport.config_changed();
        }
    }
}

#[cfg(test)]
mod tap_tests;
#[cfg(test)]
mod tests;
