use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

struct Recorder {
    to: Sender<Vec<u8>>,
    stream: bool,
}

impl Sink for Recorder {
    fn emit(&mut self, bytes: &[u8]) {
        self.to.send(bytes.to_vec()).unwrap();
    }
    fn is_stream(&self) -> bool {
        self.stream
    }
}

fn gate(limit: usize) -> Arc<OutputGate> {
    OutputGate::new(limit).unwrap()
}

fn recorder(gate: &OutputGate, stream: bool) -> (SinkId, Receiver<Vec<u8>>) {
    let (to, from) = channel();
    (gate.add_sink(Box::new(Recorder { to, stream })), from)
}

fn seen(from: &Receiver<Vec<u8>>) -> Vec<Vec<u8>> {
    from.try_iter().collect()
}

#[test]
fn open_gate_passes_output_on() {
    let gate = gate(1000);
    let (sink, from) = recorder(&gate, false);
    assert_eq!(gate.submit(sink, b"a"), Submit::Passed);
    assert_eq!(seen(&from), [b"a"]);
    assert!(gate.waiting().read().is_err());
    assert_eq!(gate.held_bytes(), 0);
}

#[test]
fn output_leaves_only_with_its_epoch() {
    let gate = gate(10_000);
    let (sink, from) = recorder(&gate, false);
    gate.hold();
    assert_eq!(gate.submit(sink, b"1a"), Submit::Held);
    assert_eq!(gate.submit(sink, b"1b"), Submit::Held);
    assert!(gate.seal(1));
    assert!(!gate.seal(2), "nothing was held in epoch 2");
    assert_eq!(gate.submit(sink, b"3"), Submit::Held);
    assert!(gate.seal(3));
    assert_eq!(gate.submit(sink, b"4"), Submit::Held);
    assert!(seen(&from).is_empty());

    gate.release_through(0);
    assert!(seen(&from).is_empty());
    gate.release_through(2);
    assert_eq!(seen(&from), [b"1a", b"1b"]);
    gate.release_through(3);
    assert_eq!(seen(&from), [b"3"]);
    // Unsealed output stays, however high the epoch.
    gate.release_through(u64::MAX);
    assert!(seen(&from).is_empty());
    assert_eq!(gate.held_bytes(), 1 + ITEM_OVERHEAD);
}

#[test]
fn opening_emits_everything_in_order() {
    let gate = gate(10_000);
    let (sink, from) = recorder(&gate, false);
    gate.hold();
    for i in 0..5u8 {
        gate.submit(sink, &[i]);
        if i % 2 == 0 {
            gate.seal(u64::from(i));
        }
    }
    gate.open();
    assert_eq!(gate.submit(sink, &[5]), Submit::Passed);
    let all: Vec<u8> = seen(&from).concat();
    assert_eq!(all, [0, 1, 2, 3, 4, 5]);
    assert!(!gate.is_holding());
}

#[test]
fn discarded_output_never_leaves() {
    let gate = gate(10_000);
    let (sink, from) = recorder(&gate, false);
    gate.hold();
    gate.submit(sink, b"a");
    gate.seal(1);
    gate.submit(sink, b"b");
    gate.discard();
    assert_eq!(gate.submit(sink, b"c"), Submit::Held);
    gate.release_through(u64::MAX);
    gate.open();
    gate.hold();
    gate.open();
    assert_eq!(gate.submit(sink, b"d"), Submit::Held);
    assert!(seen(&from).is_empty());
    assert_eq!(gate.held_bytes(), 0);
    assert_eq!(gate.counters().discarded, 4);
}

#[test]
fn waiting_fires_once_per_epoch() {
    let gate = gate(10_000);
    let (sink, _from) = recorder(&gate, false);
    gate.hold();
    gate.submit(sink, b"a");
    gate.submit(sink, b"b");
    assert_eq!(gate.waiting().read().unwrap(), 1);
    gate.submit(sink, b"c");
    assert!(gate.waiting().read().is_err());
    gate.seal(1);
    gate.submit(sink, b"d");
    assert_eq!(gate.waiting().read().unwrap(), 1);
}

#[test]
fn full_gate_takes_nothing_and_tells_of_room() {
    let gate = gate(2 * (10 + ITEM_OVERHEAD));
    let (sink, from) = recorder(&gate, false);
    let (other, _other_from) = recorder(&gate, false);
    let room = EventFd::new(EFD_NONBLOCK).unwrap();
    gate.set_room_event(sink, room.try_clone().unwrap());
    gate.hold();
    let frame = [7u8; 10];
    assert_eq!(gate.submit(sink, &frame), Submit::Held);
    gate.seal(1);
    assert_eq!(gate.submit(sink, &frame), Submit::Held);
    assert_eq!(gate.submit(sink, &frame), Submit::Full);
    assert!(room.read().is_err());
    // One sink's output can't crowd out another's.
    assert_eq!(gate.submit(other, &frame), Submit::Held);

    gate.release_through(1);
    assert_eq!(seen(&from).len(), 1);
    assert_eq!(room.read().unwrap(), 1);
    assert_eq!(gate.submit(sink, &frame), Submit::Held);
    assert_eq!(gate.counters().full, 1);
}

#[test]
fn oversized_output_passes_an_empty_gate() {
    let gate = gate(16);
    let (sink, from) = recorder(&gate, false);
    gate.hold();
    assert_eq!(gate.submit(sink, &[1; 100]), Submit::Held);
    assert_eq!(gate.submit(sink, &[2]), Submit::Full);
    gate.open();
    assert_eq!(seen(&from), [vec![1; 100]]);
}

