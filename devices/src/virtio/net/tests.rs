use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::super::Device;
use super::super::feature::{EVENT_IDX, TRANSPORT, VERSION_1};
use super::super::testing::{self, DATA, Driver, readable, reg, writable};
use super::receive::{EARLY_FRAMES, FRESH};
use super::*;

const ALL: u64 =
    TRANSPORT | feature::MAC | feature::STATUS | feature::CTRL_VQ | feature::GUEST_ANNOUNCE;
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// A network card whose TAP is one end of a socket pair.
struct Card {
    driver: Driver<Net>,
    gate: Arc<OutputGate>,
    wire: OwnedFd,
    inbound: Arc<InboundLog>,
}

fn net() -> (Net, Arc<OutputGate>, OwnedFd, Arc<InboundLog>) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (tap, wire) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).unwrap();
    let gate = OutputGate::new(1 << 20).unwrap();
    let inbound = InboundLog::new().unwrap();
    let net = Net::new(0, tap, MAC, Arc::clone(&gate), Arc::clone(&inbound)).unwrap();
    (net, gate, wire, inbound)
}

impl Card {
    fn new(features: u64) -> Self {
        let (net, gate, wire, inbound) = net();
        Self {
            driver: Driver::up(testing::memory(), net, features, 64),
            gate,
            wire,
            inbound,
        }
    }

    fn twin(other: &Self) -> Self {
        let (net, gate, wire, inbound) = net();
        let mut driver = Driver::new(testing::copy(&other.driver.mem), net);
        driver.take_over(&other.driver);
        Self {
            driver,
            gate,
            wire,
            inbound,
        }
    }

    /// Offers a frame to send, behind its header.
    fn send(&mut self, frame: &[u8]) {
        self.driver.fill(DATA, &[0xaa; HEADER_BYTES]);
        self.driver.fill(DATA + HEADER_BYTES as u64, frame);
        let total = (HEADER_BYTES + frame.len()) as u32;
        self.driver.offer(TX, &[readable(DATA, total)]);
        self.driver.kick(TX);
        self.driver.turn();
    }

    /// What has come out on the wire.
    fn on_wire(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut frame = vec![0; 1 << 17];
        while let Ok(length) = rustix::io::read(&self.wire, &mut frame) {
            let (header, frame) = frame[..length].split_at(HEADER_BYTES);
            assert_eq!(header, [0; HEADER_BYTES]);
            frames.push(frame.to_vec());
        }
        frames
    }

    fn put_on_wire(&self, frame: &[u8]) {
        let frame = [&[0; HEADER_BYTES][..], frame].concat();
        rustix::io::write(&self.wire, &frame).unwrap();
    }

    fn status(&self) -> u8 {
        self.driver.config(6, 2)[0]
    }
}

fn frame(number: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![number; length];
    frame[..6].fill(0xff);
    frame
}

fn arp_reply(ip: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0; 42];
    frame[6..12].copy_from_slice(&MAC);
    frame[12..14].copy_from_slice(&[8, 6]);
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    frame[22..28].copy_from_slice(&MAC);
    frame[28..32].copy_from_slice(&ip);
    frame
}

#[test]
fn frames_reach_the_wire_as_the_guest_made_them() {
    for features in [ALL, VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut card = Card::new(features);
        for number in 0..100 {
            card.send(&frame(number, 60 + usize::from(number)));
            assert_eq!(card.driver.returned(TX).len(), 1);
            assert_eq!(card.on_wire(), [frame(number, 60 + usize::from(number))]);
        }
        assert_eq!(card.driver.device().backend().counters().tx_frames, 100);
    }
}

#[test]
fn a_frame_may_come_in_pieces() {
    let mut card = Card::new(ALL);
    card.driver.fill(DATA, &[0; HEADER_BYTES]);
    card.driver.fill(DATA + 100, &frame(3, 60));
    let pieces = [
        readable(DATA, 5),
        readable(DATA + 5, 7),
        readable(DATA + 100, 10),
        readable(DATA + 110, 50),
    ];
    card.driver.offer_indirect(TX, 0x9_0000, &pieces);
    card.driver.kick(TX);
    card.driver.wait(TX, 1);
    assert_eq!(card.on_wire(), [frame(3, 60)]);
}

