//! Links that break and are back in time: the pair goes on where it was.

use std::time::Duration;

use evertwin_replicator::control::Command;

use crate::support::machine::FakeVm;
use crate::support::proxy::Proxy;
use crate::support::{
    PAGES, Pair, Running, free_address, run_until_seen, seen, wait_for, wait_within, world,
};

/// Longer than anything is waited for here.
const LONG: Duration = Duration::from_secs(10);

/// A protected pair whose twins wait for each other for that long, and the wire between them.
fn patient(
    world: &crate::support::machine::World,
    reconnect: Duration,
) -> (Pair, Proxy, [Running; 2]) {
    let mut pair = Pair::new();
    pair.reconnect = Some(reconnect);
    let proxy = Proxy::to(pair.listen);
    pair.dial = proxy.address;
    let a = pair.start("a", FakeVm::new(world, PAGES));
    let b = pair.start("b", FakeVm::new(world, PAGES));
    wait_for("a is protected", || {
        a.vm.step();
        a.role() == "protected" && b.role() == "standby"
    });
    (pair, proxy, [a, b])
}

#[test]
fn a_link_that_is_back_in_time_costs_neither_an_answer_nor_the_protection() {
    let world = world();
    let (pair, proxy, [a, b]) = patient(&world, Duration::from_secs(5));
    // Between frames, within frames, within epochs, with a harmed byte.
    for after in [0, 25, 45, 400, 4000, 5000, 9000, 20_000] {
        run_until_seen(&a.vm, &world, 100);
        if after % 2 == 0 {
            proxy.cut_after(after);
        } else {
            proxy.corrupt_after(after);
        }
        run_until_seen(&a.vm, &world, 100);
    }
    for _ in 0..5 {
        proxy.cut();
        run_until_seen(&a.vm, &world, 100);
    }
    let record = pair.record().expect("a record");
    assert_eq!((record.generation, record.releaser.as_str()), (1, "a"));
    assert!(!b.vm.running());
    assert!(seen(&world).into_iter().eq(1..=seen(&world).len() as u64));
    // What the standby has is whole all the same.
    a.command(Command::Switchover).expect("a switchover");
    assert!(b.vm.lock().consistent(), "exactly one epoch (I3)");
    run_until_seen(&b.vm, &world, 100);
}

#[test]
fn a_link_that_is_not_back_in_time_is_lost() {
    let world = world();
    let (pair, proxy, [a, b]) = patient(&world, Duration::from_millis(100));
    run_until_seen(&a.vm, &world, 100);
    proxy.partition(true);
    wait_for("one of them goes on", || {
        a.vm.step();
        pair.record().is_some_and(|record| record.generation == 2)
    });
    let record = pair.record().expect("a record");
    let winner = if record.releaser.as_str() == "a" {
        &a
    } else {
        &b
    };
    wait_for("its guest runs", || winner.vm.running());
    run_until_seen(&winner.vm, &world, 100);
    crate::support::assert_ascending(&world);
}

#[test]
fn a_standby_that_died_is_not_waited_for() {
    let world = world();
    let (pair, _proxy, [a, b]) = patient(&world, LONG);
    run_until_seen(&a.vm, &world, 100);
    drop(b);
    wait_within(LONG / 2, "a goes on alone", || a.role() == "solo");
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    wait_for("b is the standby again", || {
        a.vm.step();
        a.role() == "protected" && b.role() == "standby"
    });
    assert_eq!(pair.record().expect("a record").generation, 2);
    run_until_seen(&a.vm, &world, 100);
    crate::support::assert_ascending(&world);
}

#[test]
fn a_primary_that_died_is_not_waited_for() {
    let world = world();
    let (_pair, _proxy, [a, b]) = patient(&world, LONG);
    run_until_seen(&a.vm, &world, 100);
    drop(a);
    wait_within(LONG / 2, "b is promoted", || b.vm.running());
    assert!(b.vm.lock().consistent(), "exactly one epoch (I3)");
    run_until_seen(&b.vm, &world, 100);
    crate::support::assert_ascending(&world);
}

#[test]
fn another_path_carries_the_link_on_when_one_goes_silent_or_breaks() {
    let world = world();
    let mut pair = Pair::new();
    let other = free_address();
    let (first, second) = (Proxy::to(pair.listen), Proxy::to(other));
    pair.dial = first.address;
    pair.second = Some((other, second.address));
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    wait_for("a is protected", || {
        a.vm.step();
        a.role() == "protected" && b.role() == "standby"
    });
    // Silent in both directions, then cut, to and fro.
    for (bad, good) in [(&first, &second), (&second, &first), (&first, &second)] {
        run_until_seen(&a.vm, &world, 100);
        bad.stall(true);
        run_until_seen(&a.vm, &world, 100);
        bad.stall(false);
        good.partition(true);
        run_until_seen(&a.vm, &world, 100);
        good.partition(false);
        bad.partition(true);
        run_until_seen(&a.vm, &world, 100);
        bad.partition(false);
    }
    let record = pair.record().expect("a record");
    assert_eq!((record.generation, record.releaser.as_str()), (1, "a"));
    assert!(!b.vm.running());
    assert!(seen(&world).into_iter().eq(1..=seen(&world).len() as u64));
}

#[test]
fn a_peer_that_is_dead_on_all_paths_is_dead() {
    let world = world();
    let mut pair = Pair::new();
    let other = free_address();
    pair.second = Some((other, other));
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    run_until_seen(&a.vm, &world, 100);
    drop(a);
    wait_for("b is promoted", || b.vm.running());
    assert!(b.vm.lock().consistent(), "exactly one epoch (I3)");
    run_until_seen(&b.vm, &world, 100);
    crate::support::assert_ascending(&world);
}
