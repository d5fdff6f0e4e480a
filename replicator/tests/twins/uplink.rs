//! Uplinks that lose their carrier, and guests that go where there is one.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::support::machine::{FakeVm, World};
use crate::support::{
    PAGES, Pair, Running, assert_ascending, run_until_seen, wait_for, wait_within, world,
};

/// Longer than it takes until an uplink without carrier counts as lost.
const LONG: Duration = Duration::from_millis(2500);

/// Both twins, protected.
fn protected(pair: &Pair, world: &World) -> [Running; 2] {
    let a = pair.start("a", FakeVm::new(world, PAGES));
    wait_for("a boots", || a.vm.running());
    let b = pair.start("b", FakeVm::new(world, PAGES));
    wait_for("a is protected", || a.role() == "protected");
    run_until_seen(&a.vm, world, 100);
    [a, b]
}

#[test]
fn a_guest_goes_where_there_is_an_uplink() {
    let (mut pair, world) = (Pair::new(), world());
    let [at_a, _at_b] = ["a", "b"].map(|node| pair.give_uplink(node));
    let [a, b] = protected(&pair, &world);
    wait_for("a knows of b's", || {
        a.status().peer_uplinks.is_some_and(|uplinks| uplinks.good)
    });
    // A short break is none.
    at_a.store(false, Ordering::Relaxed);
    thread::sleep(Duration::from_millis(400));
    at_a.store(true, Ordering::Relaxed);
    thread::sleep(LONG);
    assert!(a.vm.running() && a.status().uplinks[0].good);

    at_a.store(false, Ordering::Relaxed);
    wait_for("b has the guest", || b.vm.running());
    assert!(b.vm.lock().consistent(), "b runs exactly one epoch (I3)");
    run_until_seen(&b.vm, &world, 100);
    assert_ascending(&world);
    let (here, there) = (a.status(), b.status());
    assert_eq!(
        (here.uplinks[0].carrier, here.uplinks[0].good),
        (false, false)
    );
    let said = there.peer_uplinks.expect("a has told");
    assert_eq!((said.good, said.lost.as_str()), (false, "eth-a"));
    // It is back, which is no reason to go again.
    at_a.store(true, Ordering::Relaxed);
    wait_within(Duration::from_secs(15), "a's uplink is good again", || {
        b.vm.step();
        b.status().peer_uplinks.is_some_and(|uplinks| uplinks.good)
    });
    assert!(b.vm.running() && b.role() == "protected");
}

#[test]
fn a_guest_waits_for_an_uplink_of_the_peer() {
    let (mut pair, world) = (Pair::new(), world());
    let [at_a, at_b] = ["a", "b"].map(|node| pair.give_uplink(node));
    at_b.store(false, Ordering::Relaxed);
    let [a, b] = protected(&pair, &world);
    at_a.store(false, Ordering::Relaxed);
    thread::sleep(LONG);
    assert_eq!(a.role(), "protected");
    run_until_seen(&a.vm, &world, 100);
    at_b.store(true, Ordering::Relaxed);
    wait_within(Duration::from_secs(15), "b has the guest", || {
        a.vm.step();
        b.vm.running()
    });
    run_until_seen(&b.vm, &world, 100);
    assert_ascending(&world);
}

#[test]
fn a_guest_does_not_go_to_a_peer_that_has_said_nothing() {
    let (mut pair, world) = (Pair::new(), world());
    let at_a = pair.give_uplink("a");
    let [a, b] = protected(&pair, &world);
    at_a.store(false, Ordering::Relaxed);
    wait_for("a's uplink is lost", || !a.status().uplinks[0].good);
    thread::sleep(LONG);
    assert_eq!(a.status().peer_uplinks, None);
    assert_eq!(
        (a.role().as_str(), b.role().as_str()),
        ("protected", "standby")
    );
    run_until_seen(&a.vm, &world, 100);
}

#[test]
fn a_guest_that_has_just_come_stays_for_a_while() {
    let (mut pair, world) = (Pair::new(), world());
    let [_at_a, at_b] = ["a", "b"].map(|node| pair.give_uplink(node));
    at_b.store(false, Ordering::Relaxed);
    let [a, b] = protected(&pair, &world);
    // An operator may send it where no uplink is, for a short time.
    a.command(evertwin_replicator::control::Command::Switchover)
        .expect("a switchover");
    let came = std::time::Instant::now();
    wait_within(Duration::from_secs(15), "a has the guest again", || {
        b.vm.step();
        a.vm.running()
    });
    assert!(came.elapsed() > Duration::from_secs(9));
    run_until_seen(&a.vm, &world, 100);
    assert_ascending(&world);
}
