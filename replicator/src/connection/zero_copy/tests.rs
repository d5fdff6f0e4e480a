//! Connections over the loopback that are made to send without copying, and single steps.

use std::mem::ManuallyDrop;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};

use super::*;
use crate::connection::Connection;
use crate::ring::Op;
use crate::tls::{Security, good_keys};
use crate::wire::{Frame, Kind};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of a frame that makes a batch of its own, not to be copied.
const ALONE: usize = 36 * 1024;

/// A connection with a ring of its own.
struct Side {
    /// The kernel may use it until the ring is gone, whichever way a test ends: it is leaked.
    connection: ManuallyDrop<Connection>,
    ring: Ring,
    notifications: usize,
    results: usize,
    /// Results of sends that did not take all.
    partial: usize,
    /// Epochs of the frames that came.
    came: Vec<u64>,
}

impl Side {
    fn new(stream: TcpStream, security: &Security, dials: bool) -> Self {
        let address = stream.peer_addr().expect("a peer");
        let session = security.session(dials).expect("a session");
        let connection = Connection::new(7, stream, address, session);
        Self {
            connection: ManuallyDrop::new(connection.expect("a socket")),
            ring: Ring::new().expect("a ring"),
            notifications: 0,
            results: 0,
            partial: 0,
            came: Vec::new(),
        }
    }

    /// Sends and, if asked to, receives what there is, and waits so long for something to end.
    fn turn(&mut self, receives: bool, wait: Duration) {
        self.connection.send(&mut self.ring).expect("a ring");
        if receives {
            self.connection.receive(&mut self.ring).expect("a ring");
        }
        let mut completions = Vec::new();
        self.ring.wait(wait, &mut completions).expect("a ring");
        for completion in &completions {
            match completion.op {
                Op::Send => self.sent(completion),
                Op::Receive => {
                    let came = self.connection.received(completion.result);
                    assert!(came.expect("bytes") > 0, "the connection has ended");
                    self.take_frames();
                }
                _ => {}
            }
        }
        self.check_buffers();
    }

    fn sent(&mut self, completion: &Completion) {
        if completion.notification {
            self.notifications += 1;
        } else {
            self.results += 1;
        }
        self.connection.sent(completion).expect("a sound socket");
        if !completion.notification && self.connection.channel.unsent_bytes() > 0 {
            self.partial += 1;
        }
    }

    fn take_frames(&mut self) {
        assert_eq!(self.connection.failure(), None);
        let mut reader = self.connection.take_reader();
        while let Some((header, payload)) = reader.next().expect("sound frames") {
            let want = content(header.epoch, payload.len());
            assert!(payload == want, "frame {} has changed", header.epoch);
            self.came.push(header.epoch);
        }
        self.connection.put_reader(reader);
    }

    /// What the kernel has is nowhere else.
    fn check_buffers(&self) {
        let zero_copy = &self.connection.zero_copy;
        let held = zero_copy.held.iter().filter_map(|held| match &held._cargo {
            Cargo::Records { _buffer } => Some(_buffer.as_ptr()),
            Cargo::Frames { .. } => None,
        });
        let spare = zero_copy.spare.iter().map(|buffer| buffer.as_ptr());
        let mut all: Vec<_> = held.chain(spare).collect();
        if let Channel::Tls(session) = &self.connection.channel {
            all.push(session.buffer().as_ptr());
        }
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count, "a buffer in two places");
    }
}

/// What a frame carries; no two of an epoch and a place are alike for long.
fn content(epoch: u64, len: usize) -> Vec<u8> {
    let byte = |at: usize| (epoch as usize * 131 + at * 7 + (at >> 8)) as u8;
    (0..len).map(byte).collect()
}

fn frame(epoch: u64, len: usize) -> Frame {
    Frame::new(Kind::State, 1, epoch, &content(epoch, len))
}

/// Plaintext, and TLS with good keys.
fn kinds() -> [[Security; 2]; 2] {
    let (a, b) = good_keys();
    [
        [Security::Plaintext, Security::Plaintext],
        [Security::Tls(b), Security::Tls(a)],
    ]
}

/// A sender with the policy, and a receiver that takes little ahead.
fn pair(security: &[Security; 2], policy: Policy) -> [Side; 2] {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    // Handed on to what it accepts. The sender has room for some batches that nobody takes.
    set_socket_recv_buffer_size(&listener, 64 * 1024).expect("a socket");
    let address = listener.local_addr().expect("an address");
    let stream = TcpStream::connect(address).expect("a connection");
    set_socket_send_buffer_size(&stream, 200 * 1024).expect("a socket");
    let (accepted, _) = listener.accept().expect("a connection");
    let mut sender = Side::new(stream, &security[0], true);
    let mut receiver = Side::new(accepted, &security[1], false);
    if let Security::Tls(_) = security[0] {
        while !sender.connection.is_sealed() || !receiver.connection.is_sealed() {
            for side in [&mut sender, &mut receiver] {
                side.turn(true, Duration::from_millis(1));
            }
        }
    }
    sender.connection.zero_copy.policy = policy;
    [sender, receiver]
}

