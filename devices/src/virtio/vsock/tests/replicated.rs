//! The gate (I1), and what becomes of connections when the guest goes on elsewhere.

use super::*;

#[test]
fn nothing_reaches_the_host_before_the_gate_lets_it_go() {
    let mut guest = Guest::new();
    let (mut open, port) = guest.connected();
    let mut asking = guest.program("CONNECT 6000\n");
    let (request, _) = guest.packet();
    let service = UnixListener::bind(guest.path("_1234")).unwrap();
    service.set_nonblocking(true).unwrap();

    guest.gate.hold();
    guest.write(port, 5000, b"held");
    guest.send(op::RESPONSE, request.src_port, 6000);
    guest.send(op::REQUEST, 1234, 4000);
    assert_eq!(guest.ops(), NOTHING);
    assert_eq!(heard(&mut open), b"");
    assert_eq!(heard(&mut asking), b"");
    assert!(service.accept().is_err());

    guest.gate.seal(1);
    guest.write(port, 5000, b"held longer");
    guest.gate.release_through(1);
    assert_eq!(guest.ops(), [op::RESPONSE]);
    assert_eq!(heard(&mut open), b"held");
    assert_eq!(
        heard(&mut asking),
        format!("OK {}\n", request.src_port).as_bytes()
    );
    service.accept().unwrap();

    guest.gate.open();
    guest.driver.turn();
    assert_eq!(heard(&mut open), b"held longer");
}

#[test]
fn what_is_discarded_never_reaches_the_host() {
    let mut guest = Guest::new();
    let (mut program, port) = guest.connected();
    guest.gate.hold();
    guest.write(port, 5000, b"never");
    guest.gate.discard();
    guest.write(port, 5000, b"nor this");
    guest.send(op::RST, port, 5000);
    assert_eq!(heard(&mut program), b"");
    assert!(!closed(&mut program));
}

#[test]
fn a_full_gate_makes_the_guest_wait() {
    let mut guest = Guest::new();
    let service = UnixListener::bind(guest.path("_1234")).unwrap();
    for port in 0..20 {
        guest.send(op::REQUEST, 1234, port);
    }
    let mut programs: Vec<_> = (0..20).map(|_| service.accept().unwrap().0).collect();
    guest.packets();
    guest.gate.hold();
    for port in 0..20 {
        guest.write(1234, port, &[port as u8; 60_000]);
    }
    assert!(guest.gate.held_bytes() <= 1 << 20);
    assert!(guest.gate.counters().full > 0);
    // Behind what waits.
    guest.driver.set(reg::STATUS, 0);
    guest.gate.seal(1);
    guest.gate.release_through(1);
    guest.driver.turn();
    guest.driver.start(ALL, 64);
    guest.gate.open();
    guest.driver.turn();
    for program in &mut programs {
        let mut bytes = Vec::new();
        // Reset while bytes for it were under way, or closed after them.
        let _ = program.read_to_end(&mut bytes);
    }
    assert_eq!(guest.connections(), 0);
}

#[test]
fn a_reset_of_the_device_follows_the_packets_before_it() {
    let mut guest = Guest::new();
    let (mut program, port) = guest.connected();
    guest.gate.hold();
    guest.write(port, 5000, b"last words");
    guest.driver.set(reg::STATUS, 0);
    guest.driver.turn();
    assert!(!closed(&mut program));
    // The driver is back before the gate opens. What was for the old one is not for it.
    guest.driver.start(ALL, 64);
    guest.offer_buffers();
    program.write_all(b"too late").unwrap();
    let early = guest.program("CONNECT 6000\n");
    assert_eq!(guest.ops(), NOTHING);
    guest.gate.open();
    guest.driver.turn();
    let mut bytes = Vec::new();
    let _ = program.read_to_end(&mut bytes);
    assert_eq!(bytes, b"last words");
    let (request, _) = guest.packet();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 6000));
    assert_eq!(guest.connections(), 1);
    drop(early);
    assert_eq!(guest.ops(), [op::RST]);
    guest.connected();
}

