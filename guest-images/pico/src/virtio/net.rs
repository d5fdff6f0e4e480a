//! The network device driver (virtio 1.2, 5.1), as smoltcp's device.

use alloc::boxed::Box;
use alloc::vec::Vec;

use pico::frame::{Peer, opens_connection};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use super::mmio::{Refusal, Transport};
use super::queue::{Segment, Virtqueue};
use super::{EVENT_IDX, VERSION_1};

const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_STATUS: u64 = 1 << 16;
const FEATURE_CONTROL_QUEUE: u64 = 1 << 17;
const FEATURE_GUEST_ANNOUNCE: u64 = 1 << 21;

/// Status bit of the configuration (virtio 1.2, 5.1.4): announce yourself.
const STATUS_ANNOUNCE: u16 = 2;
/// The acknowledging command (virtio 1.2, 5.1.6.5.4): class and command.
const ANNOUNCE_ACK: [u8; 2] = [3, 0];

/// Bytes of the header before each frame (virtio 1.2, 5.1.6.1).
const HEADER: usize = 12;
/// Header and the longest frame, rounded up, so that two buffers fit into a page.
const BUFFER: usize = 2048;
/// Longest frame without its checksum: MTU 1500.
const FRAME: usize = 1514;
/// Buffers in each direction, at most. A busy device touches all receive buffers in
/// turn, and each epoch ships what was touched: so not more than bursts need.
const SLOTS: u16 = 128;

/// Queue numbers (virtio 1.2, 5.1.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const CONTROL: u16 = 2;

#[repr(C, align(2048))]
struct Buffer([u8; BUFFER]);

/// A queue whose slots each have one buffer.
struct Ring {
    queue: Virtqueue,
    buffers: Box<[Buffer]>,
}

impl Ring {
    fn new(queue: Virtqueue) -> Self {
        let buffers = (0..queue.slots()).map(|_| Buffer([0; BUFFER])).collect();
        Self { queue, buffers }
    }

    fn submit(&mut self, slot: u16, length: usize, device_writes: bool) {
        let address = self.buffers[usize::from(slot)].0.as_mut_ptr() as u64;
        let segment = Segment {
            address,
            length: length as u32,
            device_writes,
        };
        // SAFETY: buffers are never moved or freed while the device runs, and a slot's
        // buffer is touched only while the slot isn't in flight.
        unsafe { self.queue.submit(slot, &[segment]) };
    }

    fn reclaim(&mut self) {
        while let Some((slot, _)) = self.queue.pop() {
            self.queue.release(slot);
        }
    }
}

/// The queue for commands: one at a time.
struct Control {
    queue: Virtqueue,
    /// Command and acknowledgement byte.
    message: Box<[u8; 3]>,
}

/// Which first segments of TCP connections are let through. Those that are dropped come
/// again a second later, as with any server whose backlog is full.
#[derive(Default)]
pub(crate) struct Admission {
    /// The server's port; other ports are no business of this.
    pub(crate) port: u16,
    /// Sockets that listen on it. Without one smoltcp would answer with a reset.
    pub(crate) listening: usize,
    /// Peers whose handshake isn't over. Their first segment, should it come again, would
    /// open a second connection at the next listening socket.
    pub(crate) half_open: Vec<Peer>,
}

impl Admission {
    fn admits(&mut self, frame: &[u8]) -> bool {
        match opens_connection(frame) {
            Some((peer, port)) if port == self.port => {
                let admitted = self.listening > 0 && !self.half_open.contains(&peer);
                if admitted {
                    self.listening -= 1;
                    self.half_open.push(peer);
                }
                admitted
            }
            _ => true,
        }
    }
}

/// A running network device.
pub(crate) struct NetDevice {
    transport: Transport,
    receive: Ring,
    transmit: Ring,
    control: Option<Control>,
    mac: [u8; 6],
    admission: Admission,
    starved: bool,
}

