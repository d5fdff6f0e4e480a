//! Two drivers on the loopback, each with a fake machine: pairing, failure of either side,
//! return, and the guest's end.

use crate::support::machine::FakeVm;
use crate::support::proxy::Proxy;
use crate::support::{
    PAGES, Pair, TIMEOUT, assert_ascending, run_until_seen, seen, wait_for, world,
};
use evertwin_replicator::{Ended, Error};

#[test]
fn a_pair_protects_its_guest() {
    protects(Pair::new());
}

#[test]
fn a_pair_without_tls_protects_its_guest() {
    protects(Pair::plain());
}

fn protects(pair: Pair) {
    let world = world();
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    run_until_seen(&a.vm, &world, 100);
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    let record = pair.wait_named("a");
    assert_eq!(record.generation, 1);
    run_until_seen(&a.vm, &world, 1000);
    assert!(a.vm.lock().epochs > 1);
    assert!(!b.vm.running());
    // All was seen, in order and without a gap.
    assert!(seen(&world).into_iter().eq(1..=seen(&world).len() as u64));
}

#[test]
fn twins_agree_on_a_point_of_their_disks() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    let b_vm = FakeVm::new(&world, PAGES);
    b_vm.handle().lock().points = vec![7];
    let b = pair.start("b", b_vm);
    pair.wait_named("a");
    // What the standby held was asked for before anything was copied.
    let told = a.vm.lock().told.clone().expect("b has told");
    assert_eq!(told[0].points, [7]);
    run_until_seen(&a.vm, &world, 100);
    wait_for("a knows a point", || a.vm.lock().points.len() == 1);
    let point = a.vm.lock().points[0];
    // What a did not know is of no use to b any more.
    assert_eq!(b.vm.lock().points, [point]);
}

#[test]
fn a_standby_whose_disks_are_slow_is_waited_for() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    let record = pair.wait_named("a");
    run_until_seen(&a.vm, &world, 100);
    b.vm.fall_behind(true);
    std::thread::sleep(TIMEOUT * 2);
    // Neither was silent, and nothing that the standby does not have got out.
    assert_eq!((a.role().as_str(), b.vm.running()), ("protected", false));
    b.vm.fall_behind(false);
    run_until_seen(&a.vm, &world, 1000);
    assert_eq!(a.role(), "protected");
    assert_eq!(pair.record(), Some(record));
    assert_ascending(&world);
}

#[test]
fn a_standby_whose_disks_are_too_slow_is_not_waited_for_any_longer() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    let mut b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    b.vm.fall_behind(true);
    let ended = b.ended();
    assert!(
        matches!(&ended, Err(Error::StandbyDisk(why)) if why.contains("too slow")),
        "{ended:?}"
    );
    wait_for("a is alone", || a.role() == "solo");
    run_until_seen(&a.vm, &world, 100);
    assert!(!b.vm.running());
    let _b = pair.start("b", FakeVm::new(&world, PAGES));
    wait_for("a is protected", || a.role() == "protected");
    run_until_seen(&a.vm, &world, 100);
    assert_ascending(&world);
}

#[test]
fn the_standby_goes_on_where_the_primary_died() {
    let (pair, world) = (Pair::new(), world());
    let mut a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    run_until_seen(&a.vm, &world, 50);
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    run_until_seen(&a.vm, &world, 2000);
    a.stop();
    assert_eq!(a.ended().expect("a clean stop"), Ended::Stopped);
    wait_for("b is promoted", || b.vm.running());
    assert!(b.vm.lock().consistent(), "b runs exactly one epoch (I3)");
    run_until_seen(&b.vm, &world, 500);
    assert_ascending(&world);
    let record = pair.record().expect("a record");
    assert_eq!((record.generation, record.releaser.as_str()), (2, "b"));
}

#[test]
fn a_hypervisor_that_takes_its_time_to_track_costs_no_link() {
    let (pair, world) = (Pair::new(), world());
    let vm = FakeVm::new(&world, PAGES);
    vm.handle().lock().tracking_takes = 3 * TIMEOUT;
    let a = pair.start("a", vm);
    let _b = pair.start("b", FakeVm::new(&world, PAGES));
    // Who waited for it on the thread of the heartbeats would lose the standby each time.
    pair.wait_named("a");
    run_until_seen(&a.vm, &world, 100);
}

#[test]
fn a_promoted_guest_gets_again_what_no_committed_epoch_has() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    run_until_seen(&a.vm, &world, 50);
    let unfinished = 1 << 40;
    a.vm.receive(1, b"in an epoch that has committed");
    a.vm.receive(unfinished, b"one");
    a.vm.receive(unfinished, b"two");
    run_until_seen(&a.vm, &world, 500);
    a.stop();
    wait_for("b is promoted", || b.vm.running());
    let again = &b.vm.lock().again;
    let bytes: Vec<&[u8]> = again.iter().map(|frame| frame.bytes.as_slice()).collect();
    assert_eq!(bytes, [b"one", b"two"]);
}

#[test]
fn a_host_that_can_not_go_on_leaves_the_guest_to_its_twin() {
    let (pair, world) = (Pair::new(), world());
    let mut a = pair.start("a", FakeVm::new(&world, PAGES));
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    run_until_seen(&a.vm, &world, 100);
    a.vm.lock().failure = Some("a page of this host is broken");
    a.vm.exit();
    let error = a.ended().expect_err("not the guest's own end");
    assert!(error.to_string().contains("a page of this host"), "{error}");
    wait_for("b is promoted", || b.vm.running());
    run_until_seen(&b.vm, &world, 100);
    assert_ascending(&world);
}

