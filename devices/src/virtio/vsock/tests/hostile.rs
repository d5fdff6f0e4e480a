//! Guests and programs that keep to no rules (I9).

use proptest::prelude::*;

use super::*;

#[test]
fn a_guest_that_sends_beyond_its_credit_is_reset() {
    let mut guest = Guest::new();
    let (_program, port) = guest.connected();
    let mut sent = 0;
    loop {
        guest.write(port, 5000, &[0; 8192]);
        sent += 8192;
        let ops = guest.ops();
        if ops.contains(&op::RST) {
            break;
        }
        assert!(sent < 4 << 20, "no end to it");
    }
    assert_eq!(guest.connections(), 0);
}

#[test]
fn packets_that_break_rules_are_answered_with_a_reset() {
    type Change = fn(&mut Header);
    let changes: [Change; 6] = [
        |header| header.kind = 2,
        |header| header.dst_cid = 9,
        |header| header.dst_port += 1,
        |header| header.op = 0,
        |header| header.op = 77,
        |header| header.len = 5000,
    ];
    for change in changes {
        let mut guest = Guest::new();
        let (_program, port) = guest.connected();
        let mut header = guest.header(op::RW, port, 5000);
        header.len = 4;
        change(&mut header);
        let answered = (header.dst_port, header.kind);
        guest.driver.fill(DATA + 0x1000, b"data");
        guest.driver.fill(DATA, &header.to_bytes());
        let pieces = [
            readable(DATA, HEADER_BYTES as u32),
            readable(DATA + 0x1000, 4),
        ];
        guest.driver.offer(TX, &pieces);
        guest.driver.kick(TX);
        guest.driver.wait(TX, 1);
        guest.driver.turn();
        let returned = guest.driver.returned(RX);
        assert_eq!(returned.len(), 1);
        let at = guest.buffers[returned[0].0 as usize];
        let bytes = guest.driver.bytes(at, HEADER_BYTES);
        let reset = Header::parse(bytes.first_chunk().unwrap());
        assert_eq!(reset.op, op::RST);
        assert_eq!((reset.src_port, reset.kind), answered);
        assert_eq!(reset.src_cid, header.dst_cid);
    }
}

#[test]
fn packets_of_nobody_are_dropped() {
    let mut guest = Guest::new();
    let foreign = Header {
        src_cid: 8,
        ..guest.header(op::REQUEST, 1, 1)
    };
    guest.send_raw(foreign, &[]);
    guest
        .driver
        .offer(TX, &[readable(DATA, HEADER_BYTES as u32 - 1)]);
    guest.driver.offer(TX, &[writable(DATA, 64)]);
    guest.driver.kick(TX);
    guest.driver.wait(TX, 2);
    assert_eq!(guest.counters().tx_dropped, 3);
    // What ends connections, or only keeps books, asks for no answer.
    for silent in [op::RST, op::CREDIT_UPDATE, op::CREDIT_REQUEST] {
        guest.send(silent, 1, 1);
    }
    assert_eq!(guest.ops(), NOTHING);
    assert_eq!(guest.driver.get(reg::STATUS), 15);
}

#[test]
fn resets_for_a_guest_that_takes_none_are_bounded() {
    let mut guest = Guest::new();
    for _ in 0..MAX_RESETS + BUFFER_COUNT + 10 {
        guest.send(op::RW, 1, 1);
    }
    assert_eq!(guest.counters().rx_dropped, 10);
    assert_eq!(guest.packets().len(), MAX_RESETS + BUFFER_COUNT);
}