/// Sends batches of one frame each, which nobody takes.
fn send_unread(sender: &mut Side, epochs: std::ops::RangeInclusive<u64>) {
    let until = Instant::now() + PATIENCE;
    for epoch in epochs {
        sender.connection.queue_bulk(frame(epoch, ALONE));
        sender.turn(false, Duration::ZERO);
        while !sender.connection.all_sent() {
            sender.turn(false, Duration::from_secs(1));
            assert!(Instant::now() < until, "the socket takes too little");
        }
    }
}

#[test]
fn what_is_not_copied_arrives_as_it_was() {
    for security in &kinds() {
        for piecemeal in [false, true] {
            let [mut sender, mut receiver] = pair(security, Policy::Always);
            sender.ring.piecemeal = piecemeal;
            let has = sender.ring.zero_copy;
            send_unread(&mut sender, 1..=6);
            // Sends have ended of which the kernel still has the bytes.
            let held = sender.connection.zero_copy.held.len();
            assert_eq!(held >= 2, has, "{held}");
            assert_eq!(sender.connection.idle(), !has);
            let lens = [100, ALONE, 3, 33 * 1024, 264 * 1024, 0, 200_000];
            for (epoch, len) in (7..=120).zip(lens.into_iter().cycle()) {
                sender.connection.queue_bulk(frame(epoch, len));
            }
            let until = Instant::now() + PATIENCE;
            while receiver.came.len() < 120 || sender.connection.zero_copy.waits() {
                sender.turn(false, Duration::from_millis(1));
                receiver.turn(true, Duration::from_millis(1));
                assert!(Instant::now() < until, "{:?} came", receiver.came);
            }
            assert!(receiver.came.iter().copied().eq(1..=120));
            assert_eq!(sender.notifications > 20, has, "{}", sender.notifications);
            assert_eq!(sender.partial > 0, piecemeal, "{}", sender.partial);
        }
    }
}

#[test]
fn a_cut_frees_what_the_peer_never_takes() {
    for security in &kinds() {
        for stuck in [false, true] {
            let [mut sender, receiver] = pair(security, Policy::Always);
            send_unread(&mut sender, 1..=6);
            if stuck {
                // More than the socket takes: this send is under way when the cut comes.
                for epoch in 7..30 {
                    sender.connection.queue_bulk(frame(epoch, 264 * 1024));
                }
                sender.turn(false, Duration::ZERO);
                assert!(!sender.connection.all_sent());
            }
            assert_eq!(sender.connection.zero_copy.waits(), sender.ring.zero_copy);
            sender.connection.cut();
            let until = Instant::now() + PATIENCE;
            let mut completions = Vec::new();
            while !sender.connection.idle() {
                sender
                    .ring
                    .wait(Duration::from_secs(1), &mut completions)
                    .expect("a ring");
                for completion in &completions {
                    // How it ended does not matter.
                    let _ = match completion.op {
                        Op::Send => sender.connection.sent(completion),
                        _ => sender.connection.received(completion.result).map(drop),
                    };
                }
                assert!(Instant::now() < until, "the kernel lets go of nothing");
            }
            assert!(sender.connection.zero_copy.held.is_empty());
            drop(receiver);
        }
    }
}

#[test]
fn the_loopback_is_found_to_copy() {
    for security in &kinds() {
        let [mut sender, mut receiver] = pair(security, Policy::Tried(0));
        for epoch in 1..=60 {
            sender.connection.queue_bulk(frame(epoch, 264 * 1024));
        }
        let until = Instant::now() + PATIENCE;
        while receiver.came.len() < 60 {
            sender.turn(false, Duration::from_millis(1));
            receiver.turn(true, Duration::from_millis(1));
            assert!(sender.connection.zero_copy.held.len() <= 1, "one at a time");
            assert!(Instant::now() < until, "{:?} came", receiver.came);
        }
        let has = sender.ring.zero_copy;
        let over = matches!(sender.connection.zero_copy.policy, Policy::Never);
        assert_eq!(over, has);
        assert_eq!(
            sender.notifications,
            if has { usize::from(COPIES) } else { 0 }
        );
        // No buffer was locked for it.
        assert!(
            sender
                .connection
                .zero_copy
                .spare
                .iter()
                .all(|spare| spare.index().is_none())
        );
    }
}

fn result(batch: u8, result: i32, more: bool) -> Completion {
    Completion {
        op: Op::Send,
        id: 7,
        result,
        batch,
        more,
        notification: false,
    }
}

fn notification(batch: u8, copied: bool) -> Completion {
    Completion {
        notification: true,
        ..result(batch, if copied { i32::MIN } else { 0 }, false)
    }
}

