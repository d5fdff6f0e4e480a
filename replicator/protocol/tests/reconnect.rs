//! Single transitions of twins that wait for each other after their link broke.

mod bench;

use std::time::Duration;

use bench::{Bench, ack, node, swap};
use evertwin_protocol::{Action, Envelope, Input, Message, Record, Role, Status};

fn named() -> Record {
    Record::protected(1, node("a"), node("b"))
}

fn ship(epoch: u64) -> Action {
    Action::Ship {
        generation: 1,
        epoch,
    }
}

fn hello(status: Status) -> Action {
    Action::Send(Envelope {
        generation: 1,
        epoch: 0,
        message: Message::Hello(status),
    })
}

fn strike() -> [Action; 2] {
    let alone = Record::solo(2, node("a"));
    [Action::StopTracking, swap(Some(named()), alone)]
}

/// A primary whose link broke with epochs 2 and 3 on their way.
fn interrupted() -> Bench {
    let mut bench = Bench::patient("a").protect();
    for epoch in 2..4 {
        bench.give(Input::OutputWaiting);
        bench.give(Input::Captured { epoch, idle: false });
    }
    assert_eq!(bench.give(Input::LinkDown), [], "nothing is given up");
    assert_eq!(bench.role(), Role::Interrupted);
    bench
}

/// A standby that is named and holds epoch 1, and whose link broke.
fn waiting() -> Bench {
    let mut bench = Bench::patient("b").sync(true);
    bench.hear(1, 0, Message::Named);
    assert_eq!(bench.give(Input::LinkDown), [], "nothing is asked");
    bench
}

#[test]
fn a_standby_that_is_back_gets_what_it_lacks() {
    // What it holds, and what follows.
    let table = [
        (1, vec![ship(2), ship(3)]),
        (2, vec![Action::Committed(2), Action::Release(2), ship(3)]),
        (3, vec![Action::Committed(3), Action::Release(3)]),
    ];
    for (epoch, actions) in table {
        let mut bench = interrupted();
        assert_eq!(bench.give(Input::LinkUp), [hello(Status::Primary)]);
        let hello = Message::Hello(Status::Synced { epoch });
        assert_eq!(bench.hear(1, 0, hello), actions);
        assert_eq!(bench.role(), Role::Protected);
    }
}

#[test]
fn a_peer_that_is_not_the_same_standby_is_given_up() {
    let synced = |epoch| Status::Synced { epoch };
    for (generation, status) in [
        (0, Status::Cold),
        (2, Status::Primary),
        (2, synced(2)),
        (1, synced(0)),
        (1, synced(4)),
    ] {
        let mut bench = interrupted();
        bench.give(Input::LinkUp);
        let actions = bench.hear(generation, 0, Message::Hello(status));
        assert_eq!(actions, strike(), "{status:?} of {generation}");
    }
}

#[test]
fn a_peer_that_is_seen_to_be_dead_is_not_waited_for() {
    assert_eq!(interrupted().give(Input::PeerDead), strike());
    // As after any loss, only the arbiter can say that the guest runs here (I2).
    let race = swap(Some(named()), Record::solo(2, node("b")));
    assert_eq!(waiting().give(Input::PeerDead), [race]);
    // Late news of an earlier wait.
    let mut primary = interrupted();
    primary.give(Input::LinkUp);
    assert_eq!(primary.give(Input::PeerDead), []);
    let mut standby = waiting();
    standby.give(Input::LinkUp);
    assert_eq!(standby.give(Input::PeerDead), []);
}

#[test]
fn a_primary_gives_its_standby_up_in_time() {
    let mut bench = interrupted();
    assert_eq!(bench.pass(Duration::from_millis(100)), []);
    assert_eq!(bench.pass(Duration::from_millis(101)), strike());
}

#[test]
fn a_primary_that_was_frozen_does_not_go_on_where_it_was() {
    let mut bench = interrupted();
    bench.give(Input::LinkUp);
    // Nothing of what came meanwhile counts.
    bench.now += 10_000_000_000;
    let actions = bench.hear(1, 0, Message::Hello(Status::Synced { epoch: 3 }));
    assert!(!actions.contains(&Action::Release(3)), "{actions:?}");
    assert!(actions.ends_with(&strike()), "{actions:?}");
}

#[test]
fn an_end_that_was_found_too_late_is_silence() {
    for end in [Input::LinkDown, Input::LinkUp, Input::LinkFault] {
        let mut bench = Bench::patient("a").protect();
        bench.now += 10_000_000_000;
        let actions = bench.give(end);
        assert_eq!(actions[..2], strike(), "{end:?}");
    }
}

#[test]
fn silence_is_not_waited_out_twice() {
    let mut bench = Bench::patient("a").protect();
    let actions = bench.pass(Duration::from_millis(501));
    assert!(actions.ends_with(&strike()), "{actions:?}");
    let mut bench = Bench::patient("b").sync(true);
    bench.hear(1, 0, Message::Named);
    bench.pass(Duration::from_millis(501));
    assert_eq!(bench.role(), Role::Promoting);
}

#[test]
fn a_standby_goes_on_under_the_same_generation() {
    let mut bench = waiting();
    let greeting = hello(Status::Synced { epoch: 1 });
    assert_eq!(bench.give(Input::LinkUp), [greeting]);
    assert_eq!(bench.hear(1, 0, Message::Hello(Status::Primary)), []);
    let actions = bench.hear(1, 2, Message::Epoch);
    assert_eq!(actions, [ack(2), Action::Apply(2)]);
}

#[test]
fn a_standby_asks_when_its_time_is_over_or_its_primary_is_cold() {
    let taken = swap(Some(named()), Record::solo(2, node("b")));
    let mut bench = waiting();
    assert_eq!(bench.pass(Duration::from_millis(100)), []);
    let actions = bench.pass(Duration::from_millis(101));
    assert_eq!(actions, [taken]);
    let mut bench = waiting();
    bench.give(Input::LinkUp);
    let actions = bench.hear(1, 0, Message::Hello(Status::Cold));
    assert_eq!(actions, [taken]);
    // Links that come and go do not make it wait for ever.
    let mut bench = waiting();
    bench.give(Input::LinkUp);
    bench.pass(Duration::from_millis(201));
    assert_eq!(bench.give(Input::LinkDown), [taken]);
}