impl NetDevice {
    pub(super) fn start(transport: Transport) -> Result<Self, Refusal> {
        let announce = FEATURE_STATUS | FEATURE_CONTROL_QUEUE | FEATURE_GUEST_ANNOUNCE;
        let features = transport.negotiate(EVENT_IDX | FEATURE_MAC | announce, VERSION_1)?;
        let event_idx = features & EVENT_IDX != 0;
        let mut receive = Ring::new(transport.add_queue(RECEIVE, SLOTS, 1, event_idx)?);
        let mut transmit = Ring::new(transport.add_queue(TRANSMIT, SLOTS, 1, event_idx)?);
        let control = if features & announce == announce {
            let queue = transport.add_queue(CONTROL, 2, 2, event_idx)?;
            Some(Control {
                queue,
                message: Box::new([0; 3]),
            })
        } else {
            None
        };
        let mac = if features & FEATURE_MAC != 0 {
            transport.config(0)
        } else {
            // Locally administered; a device without an address is the only one.
            [0x02, 0x70, 0x69, 0x63, 0x6f, 0x00]
        };
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(Refusal::Config(
                "a MAC address that isn't a unicast address",
            ));
        }
        transmit.queue.refuse_interrupt();
        while let Some(slot) = receive.queue.take() {
            receive.submit(slot, BUFFER, true);
        }
        transport.driver_ok();
        transport.kick(&mut receive.queue);
        Ok(Self {
            transport,
            receive,
            transmit,
            control,
            mac,
            admission: Admission::default(),
            starved: false,
        })
    }

    /// The device's Ethernet address.
    pub(crate) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// What the stack must keep up to date before it polls.
    pub(crate) fn admission(&mut self) -> &mut Admission {
        &mut self.admission
    }

    /// Takes the interrupt that `wake` may hold. True: the host asks the guest to
    /// announce itself (virtio 1.2, 5.1.6.5.4).
    pub(crate) fn take_interrupt(&mut self, wake: u32) -> bool {
        let changed = self.transport.take_interrupt(wake);
        if let Some(control) = &mut self.control
            && let Some((slot, _)) = control.queue.pop()
        {
            control.queue.release(slot);
        }
        changed
            && self.control.is_some()
            && u16::from_le_bytes(self.transport.config(6)) & STATUS_ANNOUNCE != 0
    }

    /// Tells the host that the announcement is out.
    pub(crate) fn acknowledge_announcement(&mut self) {
        let Some(control) = &mut self.control else {
            return;
        };
        if let Some((slot, _)) = control.queue.pop() {
            control.queue.release(slot);
        }
        // A busy slot: the device has not taken the last acknowledgement yet, which
        // covers this announcement, too.
        let Some(slot) = control.queue.take() else {
            return;
        };
        control.message[..2].copy_from_slice(&ANNOUNCE_ACK);
        let address = control.message.as_mut_ptr() as u64;
        let command = Segment {
            address,
            length: 2,
            device_writes: false,
        };
        let answer = Segment {
            address: address + 2,
            length: 1,
            device_writes: true,
        };
        // SAFETY: the message lives as long as the device, and is written only while the
        // slot is free.
        unsafe { control.queue.submit(slot, &[command, answer]) };
        self.transport.kick(&mut control.queue);
    }

    /// Tells the device about what was sent and about free receive buffers.
    pub(crate) fn flush(&mut self) {
        self.transport.kick(&mut self.transmit.queue);
        self.transport.kick(&mut self.receive.queue);
    }

    /// Before sleeping: asks for interrupts. False: look again first.
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        let idle = self.receive.queue.want_interrupt();
        // Sent buffers are reclaimed when the next one is needed; only a full queue has
        // to wait for them.
        let drained = !self.starved || self.transmit.queue.want_interrupt();
        self.starved = false;
        idle && drained
    }

    /// After sleeping: no interrupts while there is work.
    pub(crate) fn awake(&mut self) {
        self.receive.queue.refuse_interrupt();
        self.transmit.queue.refuse_interrupt();
    }

    fn can_transmit(&mut self) -> bool {
        if !self.transmit.queue.has_free() {
            self.transmit.reclaim();
        }
        self.starved |= !self.transmit.queue.has_free();
        self.transmit.queue.has_free()
    }
}

impl Device for NetDevice {
    type RxToken<'a> = ReceivedFrame<'a>;
    type TxToken<'a> = FreeBuffer<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(ReceivedFrame<'_>, FreeBuffer<'_>)> {
        // smoltcp may answer each frame at once.
        if !self.can_transmit() {
            return None;
        }
        loop {
            let (slot, length) = self.receive.queue.pop()?;
            let length = (length as usize).min(BUFFER);
            let frame = &self.receive.buffers[usize::from(slot)].0[HEADER.min(length)..length];
            if !self.admission.admits(frame) {
                self.receive.submit(slot, BUFFER, true);
                continue;
            }
            let received = ReceivedFrame {
                ring: &mut self.receive,
                slot,
                length,
            };
            return Some((
                received,
                FreeBuffer {
                    ring: &mut self.transmit,
                },
            ));
        }
    }

    fn transmit(&mut self, _now: Instant) -> Option<FreeBuffer<'_>> {
        self.can_transmit().then_some(FreeBuffer {
            ring: &mut self.transmit,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities.checksum.ipv4 = Checksum::Both;
        capabilities.checksum.tcp = Checksum::Both;
        capabilities
    }
}

/// A received frame; its buffer goes back to the device when this is dropped.
pub(crate) struct ReceivedFrame<'a> {
    ring: &'a mut Ring,
    slot: u16,
    length: usize,
}

impl smoltcp::phy::RxToken for ReceivedFrame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.ring.buffers[usize::from(self.slot)].0[HEADER.min(self.length)..self.length])
    }
}

impl Drop for ReceivedFrame<'_> {
    fn drop(&mut self) {
        self.ring.submit(self.slot, BUFFER, true);
    }
}

/// The right to send one frame; a slot was free when it was made.
pub(crate) struct FreeBuffer<'a> {
    ring: &'a mut Ring,
}

impl smoltcp::phy::TxToken for FreeBuffer<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let slot = self
            .ring
            .queue
            .take()
            .expect("a token stands for a free slot");
        let buffer = &mut self.ring.buffers[usize::from(slot)].0[..HEADER + length];
        buffer[..HEADER].fill(0);
        let result = f(&mut buffer[HEADER..]);
        self.ring.submit(slot, HEADER + length, false);
        result
    }
}
