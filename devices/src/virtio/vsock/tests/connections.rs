//! Connections as well-behaved programs and guests have them.

use super::*;

#[test]
fn a_program_reaches_the_guest() {
    for features in [ALL, VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut guest = Guest::with(features);
        let (mut program, port) = guest.connected();
        guest.write(port, 5000, b"from the guest");
        assert_eq!(heard(&mut program), b"from the guest");
        program.write_all(b"to the guest").unwrap();
        let (header, payload) = guest.packet();
        assert_eq!((header.op, header.src_port), (op::RW, port));
        assert_eq!(payload, b"to the guest");
        assert_eq!(header.fwd_cnt, 14);
    }
}

#[test]
fn the_guest_reaches_a_program() {
    let mut guest = Guest::new();
    let (_service, mut program) = guest.served();
    guest.write(1234, 4000, b"question");
    assert_eq!(heard(&mut program), b"question");
    program.write_all(b"answer").unwrap();
    assert_eq!(guest.data(), b"answer");
}

#[test]
fn what_a_program_says_early_comes_after_the_answer() {
    let mut guest = Guest::new();
    let program = guest.program("CONNECT 5000\nearly");
    let (request, _) = guest.packet();
    guest.send(op::RESPONSE, request.src_port, 5000);
    assert_eq!(guest.data(), b"early");
    drop(program);
}

#[test]
fn whom_nobody_serves_is_refused() {
    let mut guest = Guest::new();
    guest.send(op::REQUEST, 1234, 4000);
    let (header, _) = guest.packet();
    assert_eq!((header.op, header.src_port), (op::RST, 1234));
    assert_eq!(header.dst_port, 4000);
    assert_eq!(guest.counters().refused, 1);

    let mut program = guest.program("CONNECT 5000\n");
    let (request, _) = guest.packet();
    guest.send(op::RST, request.src_port, 5000);
    assert!(closed(&mut program));
    assert_eq!(guest.connections(), 0);
    assert_eq!(guest.ops(), NOTHING);
}

#[test]
fn a_reset_by_the_guest_closes_the_programs_socket() {
    let mut guest = Guest::new();
    let (mut program, port) = guest.connected();
    guest.send(op::RST, port, 5000);
    assert!(closed(&mut program));
    assert_eq!(guest.ops(), NOTHING);
}

#[test]
fn a_program_that_leaves_is_missed() {
    let mut guest = Guest::new();
    // Before the guest has answered.
    let program = guest.program("CONNECT 5000\n");
    assert_eq!(guest.ops(), [op::REQUEST]);
    drop(program);
    assert_eq!(guest.ops(), [op::RST]);
    // With its last words first.
    let (mut program, port) = guest.connected();
    program.write_all(b"bye").unwrap();
    drop(program);
    let packets = guest.packets();
    assert_eq!(packets[0].1, b"bye");
    assert_eq!(
        (packets[1].0.op, packets[1].0.flags),
        (op::SHUTDOWN, shutdown::BOTH)
    );
    assert_eq!((packets.len(), guest.connections()), (2, 0));
    guest.send(op::RST, port, 5000);
    assert_eq!(guest.ops(), NOTHING);
    // Words that nobody read are lost, those it said are not.
    let (mut program, port) = guest.connected();
    guest.write(port, 5000, b"unread");
    program.write_all(b"bye").unwrap();
    drop(program);
    assert_eq!(guest.packets()[0].1, b"bye");
    assert_eq!(guest.connections(), 0);
}