#[test]
fn connections_are_bounded() {
    let mut guest = Guest::new();
    let service = UnixListener::bind(guest.path("_1234")).unwrap();
    let mut programs = Vec::new();
    for port in 0..MAX_CONNECTIONS as u32 {
        guest.send(op::REQUEST, 1234, port);
        programs.push(service.accept().unwrap());
    }
    assert_eq!(guest.packets().len(), MAX_CONNECTIONS);
    guest.send(op::REQUEST, 1234, 9999);
    assert_eq!(guest.ops(), [op::RST]);
    let mut program = guest.program("CONNECT 5000\n");
    guest.driver.turn();
    assert!(closed(&mut program));
    assert_eq!(guest.counters().refused, 2);
    guest.send(op::RST, 1234, 0);
    let _program = guest.program("CONNECT 5000\n");
    assert_eq!(guest.ops(), [op::REQUEST]);
}

#[test]
fn a_second_request_ends_the_first() {
    let mut guest = Guest::new();
    let (_service, mut program) = guest.served();
    guest.send(op::REQUEST, 1234, 4000);
    assert_eq!(guest.ops(), [op::RST]);
    assert!(closed(&mut program));
}

#[test]
fn a_guest_can_not_answer_what_was_not_asked() {
    let mut guest = Guest::new();
    let (_service, mut program) = guest.served();
    guest.send(op::RESPONSE, 1234, 4000);
    assert_eq!(guest.ops(), [op::RST]);
    assert_eq!(heard(&mut program), b"");
    // Data before an answer, too.
    let mut program = guest.program("CONNECT 5000\n");
    let port = guest.packet().0.src_port;
    guest.write(port, 5000, b"OK 1\n");
    assert_eq!(guest.ops(), [op::RST]);
    assert_eq!(heard(&mut program), b"");
}

#[test]
fn programs_that_say_nothing_make_room_for_others() {
    let mut guest = Guest::new();
    let mut silent: Vec<_> = (0..MAX_GREETINGS).map(|_| guest.program("")).collect();
    guest.driver.turn();
    assert!(!silent.iter_mut().any(closed));
    let _talker = guest.program("CONNECT 5000\n");
    assert_eq!(guest.ops(), [op::REQUEST]);
    assert!(closed(&mut silent[0]));
    assert!(!silent[1..].iter_mut().any(closed));

    for wrong in [
        "GET / HTTP/1.1\n",
        "CONNECT 4294967295\n",
        "CONNECT 00000000000000000000000000000000",
    ] {
        let mut program = guest.program(wrong);
        guest.driver.turn();
        assert!(closed(&mut program), "{wrong}");
    }
    assert_eq!(guest.ops(), NOTHING);
}

#[test]
fn many_programs_at_once_are_all_heard() {
    let mut guest = Guest::new();
    // More than are accepted in one go, within what a backlog takes.
    let programs: Vec<_> = (0..60).map(|_| guest.program("CONNECT 5000\n")).collect();
    let mut asked = guest.ops().len();
    let more: Vec<_> = (0..60).map(|_| guest.program("CONNECT 5000\n")).collect();
    asked += guest.ops().len();
    assert_eq!(asked, programs.len() + more.len());
}

/// Something a guest or a program does, with few enough ports that they meet.
#[derive(Debug, Clone)]
enum Deed {
    Packet(Header, usize),
    Bytes(Vec<u8>),
    Greet(u8),
    Talk(usize, usize),
    Listen(usize),
    Leave(usize),
    Hold(bool),
    TakePackets,
    Restart,
}

