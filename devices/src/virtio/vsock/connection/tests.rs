use std::os::unix::net::UnixStream;

use super::*;

fn open() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut connection = Connection::new(ours.into(), Stage::Open);
    connection.guest_alloc = 1000;
    (connection, theirs)
}

#[test]
fn credit_is_right_when_its_counters_wrap() {
    let (mut connection, _theirs) = open();
    connection.given = Wrapping(u32::MAX - 9);
    connection.guest_forwarded = Wrapping(u32::MAX - 109);
    assert_eq!(connection.credit(), 900);
    connection.given += 50;
    assert_eq!(connection.credit(), 850);
    connection.guest_forwarded = connection.given;
    assert_eq!(connection.credit(), 1000);
    // More taken than was ever given.
    connection.guest_forwarded += 1;
    assert_eq!(connection.credit(), 0);

    connection.forwarded = Wrapping(3);
    connection.told_forwarded = Wrapping(u32::MAX - 40_000);
    assert!(connection.wants_credit_told());
    connection.told_forwarded = Wrapping(u32::MAX);
    assert!(!connection.wants_credit_told());
}

#[test]
fn what_a_full_socket_does_not_take_is_kept() {
    let (mut connection, theirs) = open();
    let packet = Header {
        op: op::RW,
        ..Header::default()
    };
    let payload = vec![7; 4096];
    let mut sent = 0;
    while connection.kept() + 4096 <= BUF_ALLOC {
        assert_eq!(connection.guest_sent(&packet, &payload, 1), Fate::Keep);
        sent += payload.len();
    }
    assert!(!connection.writable);
    assert_eq!(connection.guest_sent(&packet, &payload, 1), Fate::Reset);
    // A program that closes takes nothing more.
    drop(theirs);
    connection.host_event(EventFlags::HUP);
    assert_eq!(
        (connection.kept(), connection.forwarded.0),
        (0, sent as u32)
    );
}
