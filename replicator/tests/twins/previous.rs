//! A twin of this version and one of version 2, recorded: what each of the two sent, whole frames from hello to epoch 4.
//!
//! Its guest had 32 pages and had counted to [`COUNT`] in epoch 4. Heartbeats were left out.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use evertwin_replicator::arbiter::{Arbiter, FileArbiter, Record};
use evertwin_replicator::control::{Command, NoScrub, NotDone};

use crate::support::machine::FakeVm;
use crate::support::{PATIENCE, Pair, run_until_seen, seen, wait_for, world};

const PRIMARY: &[u8] = include_bytes!("recorded/primary-2.bin");
const STANDBY: &[u8] = include_bytes!("recorded/standby-2.bin");
const PAGES: u64 = 32;
const EPOCHS: u64 = 4;
const COUNT: u64 = 20;

const HELLO: u16 = 1;
const EPOCH_END: u16 = 9;
const ACK: u16 = 10;

/// A frame, and what its header says.
struct Frame {
    bytes: Vec<u8>,
    version: u16,
    kind: u16,
    epoch: u64,
}

/// The next frame of a stream; none at its end.
fn next(stream: &mut impl Read) -> Option<Frame> {
    let mut bytes = vec![0; 40];
    stream.read_exact(&mut bytes).ok()?;
    let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (version, kind) = (short(4), short(6));
    let epoch = u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"));
    let len = u32::from_le_bytes(bytes[24..28].try_into().expect("four bytes"));
    let head = bytes.len();
    bytes.resize(head + len as usize, 0);
    stream.read_exact(&mut bytes[head..]).ok()?;
    Some(Frame {
        bytes,
        version,
        kind,
        epoch,
    })
}

fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    std::iter::from_fn(|| next(&mut bytes)).collect()
}

#[test]
fn a_standby_of_this_version_takes_over_from_a_primary_of_the_last() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut pair = Pair::plain();
    pair.dial = listener.local_addr().expect("a bound listener");
    let name = |name: &str| name.parse().expect("a valid name");
    let record = Record::protected(1, name("a"), name("b"));
    let mut arbiter = FileArbiter::new(pair.directory.path().join("arbiter"));
    arbiter.compare_and_swap(None, &record).expect("a new file");
    let world = world();
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    let (mut stream, _) = listener.accept().expect("b dials");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.write_all(PRIMARY).expect("b reads");
    let mut acknowledged = Vec::new();
    while acknowledged.len() < EPOCHS as usize {
        let frame = next(&mut stream).expect("b answers");
        assert_eq!(frame.version, 2, "frame of kind {}", frame.kind);
        if frame.kind == ACK {
            acknowledged.push(frame.epoch);
        }
    }
    assert!(acknowledged.into_iter().eq(1..=EPOCHS));
    assert!(!b.vm.running());
    drop(stream);
    wait_for("b is promoted", || b.vm.running());
    assert_eq!(b.vm.lock().count, COUNT);
    assert!(b.vm.lock().consistent(), "exactly one epoch (I3)");
}

#[test]
fn a_primary_of_this_version_is_protected_by_a_standby_of_the_last() {
    let (mut pair, world) = (Pair::plain(), world());
    // No heartbeats were recorded.
    pair.timeout = PATIENCE;
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    let recorded = frames(STANDBY);
    let mut stream = TcpStream::connect(pair.listen).expect("a listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let hello = recorded.iter().find(|frame| frame.kind == HELLO);
    let hello = hello.expect("it says hello first");
    stream.write_all(&hello.bytes).expect("a reads");
    for epoch in 1..=EPOCHS {
        loop {
            a.vm.step();
            let frame = next(&mut stream).expect("a goes on");
            assert_eq!(frame.version, 2, "frame of kind {}", frame.kind);
            if frame.kind == EPOCH_END && frame.epoch == epoch {
                break;
            }
        }
        let ack = |frame: &&Frame| frame.kind == ACK && frame.epoch == epoch;
        let ack = recorded.iter().find(ack).expect("it acknowledged");
        stream.write_all(&ack.bytes).expect("a reads");
    }
    wait_for("a is protected", || a.role() == "protected");
    let told = a.vm.lock().told.clone();
    assert!(told.is_none(), "it was not asked what its disks hold");
    assert!(!seen(&world).is_empty(), "what was acknowledged has left");
    // It could not take a guest over that is handed to it, and is not asked to.
    let outcome = a.command(Command::Switchover);
    assert_eq!(outcome, Err(NotDone::PeerTooOld));
    assert_eq!(a.scrub(), Err(NotDone::NoScrub(NoScrub::PeerTooOld)));
    drop(stream);
    run_until_seen(&a.vm, &world, 50);
    assert_eq!(a.role(), "solo");
}