#[test]
fn frames_too_short_or_too_long_are_dropped() {
    let mut card = Card::new(ALL);
    for length in [
        0,
        HEADER_BYTES,
        HEADER_BYTES + 13,
        HEADER_BYTES + MAX_FRAME_BYTES + 1,
    ] {
        card.driver.offer(TX, &[readable(DATA, length as u32)]);
    }
    card.driver.offer(TX, &[writable(DATA, 100)]);
    card.driver.kick(TX);
    card.driver.wait(TX, 5);
    assert!(card.on_wire().is_empty());
    assert_eq!(card.driver.device().backend().counters().tx_dropped, 5);
    assert_eq!(card.driver.get(reg::STATUS), 15);
}

#[test]
fn held_frames_leave_with_their_epoch() {
    let mut card = Card::new(ALL);
    card.gate.hold();
    card.send(&frame(1, 60));
    assert_eq!(card.driver.returned(TX).len(), 1, "the guest goes on");
    assert!(card.on_wire().is_empty());
    card.gate.seal(1);
    card.send(&frame(2, 60));
    card.gate.release_through(1);
    assert_eq!(card.on_wire(), [frame(1, 60)]);
}

#[test]
fn a_full_gate_makes_the_guest_wait() {
    let mut card = Card::new(ALL);
    card.gate.hold();
    let mut sent = 0;
    // The gate takes 1 MiB.
    while sent < 40 {
        card.send(&frame(sent, 60_000));
        sent += 1;
    }
    let taken = card.driver.returned(TX).len();
    assert_eq!(taken, 17);
    card.gate.open();
    // The socket takes fewer than the gate had: read as they come.
    let first = card.on_wire();
    assert!(!first.is_empty());
    assert_eq!(card.driver.wait(TX, 40 - taken).len(), 40 - taken);
    assert_eq!(card.gate.counters().full, 23);
}

#[test]
fn frames_reach_the_guest_with_a_header() {
    let mut card = Card::new(ALL);
    card.driver
        .offer(RX, &[writable(DATA, 6), writable(DATA + 0x1000, 2000)]);
    card.driver.offer(RX, &[writable(DATA + 0x2000, 2000)]);
    card.driver.kick(RX);
    card.driver.turn();
    card.put_on_wire(&frame(7, 60));
    assert_eq!(card.driver.wait(RX, 1), [(0, 72)]);
    assert!(card.driver.interrupted());
    assert_eq!(card.driver.bytes(DATA, 6), [0; 6]);
    assert_eq!(card.driver.bytes(DATA + 0x1000, 6), [0, 0, 0, 0, 1, 0]);
    assert_eq!(card.driver.bytes(DATA + 0x1006, 60), frame(7, 60));
    card.put_on_wire(&frame(8, 1500));
    assert_eq!(card.driver.wait(RX, 1), [(2, 1512)]);
    assert_eq!(card.driver.bytes(DATA + 0x200c, 1500), frame(8, 1500));
}

#[test]
fn frames_wait_in_the_tap_while_the_guest_has_no_buffers() {
    for features in [ALL, VERSION_1] {
        let mut card = Card::new(features);
        for number in 0..3 {
            card.put_on_wire(&frame(number, 60));
        }
        card.driver.turn();
        for number in 0..3 {
            card.driver.offer(RX, &[writable(DATA, 2000)]);
            card.driver.kick(RX);
            assert_eq!(card.driver.wait(RX, 1).len(), 1);
            assert_eq!(card.driver.bytes(DATA + 12, 60), frame(number, 60));
        }
    }
}

#[test]
fn a_frame_too_long_for_the_buffer_is_dropped() {
    let mut card = Card::new(ALL);
    card.driver.offer(RX, &[writable(DATA, 100)]);
    card.driver.kick(RX);
    card.put_on_wire(&frame(1, 89));
    card.put_on_wire(&frame(2, 88));
    assert_eq!(card.driver.wait(RX, 1), [(0, 100)]);
    assert_eq!(card.driver.bytes(DATA + 12, 88), frame(2, 88));
    assert_eq!(card.driver.device().backend().counters().rx_dropped, 1);
}