#[test]
fn stream_pieces_join_within_an_epoch() {
    let gate = gate(100_000);
    let (console, console_from) = recorder(&gate, true);
    let (net, net_from) = recorder(&gate, false);
    gate.hold();
    gate.submit(console, b"a");
    gate.submit(console, b"b");
    gate.submit(net, b"n");
    gate.submit(net, b"m");
    gate.submit(console, b"c");
    gate.seal(1);
    gate.submit(console, b"d");
    gate.release_through(1);
    assert_eq!(seen(&console_from), [b"ab".to_vec(), b"c".to_vec()]);
    assert_eq!(seen(&net_from), [b"n", b"m"]);
    gate.seal(2);
    gate.release_through(2);
    assert_eq!(seen(&console_from), [b"d"]);
    assert_eq!(gate.held_bytes(), 0);
}

/// Frames submitted while another thread opens, holds and releases leave in order, and
/// none while the gate holds them.
#[test]
fn order_survives_concurrent_control() {
    const FRAMES: u32 = 20_000;
    let gate = gate(usize::MAX / 2);
    let (sink, from) = recorder(&gate, false);
    std::thread::scope(|scope| {
        let submitter = scope.spawn(|| {
            for i in 0..FRAMES {
                assert_ne!(gate.submit(sink, &i.to_le_bytes()), Submit::Full);
            }
        });
        let mut epoch = 0;
        while !submitter.is_finished() {
            gate.hold();
            epoch += 1;
            let before = gate.counters();
            gate.seal(epoch);
            let during = gate.counters();
            assert_eq!(before.passed, during.passed, "output passed a held gate");
            gate.release_through(epoch);
            gate.open();
        }
    });
    gate.open();
    let order: Vec<u32> = seen(&from)
        .iter()
        .map(|frame| u32::from_le_bytes(frame[..].try_into().unwrap()))
        .collect();
    assert_eq!(order, (0..FRAMES).collect::<Vec<_>>());
}

/// A sink that is slow at will: it tells when it is entered and goes on when told.
struct SlowSink {
    entered: Sender<()>,
    go_on: Receiver<()>,
    emitted: Sender<Vec<u8>>,
}

impl Sink for SlowSink {
    fn emit(&mut self, bytes: &[u8]) {
        self.entered.send(()).unwrap();
        self.go_on.recv().unwrap();
        self.emitted.send(bytes.to_vec()).unwrap();
    }
}

/// Output on its way when the gate is told to hold is out before `hold` returns, and what
/// queued up behind it for the same sink is held.
#[test]
fn holding_waits_for_what_is_on_its_way() {
    const GRACE: std::time::Duration = std::time::Duration::from_millis(100);
    let gate = gate(1000);
    let (entered, was_entered) = channel();
    let (go_on, may_go_on) = channel();
    let (emitted, out) = channel();
    let sink = gate.add_sink(Box::new(SlowSink {
        entered,
        go_on: may_go_on,
        emitted,
    }));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| gate.submit(sink, b"1"));
        was_entered.recv().unwrap();
        let second = scope.spawn(|| gate.submit(sink, b"2"));
        let (held, is_held) = channel();
        let gate = &gate;
        // Time for the second thread to see an open gate and wait for the sink.
        let _ = is_held.recv_timeout(GRACE);
        scope.spawn(move || {
            gate.hold();
            held.send(()).unwrap();
        });
        let too_early = is_held.recv_timeout(GRACE).is_ok();
        // One for each frame, so that a gate that lets the second pass doesn't hang.
        go_on.send(()).unwrap();
        go_on.send(()).unwrap();
        assert!(!too_early, "something was on its way");
        is_held.recv().unwrap();
        assert_eq!(seen(&out), [b"1"]);
        assert_eq!(first.join().unwrap(), Submit::Passed);
        assert_eq!(second.join().unwrap(), Submit::Held);
    });
    assert_eq!(gate.held_bytes(), 1 + ITEM_OVERHEAD);
}

#[test]
fn a_gate_whose_lease_is_over_holds_until_there_is_another() {
    let gate = gate(10_000);
    let (sink, from) = recorder(&gate, false);
    let long_ago = Some(Duration::from_nanos(1));
    let in_a_hundred_years = Some(Duration::from_secs(100 * 365 * 24 * 3600));
    gate.lease(in_a_hundred_years);
    assert_eq!(gate.submit(sink, b"1"), Submit::Passed);
    gate.lease(long_ago);
    assert_eq!(gate.submit(sink, b"2"), Submit::Held);
    assert_eq!(gate.submit(sink, b"3"), Submit::Held);
    assert!(gate.is_holding());
    assert_eq!(seen(&from), [b"1"]);
    // Opening it is no lease.
    gate.open();
    assert_eq!(gate.submit(sink, b"4"), Submit::Held);
    assert!(seen(&from).is_empty());
    gate.lease(in_a_hundred_years);
    assert_eq!(seen(&from), [b"2", b"3", b"4"], "in order");
    assert_eq!(gate.submit(sink, b"5"), Submit::Passed);
    assert_eq!(gate.held_bytes(), 0);

    // One that is closed for another reason stays so.
    gate.hold();
    gate.submit(sink, b"6");
    gate.lease(None);
    assert_eq!(seen(&from), [b"5"]);
    gate.open();
    assert_eq!(seen(&from), [b"6"]);
}