/// Begins a batch of so many bytes, as if the kernel knew zero-copy sends.
fn begin(zero_copy: &mut ZeroCopy, bytes: usize) -> Option<u8> {
    let mut ring = Ring::new().expect("a ring");
    ring.zero_copy = true;
    zero_copy.begin(bytes, &Channel::new(None), &mut ring)
}

#[test]
fn the_kernel_is_asked_as_long_as_it_does_not_copy() {
    let mut channel = Channel::new(None);
    let mut zero_copy = ZeroCopy::default();
    assert_eq!(begin(&mut zero_copy, FEWEST_BYTES - 1), None);
    assert!(
        !zero_copy.ended(&result(0, 100, false)),
        "it was a copying one"
    );
    for copied in [true, true, false, true, true, false] {
        // One at a time.
        assert_eq!(begin(&mut zero_copy, FEWEST_BYTES), Some(0));
        assert!(!zero_copy.ended(&result(0, 100, true)));
        zero_copy.passed(&mut channel);
        if !matches!(zero_copy.policy, Policy::Proven) {
            assert_eq!(begin(&mut zero_copy, FEWEST_BYTES), None);
        }
        assert!(zero_copy.waits());
        zero_copy.notified(&notification(0, copied));
        assert!(!zero_copy.waits());
    }
    // Many at a time, and let go of in any order, before the result even.
    for (turn, batch) in [0, 1, 2, 2, 3].into_iter().enumerate() {
        assert_eq!(begin(&mut zero_copy, FEWEST_BYTES), Some(batch));
        if turn == 2 {
            zero_copy.notified(&notification(batch, false));
        }
        zero_copy.ended(&result(batch, 100, true));
        zero_copy.passed(&mut channel);
    }
    assert_eq!(zero_copy.held.len(), 4);
    zero_copy.notified(&notification(2, false));
    assert_eq!(
        begin(&mut zero_copy, FEWEST_BYTES),
        Some(2),
        "the first that is free"
    );
    zero_copy.ended(&result(2, 100, true));
    // The rest of the same batch.
    assert_eq!(begin(&mut zero_copy, FEWEST_BYTES), Some(2));
    zero_copy.ended(&result(2, 100, true));
    zero_copy.passed(&mut channel);
    zero_copy.notified(&notification(2, false));
    assert_eq!(zero_copy.held.len(), 4, "one of two");
    for batch in [3, 1] {
        zero_copy.notified(&notification(batch, true));
    }
    assert!(matches!(zero_copy.policy, Policy::Tried(2)));
    zero_copy.notified(&notification(2, true));
    assert!(matches!(zero_copy.policy, Policy::Never));
    zero_copy.notified(&notification(0, false));
    assert!(matches!(zero_copy.policy, Policy::Never) && !zero_copy.waits());
    assert_eq!(begin(&mut zero_copy, FEWEST_BYTES), None);
}

#[test]
fn a_kernel_that_refuses_is_not_asked_again() {
    for (error, more) in REFUSALS.into_iter().flat_map(|e| [(e, false), (e, true)]) {
        let mut zero_copy = ZeroCopy::default();
        assert_eq!(begin(&mut zero_copy, FEWEST_BYTES), Some(0));
        assert!(zero_copy.ended(&result(0, -error, more)), "{error}");
        assert_eq!(zero_copy.waits(), more);
        assert_eq!(begin(&mut zero_copy, FEWEST_BYTES), None);
        // The same bytes are copied now, and the first attempt may still have them.
        assert!(!zero_copy.ended(&result(0, 100, false)));
        zero_copy.passed(&mut Channel::new(None));
        assert_eq!(zero_copy.held.len(), usize::from(more));
    }
    let mut zero_copy = ZeroCopy::default();
    assert_eq!(begin(&mut zero_copy, FEWEST_BYTES), Some(0));
    assert!(!zero_copy.ended(&result(0, -libc::ECONNRESET, false)));
    assert!(!zero_copy.waits() && matches!(zero_copy.policy, Policy::Tried(0)));
}

#[test]
fn what_is_held_is_bounded() {
    let batches = |bytes, policy| {
        let mut zero_copy = ZeroCopy {
            policy,
            ..ZeroCopy::default()
        };
        let mut count = 0;
        while let Some(batch) = begin(&mut zero_copy, bytes) {
            zero_copy.ended(&result(batch, 100, true));
            zero_copy.passed(&mut Channel::new(None));
            count += 1;
        }
        count
    };
    assert_eq!(batches(FEWEST_BYTES, Policy::Proven), HELD);
    assert_eq!(batches(1 << 20, Policy::Proven), HELD_BYTES >> 20);
    assert_eq!(batches(1 << 20, Policy::Tried(0)), 1);
    assert_eq!(batches(1 << 20, Policy::Never), 0);
}