#[test]
fn a_promoted_guest_gets_only_the_latest_of_what_its_tap_heard() {
    let mut card = Card::new(ALL);
    for number in 0..EARLY_FRAMES as u64 {
        card.driver
            .offer(RX, &[writable(DATA + number * 0x100, 0x100)]);
    }
    card.driver.kick(RX);
    card.driver.turn();
    let state = card.driver.save();

    let mut twin = Card::twin(&card);
    twin.put_on_wire(&frame(1, 60));
    twin.driver.turn();
    std::thread::sleep(FRESH);
    twin.driver.device().restore(state).unwrap();
    for number in 0..80 {
        twin.put_on_wire(&frame(100 + number, 60));
        twin.driver.turn();
    }
    twin.driver.kick(RX);
    twin.driver.turn();
    assert!(twin.driver.returned(RX).is_empty());
    twin.driver.device().resume();
    assert_eq!(twin.driver.wait(RX, EARLY_FRAMES).len(), EARLY_FRAMES);
    assert_eq!(twin.driver.bytes(DATA + 12, 60), frame(116, 60));
}

#[test]
fn a_promoted_guest_gets_again_what_its_twin_had_received() {
    let mut card = Card::new(ALL);
    for number in [1, 2] {
        card.driver
            .offer(RX, &[writable(DATA + number * 0x1000, 2000)]);
    }
    card.driver.kick(RX);
    card.driver.turn();
    let state = card.driver.save();
    let mut twin = Card::twin(&card);

    card.inbound.record(true);
    card.put_on_wire(&frame(1, 60));
    card.put_on_wire(&frame(2, 60));
    assert_eq!(card.driver.wait(RX, 2).len(), 2);
    let mut frames = card.inbound.take();
    assert_eq!(frames.len(), 2);
    // Another card's, and one that no network carries.
    frames.insert(
        0,
        InboundFrame {
            card: 1,
            epoch: 0,
            bytes: [vec![0; HEADER_BYTES], frame(9, 60)].concat(),
        },
    );
    frames.insert(
        1,
        InboundFrame {
            card: 0,
            epoch: 0,
            bytes: vec![9; HEADER_BYTES + MAX_FRAME_BYTES + 1],
        },
    );
    twin.driver.device().receive_again(&frames);
    twin.put_on_wire(&frame(3, 60));
    twin.driver.device().restore(state).unwrap();
    twin.driver.device().resume();
    assert_eq!(twin.driver.wait(RX, 2).len(), 2);
    for number in [1, 2] {
        let at = DATA + u64::from(number) * 0x1000 + 12;
        assert_eq!(twin.driver.bytes(at, 60), frame(number, 60));
    }
    // What came in since is newer.
    twin.driver.offer(RX, &[writable(DATA + 0x3000, 2000)]);
    twin.driver.kick(RX);
    assert_eq!(twin.driver.wait(RX, 1).len(), 1);
    assert_eq!(twin.driver.bytes(DATA + 0x300c, 60), frame(3, 60));
}

#[test]
fn a_twin_can_not_fill_the_memory_with_frames() {
    let card = Card::new(ALL);
    let one = InboundFrame {
        card: 0,
        epoch: 0,
        bytes: [vec![0; HEADER_BYTES], frame(1, 60_000)].concat(),
    };
    let many = vec![one; 100];
    // The guest has no buffers, so that nothing of it is used up.
    for _ in 0..5 {
        card.driver.device().receive_again(&many);
    }
    let device = card.driver.device();
    let net = device.backend();
    let kept: usize = net.again.iter().map(Vec::len).sum();
    assert!((AGAIN_BYTES / 2..=AGAIN_BYTES).contains(&kept), "{kept}");
    assert!(net.counters().rx_dropped > 300);
}