#[test]
fn a_dead_standby_leaves_the_primary_solo_and_returns() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    for generation in 1..4 {
        let b = pair.start("b", FakeVm::new(&world, PAGES));
        assert_eq!(pair.wait_named("a").generation, generation);
        run_until_seen(&a.vm, &world, 300);
        drop(b);
        wait_for("the standby is struck off", || {
            pair.record().is_some_and(|record| record.standby.is_none())
        });
        run_until_seen(&a.vm, &world, 300);
    }
    assert!(seen(&world).into_iter().eq(1..=seen(&world).len() as u64));
}

#[test]
fn the_twins_take_turns() {
    for pair in [Pair::new(), Pair::plain()] {
        take_turns(pair);
    }
}

fn take_turns(pair: Pair) {
    let world = world();
    let names = ["a", "b"];
    let mut primary = pair.start("a", FakeVm::new(&world, PAGES));
    for turn in 0..4 {
        let mut standby = pair.start(names[(turn + 1) % 2], FakeVm::new(&world, PAGES));
        pair.wait_named(names[turn % 2]);
        run_until_seen(&primary.vm, &world, 300);
        primary.stop();
        primary.ended().expect("a clean stop");
        wait_for("the standby is promoted", || standby.vm.running());
        assert!(standby.vm.lock().consistent());
        std::mem::swap(&mut primary, &mut standby);
    }
    assert_ascending(&world);
}

#[test]
fn a_partition_leaves_exactly_one_guest() {
    let (mut pair, world) = (Pair::new(), world());
    let proxy = Proxy::to(pair.listen);
    pair.dial = proxy.address;
    let mut a = pair.start("a", FakeVm::new(&world, PAGES));
    let mut b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    run_until_seen(&a.vm, &world, 300);
    proxy.stall(true);
    // The guest runs on while both sides find out; nothing of it may leave.
    wait_for("one of them wins", || {
        a.vm.step();
        pair.record().is_some_and(|record| record.generation == 2)
    });
    let winner = pair.record().expect("a record").releaser;
    if winner.as_str() == "a" {
        run_until_seen(&a.vm, &world, 100);
        assert!(!b.vm.running());
    } else {
        assert_eq!(a.ended().expect("a fenced run"), Ended::Fenced);
        assert!(a.vm.lock().fenced && !a.vm.running());
        wait_for("b is promoted", || b.vm.running());
        run_until_seen(&b.vm, &world, 100);
    }
    assert_ascending(&world);
    b.stop();
    assert_eq!(b.ended().expect("a clean stop"), Ended::Stopped);
}

#[test]
fn without_an_arbiter_nothing_is_promoted_and_nothing_leaks() {
    let (mut pair, world) = (Pair::new(), world());
    pair.arbiter = false;
    let proxy = Proxy::to(pair.listen);
    pair.dial = proxy.address;
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    run_until_seen(&a.vm, &world, 10);
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    wait_for("a is protected", || {
        a.vm.step();
        a.vm.lock().epochs > 2
    });
    run_until_seen(&a.vm, &world, 100);
    proxy.partition(true);
    // The driver's threads are asked nothing here: both must have seen the link go.
    let epochs = a.vm.lock().epochs;
    std::thread::sleep(TIMEOUT * 2);
    let before = seen(&world).len();
    for _ in 0..1000 {
        a.vm.step();
    }
    assert!(a.vm.lock().epochs <= epochs + 2);
    assert!(!b.vm.running());
    assert_eq!(seen(&world).len(), before, "output is held");
    proxy.partition(false);
    wait_for("the held output leaves", || {
        seen(&world).len() >= before + 1000
    });
    run_until_seen(&a.vm, &world, 100);
    assert_ascending(&world);
}

#[test]
fn the_guest_ends_on_both_sides() {
    for arbiter in [true, false] {
        let (mut pair, world) = (Pair::new(), world());
        pair.arbiter = arbiter;
        let mut a = pair.start("a", FakeVm::new(&world, PAGES));
        let mut b = pair.start("b", FakeVm::new(&world, PAGES));
        wait_for("a is protected", || {
            a.vm.step();
            a.vm.lock().epochs > 2
        });
        if arbiter {
            pair.wait_named("a");
        }
        for _ in 0..100 {
            a.vm.step();
        }
        let count = a.vm.lock().count;
        a.vm.exit();
        assert_eq!(a.ended().expect("a clean end"), Ended::GuestExited);
        assert_eq!(b.ended().expect("a clean end"), Ended::PeerGuestExited);
        assert!(!b.vm.running());
        assert!(
            seen(&world).into_iter().eq(1..=count),
            "its last words are heard"
        );
    }
}

#[test]
fn a_failed_capture_loses_nothing() {
    let (pair, world) = (Pair::new(), world());
    let mut a = pair.start("a", FakeVm::new(&world, PAGES));
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    for _ in 0..20 {
        a.vm.lock().failing_captures = 2;
        run_until_seen(&a.vm, &world, 50);
    }
    a.stop();
    a.ended().expect("a clean stop");
    wait_for("b is promoted", || b.vm.running());
    assert!(b.vm.lock().consistent(), "no page was lost (I5)");
}

#[test]
fn an_idle_guest_makes_few_epochs() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    let _b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    wait_for("the guest is looked at", || a.vm.lock().peeks > 3);
    let (epochs, peeks) = {
        let vm = a.vm.lock();
        (vm.epochs, vm.peeks)
    };
    std::thread::sleep(std::time::Duration::from_millis(500));
    let vm = a.vm.lock();
    assert_eq!(vm.epochs, epochs, "nothing is dirty and nothing waits");
    assert!(
        vm.peeks - peeks <= 10,
        "{} looks in 500 ms",
        vm.peeks - peeks
    );
}