#[test]
fn the_twins_guest_is_told_that_its_connections_have_ended() {
    let mut old = Guest::new();
    let (_program, port) = old.connected();
    old.driver.offer(EVENT, &[writable(DATA + 0x8000, 4)]);
    old.driver.kick(EVENT);
    old.driver.turn();
    assert!(old.driver.returned(EVENT).is_empty());
    old.driver.fill(DATA + 0x8000, &[0xff; 4]);

    let mut new = old.twin();
    new.driver.device().restore(old.driver.save()).unwrap();
    new.driver.turn();
    assert!(!new.path("").exists());
    assert!(new.driver.returned(EVENT).is_empty());
    new.driver.interrupted();
    new.driver.device().resume();
    assert!(new.path("").exists());
    assert!(new.driver.interrupted());
    assert_eq!(new.driver.wait(EVENT, 1), [(0, 4)]);
    assert_eq!(new.driver.bytes(DATA + 0x8000, 4), TRANSPORT_RESET);
    assert!(old.path("").exists(), "the other host's own");

    // A guest that is slow to hear of it is told again.
    new.write(port, 5000, b"anyone?");
    assert_eq!(new.ops(), [op::RST]);
    // Whom it listens to is found as before.
    new.connected();
}

#[test]
fn the_news_of_the_end_wait_for_a_buffer() {
    let mut old = Guest::new();
    old.driver.device().resume();
    let state = old.driver.save();
    let mut new = old.twin();
    new.driver.device().restore(state.clone()).unwrap();
    assert_eq!(new.driver.save(), state);
    new.driver.device().resume();
    new.driver.turn();
    // Too small for it.
    new.driver.offer(EVENT, &[writable(DATA, 3)]);
    new.driver.kick(EVENT);
    assert_eq!(new.driver.wait(EVENT, 1), [(0, 0)]);
    new.driver.offer(EVENT, &[writable(DATA, 8)]);
    new.driver.offer(EVENT, &[writable(DATA + 8, 8)]);
    new.driver.kick(EVENT);
    assert_eq!(new.driver.wait(EVENT, 1), [(1, 4)]);
    new.driver.turn();
    assert!(new.driver.returned(EVENT).is_empty(), "said once");

    // And are of no use to a driver that starts anew.
    old.driver.set(reg::STATUS, 0);
    old.driver.start(ALL, 64);
    old.driver.offer(EVENT, &[writable(DATA, 8)]);
    old.driver.kick(EVENT);
    old.driver.turn();
    assert!(old.driver.returned(EVENT).is_empty());
}

#[test]
fn a_state_of_another_kind_is_refused() {
    let guest = Guest::new();
    let mut state = guest.driver.save();
    state.backend = BackendState::Rng;
    let refused = guest.driver.device().restore(state);
    assert_eq!(refused, Err(RestoreError::Kind));
}

#[test]
fn a_guest_without_a_driver_hears_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (vsock, _gate) = vsock(&dir);
    let old = Driver::new(testing::memory(), vsock);
    let other = tempfile::tempdir().unwrap();
    let (vsock, _gate) = super::vsock(&other);
    let new = Driver::new(testing::copy(&old.mem), vsock);
    new.device().restore(old.save()).unwrap();
    new.device().resume();
    assert!(!other.path().join("vm.vsock").exists());
    assert_eq!(new.save(), old.save());
}

#[test]
fn what_it_writes_is_dirty() {
    use vm_memory::bitmap::Bitmap;
    use vm_memory::{GuestMemoryBackend, MmapRegion};
    let mut guest = Guest::new();
    let mem = Arc::clone(&guest.driver.mem);
    let mapping: &MmapRegion<crate::DirtyMarks> = mem.iter().next().unwrap();
    mapping.bitmap().reset();
    let _program = guest.program("CONNECT 5000\n");
    guest.driver.turn();
    assert_eq!(guest.driver.returned(RX).len(), 1);
    let dirty = |address: u64| mapping.bitmap().dirty_at(address as usize);
    assert!(dirty(BUFFERS) && dirty(testing::used(RX)));
    assert!(!dirty(BUFFERS + u64::from(BUFFER_BYTES)));
}