fn deed() -> impl Strategy<Value = Deed> {
    let port = || prop_oneof![0u32..4, Just(u32::MAX), any::<u32>()];
    let small = || prop_oneof![4 => Just(0u32), 2 => 0u32..100_000, 1 => any::<u32>()];
    let cid = prop_oneof![8 => Just(HOST_CID), 1 => any::<u64>()];
    let kind = prop_oneof![8 => Just(TYPE_STREAM), 1 => any::<u16>()];
    let packet = (
        0u16..9,
        port(),
        port(),
        cid,
        kind,
        small(),
        0u32..4,
        small(),
        small(),
    );
    let packet = packet.prop_map(
        |(op, src_port, dst_port, dst_cid, kind, len, flags, buf_alloc, fwd_cnt)| Header {
            src_cid: CID.into(),
            dst_cid,
            src_port,
            dst_port,
            len,
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        },
    );
    prop_oneof![
        12 => (packet, 0usize..70_000).prop_map(|(header, length)| Deed::Packet(header, length)),
        1 => prop::collection::vec(any::<u8>(), 0..60).prop_map(Deed::Bytes),
        4 => (0u8..4).prop_map(Deed::Greet),
        4 => (0usize..8, 0usize..100_000).prop_map(|(who, length)| Deed::Talk(who, length)),
        2 => (0usize..8).prop_map(Deed::Listen),
        2 => (0usize..8).prop_map(Deed::Leave),
        1 => any::<bool>().prop_map(Deed::Hold),
        4 => Just(Deed::TakePackets),
        1 => Just(Deed::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn anything_goes(
        deeds in prop::collection::vec((deed(), any::<bool>()), 1..120),
    ) {
        let mut guest = Guest::new();
        let service = UnixListener::bind(guest.path("_1")).unwrap();
        service.set_nonblocking(true).unwrap();
        let mut programs: Vec<UnixStream> = Vec::new();
        // The host's port that a program was last given, for packets that hit.
        let mut last = None;
        for (deed, aimed) in deeds {
            match deed {
                Deed::Packet(mut header, length) => {
                    if aimed && let Some((host_port, guest_port)) = last {
                        header.dst_port = host_port;
                        header.src_port = guest_port;
                        header.len = length as u32;
                    }
                    guest.driver.fill(DATA, &header.to_bytes());
                    guest.driver.offer(TX, &[readable(DATA, (HEADER_BYTES + length) as u32)]);
                    guest.driver.kick(TX);
                    guest.driver.turn();
                    guest.driver.returned(TX);
                }
                Deed::Bytes(bytes) => {
                    guest.driver.fill(DATA, &bytes);
                    guest.driver.offer(TX, &[readable(DATA, bytes.len() as u32)]);
                    guest.driver.kick(TX);
                }
                Deed::Greet(port) => {
                    programs.push(guest.program(&format!("CONNECT {port}\n")));
                }
                Deed::Talk(who, length) => {
                    if let Some(program) = programs.get_mut(who) {
                        let _ = program.write(&vec![0; length]);
                    }
                }
                Deed::Listen(who) => {
                    if let Some(program) = programs.get_mut(who) {
                        let _ = program.read(&mut [0; 50_000]);
                    }
                }
                Deed::Leave(who) => {
                    if who < programs.len() {
                        programs.remove(who);
                    }
                }
                Deed::Hold(true) => guest.gate.hold(),
                Deed::Hold(false) => guest.gate.open(),
                Deed::TakePackets => {
                    guest.driver.turn();
                    for (head, _) in guest.driver.returned(RX) {
                        let at = guest.buffers[head as usize];
                        let header = guest.driver.bytes(at, HEADER_BYTES);
                        let header = Header::parse(header.first_chunk().unwrap());
                        last = Some((header.src_port, header.dst_port));
                        if header.op == op::REQUEST && aimed {
                            guest.send(op::RESPONSE, header.src_port, header.dst_port);
                        }
                        guest.offer_buffer(at);
                    }
                    guest.driver.kick(RX);
                }
                Deed::Restart => {
                    guest.driver.set(reg::STATUS, 0);
                    guest.driver.start(ALL, 64);
                    guest.offer_buffers();
                }
            }
            while let Ok((program, _)) = service.accept() {
                program.set_nonblocking(true).unwrap();
                programs.push(program);
            }
            guest.driver.turn();
            prop_assert!(guest.connections() <= MAX_CONNECTIONS);
        }
        // After all this, it still does its work.
        guest.gate.open();
        guest.driver.set(reg::STATUS, 0);
        guest.driver.turn();
        guest.driver.start(ALL, 64);
        guest.offer_buffers();
        prop_assert_eq!(guest.ops(), NOTHING);
        guest.alloc = 1 << 18;
        guest.connected();
    }
}