#[test]
fn either_direction_ends_alone() {
    let mut guest = Guest::new();
    let (mut program, port) = guest.connected();
    program.shutdown(std::net::Shutdown::Write).unwrap();
    let (header, _) = guest.packet();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, shutdown::SEND));
    guest.write(port, 5000, b"still");
    assert_eq!(heard(&mut program), b"still");
    guest.shut(port, 5000, shutdown::BOTH);
    assert_eq!(guest.ops(), [op::RST]);
    assert!(closed(&mut program));

    let (mut program, port) = guest.connected();
    guest.write(port, 5000, b"last");
    guest.shut(port, 5000, shutdown::SEND);
    let mut bytes = Vec::new();
    program.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"last");
    program.write_all(b"still").unwrap();
    assert_eq!(guest.data(), b"still");
    drop(program);
    let (header, _) = guest.packet();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, shutdown::BOTH));
    assert_eq!(guest.connections(), 0);

    let (mut program, port) = guest.connected();
    guest.shut(port, 5000, shutdown::RECEIVE);
    assert_eq!(
        program.write(b"deaf ears").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    guest.write(port, 5000, b"but words");
    assert_eq!(heard(&mut program), b"but words");
    drop(program);
    assert_eq!(guest.ops(), [op::SHUTDOWN]);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn an_ended_connection_still_delivers() {
    let mut guest = Guest::new();
    let (mut program, port) = guest.connected();
    let mut sent = 0;
    // More than the program's socket holds.
    while guest.driver.device().backend().muxer.kept() < 3000 {
        guest.write(port, 5000, &[7; 1000]);
        sent += 1000;
    }
    guest.shut(port, 5000, shutdown::BOTH);
    // And the guest does not wait for long.
    guest.send(op::RST, port, 5000);
    assert_eq!(guest.connections(), 1);
    let mut bytes = Vec::new();
    while bytes.len() < sent {
        bytes.extend(heard(&mut program));
        guest.driver.turn();
    }
    assert_eq!(bytes, vec![7; sent]);
    assert!(closed(&mut program));
    assert_eq!(guest.connections(), 0);
    let told = guest.ops();
    assert!(!told.contains(&op::RST), "{told:?}");
}

#[test]
fn no_more_is_read_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    guest.alloc = 100;
    guest.taken = 0;
    let (mut program, port) = guest.connected();
    program.write_all(&[1; 250]).unwrap();
    let packets = guest.packets();
    assert_eq!(packets[0].1, [1; 100]);
    assert_eq!(packets[1].0.op, op::CREDIT_REQUEST);
    assert_eq!(packets.len(), 2);
    // Asked once is enough.
    program.write_all(&[1; 10]).unwrap();
    guest.send(op::CREDIT_UPDATE, port, 5000);
    assert_eq!(guest.ops(), NOTHING);
    guest.taken = 60;
    guest.send(op::CREDIT_UPDATE, port, 5000);
    let packets = guest.packets();
    assert_eq!(
        (packets[0].1.len(), packets[1].0.op),
        (60, op::CREDIT_REQUEST)
    );
    guest.taken = 160;
    guest.alloc = 1000;
    guest.send(op::CREDIT_UPDATE, port, 5000);
    assert_eq!(guest.data(), [1; 100]);
}

#[test]
fn the_guest_hears_of_room_it_needs() {
    let mut guest = Guest::new();
    let (mut program, port) = guest.connected();
    guest.send(op::CREDIT_REQUEST, port, 5000);
    let (header, _) = guest.packet();
    assert_eq!((header.op, header.fwd_cnt), (op::CREDIT_UPDATE, 0));
    assert_eq!(header.buf_alloc, BUF_ALLOC);
    // Small talk needs no updates; a guest that counts is never left without room.
    let (mut sent, mut known, mut updates) = (0, 0, 0);
    for _ in 0..1000 {
        assert!(sent - known + 1000 <= BUF_ALLOC, "stuck at {sent}");
        guest.write(port, 5000, &[2; 1000]);
        sent += 1000;
        assert_eq!(heard(&mut program), [2; 1000]);
        for (header, _) in guest.packets() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            known = header.fwd_cnt;
            updates += 1;
        }
    }
    assert!((10..60).contains(&updates), "{updates}");
}

#[test]
fn large_transfers_arrive_whole_in_both_directions() {
    let mut guest = Guest::new();
    guest.alloc = 8192;
    let (mut program, port) = guest.connected();
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let (mut written, mut there, mut back) = (0, Vec::new(), Vec::new());
    let (mut sent, mut room) = (0, BUF_ALLOC as usize);
    while there.len() < bytes.len() || back.len() < bytes.len() {
        if let Ok(count) = program.write(&bytes[written..]) {
            written += count;
        }
        for (header, payload) in guest.packets() {
            room = BUF_ALLOC as usize - (sent - header.fwd_cnt as usize);
            guest.taken = guest.taken.wrapping_add(payload.len() as u32);
            there.extend(payload);
        }
        let part = room.min(bytes.len() - sent).min(5000);
        if part > 0 {
            guest.write(port, 5000, &bytes[sent..sent + part]);
            sent += part;
            room -= part;
        } else {
            guest.send(op::CREDIT_UPDATE, port, 5000);
        }
        back.extend(heard(&mut program));
    }
    assert!(there == bytes && back == bytes);
}

#[test]
fn packets_wait_for_buffers() {
    let mut guest = Guest::new();
    let (mut program, _) = guest.connected();
    guest.driver.set(reg::STATUS, 0);
    guest.driver.turn();
    assert!(closed(&mut program));
    guest.driver.start(ALL, 64);
    let mut program = guest.program("CONNECT 9\nx");
    guest.driver.turn();
    assert!(guest.driver.returned(RX).is_empty());
    // One without room for a header is given back empty.
    guest
        .driver
        .offer(RX, &[writable(BUFFERS, HEADER_BYTES as u32)]);
    guest.driver.kick(RX);
    assert_eq!(guest.driver.wait(RX, 1), [(0, 0)]);
    guest.offer_buffers();
    assert_eq!(guest.ops(), [op::REQUEST]);
    assert!(!closed(&mut program));
}