#[test]
fn promotion_announces_the_guests_addresses() {
    let mut card = Card::new(ALL);
    let mac = card.driver.config(0, 6);
    assert_eq!(mac, MAC);
    card.send(&arp_reply([10, 77, 0, 2]));
    card.on_wire();
    let state = card.driver.save();

    let mut twin = Card::twin(&card);
    twin.gate.hold();
    twin.driver.device().restore(state).unwrap();
    twin.driver.device().resume();
    assert_eq!(twin.status(), LINK_UP as u8);
    twin.driver.device().announce();
    let wire = twin.on_wire();
    assert_eq!(wire.len(), 1);
    assert_eq!(wire[0][28..32], [10, 77, 0, 2]);
    // The guest is asked too, and answers.
    assert_ne!(twin.driver.get(reg::INTERRUPT_STATUS) & 2, 0);
    assert_eq!(twin.status(), (LINK_UP | ANNOUNCE) as u8);
    twin.driver.fill(DATA, &CONTROL_ANNOUNCE);
    twin.driver
        .offer(CONTROL, &[readable(DATA, 2), writable(DATA + 8, 1)]);
    twin.driver.fill(DATA + 8, &[0xee]);
    twin.driver.kick(CONTROL);
    assert_eq!(twin.driver.wait(CONTROL, 1), [(0, 1)]);
    assert_eq!(twin.driver.bytes(DATA + 8, 1), [CONTROL_OK]);
    assert_eq!(twin.status(), LINK_UP as u8);
}

#[test]
fn a_guest_that_knows_no_announcements_is_not_asked() {
    let card = Card::new(VERSION_1);
    card.driver.device().announce();
    assert_eq!(card.status(), LINK_UP as u8);
    assert_eq!(card.on_wire()[0][12..14], [0x80, 0x35], "a RARP");
    assert!(!card.driver.interrupted());
}

#[test]
fn unknown_commands_are_refused() {
    let mut card = Card::new(ALL);
    for command in [[0, 0], [3, 1], [255, 255]] {
        card.driver.fill(DATA, &command);
        card.driver.fill(DATA + 8, &[0xee]);
        card.driver
            .offer(CONTROL, &[readable(DATA, 2), writable(DATA + 8, 1)]);
        card.driver.kick(CONTROL);
        card.driver.wait(CONTROL, 1);
        assert_eq!(card.driver.bytes(DATA + 8, 1), [CONTROL_ERR]);
    }
    // `avail_event` behind a used ring of 64: the next command is to be told of, too.
    let avail_event = testing::used(CONTROL) + 4 + 8 * 64;
    assert_eq!(card.driver.bytes(avail_event, 2), 3u16.to_le_bytes());
    // Too short, and without a place for the answer.
    card.driver
        .offer(CONTROL, &[readable(DATA, 1), writable(DATA + 8, 1)]);
    card.driver.offer(CONTROL, &[readable(DATA, 2)]);
    card.driver.kick(CONTROL);
    assert_eq!(card.driver.wait(CONTROL, 2), [(6, 1), (8, 0)]);
}

#[test]
fn a_state_with_too_many_addresses_is_refused() {
    let card = Card::new(ALL);
    let mut state = card.driver.save();
    let address = Address {
        mac: MAC,
        ip: [10, 0, 0, 1].into(),
    };
    state.backend = BackendState::Net(NetState {
        announce: false,
        addresses: vec![address; 17],
    });
    let refused = card.driver.device().restore(state);
    assert_eq!(refused, Err(RestoreError::Addresses(17)));
    let foreign = {
        let mut state = card.driver.save();
        state.backend = super::super::block::empty_state();
        state
    };
    let refused = card.driver.device().restore(foreign);
    assert_eq!(refused, Err(RestoreError::Kind));
}

/// The machine keeps one list of devices and puts each of them on its bus.
#[test]
fn a_device_is_a_bus_device() {
    use crate::bus::{Bus, BusDevice};
    use std::sync::Mutex;
    let (net, ..) = net();
    let device = super::super::VirtioMmio::new(testing::memory(), net).unwrap();
    let device: Arc<Mutex<dyn Device>> = Arc::new(Mutex::new(device));
    let mut bus = Bus::new();
    let on_bus: Arc<Mutex<dyn BusDevice>> = device.clone();
    bus.insert(0xd000_0000, 0x1000, on_bus).unwrap();
    let mut id = [0; 4];
    assert!(bus.read(0xd000_0008, &mut id));
    assert_eq!(u32::from_le_bytes(id), DEVICE_ID);
    assert_eq!(device.lock().unwrap().name(), "net0");
    assert_eq!(
        device.lock().unwrap().identity().to_string(),
        "net 52:54:00:12:34:56"
    );
}
