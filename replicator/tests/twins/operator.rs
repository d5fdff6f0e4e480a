//! What an operator asks of twins: switchovers, leaving, and promotion by hand.

use std::sync::atomic::{AtomicBool, Ordering};

use evertwin_replicator::control::{Command, NotDone};
use evertwin_replicator::{Ended, Error};

use crate::support::machine::FakeVm;
use crate::support::proxy::Proxy;
use crate::support::{
    PAGES, Pair, Running, assert_ascending, run_until_seen, seen, wait_for, world,
};

fn refused(outcome: Result<u64, NotDone>) -> bool {
    matches!(outcome, Err(NotDone::Refused(_)))
}

/// What all the guests of a world have said: each number, once, in order.
fn assert_without_gap(world: &crate::support::machine::World) {
    let seen = seen(world);
    assert!(seen.iter().copied().eq(1..=seen.len() as u64));
}

#[test]
fn twins_exchange_their_roles_and_nothing_is_lost() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    run_until_seen(&a.vm, &world, 50);
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    run_until_seen(&a.vm, &world, 300);
    let twins = [&a, &b];
    for turn in 0..6 {
        let (primary, standby) = (twins[turn % 2], twins[1 - turn % 2]);
        assert!(refused(standby.command(Command::Switchover)));
        let generation = turn as u64 + 2;
        assert_eq!(primary.command(Command::Switchover), Ok(generation));
        assert!(!primary.vm.running() && standby.vm.running());
        assert!(standby.vm.lock().consistent(), "exactly one epoch (I3)");
        // No sync in between: the former primary is the standby at once.
        let record = pair.record().expect("a record");
        assert_eq!(record.generation, generation);
        let former = ["a", "b"][turn % 2];
        assert_eq!(record.standby.expect("it is named").as_str(), former);
        assert_eq!(primary.role(), "standby");
        run_until_seen(&standby.vm, &world, 200);
        wait_for("forwarding ends", || primary.vm.lock().forwarded);
    }
    assert_without_gap(&world);
}

#[test]
fn frames_that_follow_a_guest_about_disturb_no_switchover() {
    let (mut pair, world) = (Pair::new(), world());
    // Whoever makes the frames takes time from the twins.
    pair.timeout *= 10;
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    let vms = [a.vm.clone(), b.vm.clone()];
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                vms.iter().for_each(|vm| vm.receive(1, b"a frame"));
                std::thread::yield_now();
            }
        });
        // Each guest that moves on is still followed by what came for it where it was before.
        for turn in 0..30 {
            let (primary, other) = [(&a, &b), (&b, &a)][turn % 2];
            wait_for("the primary is protected", || primary.role() == "protected");
            let done = primary.command(Command::Switchover);
            if done != Ok(turn as u64 + 2) {
                over.store(true, Ordering::Relaxed);
            }
            assert_eq!(done, Ok(turn as u64 + 2));
            assert!(other.vm.running());
        }
        over.store(true, Ordering::Relaxed);
    });
    run_until_seen(&a.vm, &world, 50);
    assert_without_gap(&world);
}

#[test]
fn a_former_primary_takes_over_again_when_its_successor_dies() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    run_until_seen(&a.vm, &world, 100);
    a.command(Command::Switchover).expect("a switchover");
    run_until_seen(&b.vm, &world, 100);
    b.stop();
    wait_for("a is promoted", || a.vm.running());
    assert!(a.vm.lock().consistent(), "exactly one epoch (I3)");
    run_until_seen(&a.vm, &world, 100);
    assert_ascending(&world);
}

#[test]
fn a_successor_that_dies_before_its_first_epoch_loses_nothing() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    run_until_seen(&a.vm, &world, 100);
    // No capture of b's succeeds, so what a held when it handed over is all there is.
    b.vm.lock().failing_captures = 5;
    a.command(Command::Switchover).expect("a switchover");
    let before = seen(&world).len();
    for _ in 0..100 {
        b.vm.step();
    }
    b.stop();
    wait_for("a is promoted", || a.vm.running());
    assert!(a.vm.lock().consistent(), "exactly one epoch (I3)");
    assert_eq!(seen(&world).len(), before, "nothing of b's guest got out");
    run_until_seen(&a.vm, &world, 100);
    assert_without_gap(&world);
}

#[test]
fn a_switchover_whose_link_is_cut_ends_with_one_primary() {
    let world = world();
    let mut pair = Pair::new();
    let proxy = Proxy::to(pair.listen);
    pair.dial = proxy.address;
    let start = |name| pair.start(name, FakeVm::new(&world, PAGES));
    let mut twins = [start("a"), start("b")];
    for after in [0, 30, 50, 90, 130, 4000, 9000] {
        let primary = protected_primary(&mut twins, start);
        run_until_seen(&twins[primary].vm, &world, 100);
        proxy.cut_after(after);
        // It is obeyed or not: what counts is that a guest goes on, and which.
        let _ = twins[primary].command(Command::Switchover);
        proxy.cut_after(-1);
        proxy.cut();
        let before = seen(&world).len();
        wait_for("a guest goes on", || {
            restart_ended(&mut twins, start);
            for twin in &twins {
                twin.vm.step();
            }
            seen(&world).len() > before + 100
        });
        assert_ascending(&world);
    }
}

/// Waits until one twin's guest runs and is protected by the other: its index.
fn protected_primary(twins: &mut [Running; 2], start: impl Fn(&'static str) -> Running) -> usize {
    let mut primary = 0;
    wait_for("one protects the other", || {
        restart_ended(twins, &start);
        let roles = [twins[0].role(), twins[1].role()];
        primary = usize::from(roles[1] == "protected");
        roles[primary] == "protected" && roles[1 - primary] == "standby"
    });
    primary
}

/// Who lost a race for the guest has ended, and is started again.
fn restart_ended(twins: &mut [Running; 2], start: impl Fn(&'static str) -> Running) {
    for (twin, name) in twins.iter_mut().zip(["a", "b"]) {
        if twin.role() == "ended" {
            *twin = start(name);
        }
    }
}

#[test]
fn who_leaves_hands_the_guest_over_first() {
    let (pair, world) = (Pair::new(), world());
    let mut a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    assert!(
        refused(a.command(Command::Leave)),
        "the guest would be lost"
    );
    let mut b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    run_until_seen(&a.vm, &world, 100);
    assert_eq!(a.command(Command::Leave), Ok(2));
    assert_eq!(a.ended().expect("a clean end"), Ended::Left);
    assert!(b.vm.running());
    wait_for("b goes on alone", || b.role() == "solo");
    run_until_seen(&b.vm, &world, 100);
    let mut a = pair.start("a", FakeVm::new(&world, PAGES));
    pair.wait_named("b");
    a.command(Command::Leave).expect("a standby may go");
    assert_eq!(a.ended().expect("a clean end"), Ended::Left);
    wait_for("b goes on alone", || b.role() == "solo");
    run_until_seen(&b.vm, &world, 100);
    assert_without_gap(&world);
    b.stop();
    b.ended().expect("a clean stop");
}

/// A pair without an arbiter, protected.
fn by_hand(world: &crate::support::machine::World) -> (Pair, Running, Running) {
    let mut pair = Pair::new();
    pair.arbiter = false;
    let a = pair.start("a", FakeVm::new(world, PAGES));
    let b = pair.start("b", FakeVm::new(world, PAGES));
    wait_for("a is protected", || {
        a.vm.step();
        b.role() == "standby" && a.role() == "protected"
    });
    run_until_seen(&a.vm, world, 100);
    (pair, a, b)
}

#[test]
fn an_operator_promotes_a_standby_whose_primary_is_dead() {
    let world = world();
    let (pair, mut a, b) = by_hand(&world);
    assert!(refused(b.command(Command::Promote)), "the primary is well");
    a.stop();
    a.ended().expect("a clean stop");
    wait_for("b misses it", || {
        b.role() == "standby" && b.link().is_none()
    });
    assert!(!b.vm.running(), "nothing is promoted by itself");
    assert_eq!(b.command(Command::Promote), Ok(2));
    assert!(b.vm.lock().consistent(), "exactly one epoch (I3)");
    run_until_seen(&b.vm, &world, 100);
    // The old primary remembers that it was protected, and follows.
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a is the standby", || {
        b.vm.step();
        a.role() == "standby"
    });
    run_until_seen(&b.vm, &world, 100);
    assert!(!a.vm.running());
    assert_ascending(&world);
}

#[test]
fn a_primary_that_was_restarted_gets_its_guest_from_the_standby() {
    let world = world();
    let (pair, mut a, b) = by_hand(&world);
    a.stop();
    a.ended().expect("a clean stop");
    // It says that it holds nothing: what b holds is the newest state there is.
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("b is promoted", || b.vm.running());
    run_until_seen(&b.vm, &world, 100);
    assert!(!a.vm.running());
    assert_ascending(&world);
}

#[test]
fn without_an_arbiter_roles_are_exchanged_as_well() {
    let world = world();
    let (_pair, a, b) = by_hand(&world);
    assert_eq!(a.command(Command::Switchover), Ok(2));
    run_until_seen(&b.vm, &world, 100);
    assert_eq!(b.command(Command::Switchover), Ok(3));
    run_until_seen(&a.vm, &world, 100);
    assert_without_gap(&world);
}

#[test]
fn with_an_arbiter_nobody_is_promoted_by_hand() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    assert!(refused(a.command(Command::Promote)));
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    assert!(refused(b.command(Command::Promote)));
    run_until_seen(&a.vm, &world, 50);
}

#[test]
fn a_primary_whose_disk_fails_hands_its_guest_over() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    wait_for("a is protected", || a.role() == "protected");
    run_until_seen(&a.vm, &world, 100);
    assert!(a.vm.lock().withholds, "b could do better");
    a.vm.fail_disk("it is broken");
    wait_for("b has the guest", || b.vm.running());
    assert!(b.vm.lock().consistent(), "b runs exactly one epoch (I3)");
    run_until_seen(&b.vm, &world, 100);
    wait_for("b is protected", || b.role() == "protected");
    assert!(b.vm.lock().withholds);
}

#[test]
fn a_standby_whose_disk_fails_leaves_and_says_why() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    let mut b = pair.start("b", FakeVm::new(&world, PAGES));
    wait_for("a is protected", || a.role() == "protected");
    b.vm.fill_disk();
    let ended = b.ended();
    assert!(
        matches!(&ended, Err(Error::StandbyDisk(why)) if why.contains("No space")),
        "{ended:?}"
    );
    assert!(!b.vm.running());
    wait_for("a is alone", || a.role() == "solo");
    let said = a.peer_disk_failure();
    assert!(said.is_some_and(|why| why.contains("No space")));
    run_until_seen(&a.vm, &world, 100);
    // Repaired, it is as good as any other.
    let _b = pair.start("b", FakeVm::new(&world, PAGES));
    wait_for("a is protected", || a.role() == "protected");
    assert_eq!(a.peer_disk_failure(), None);
}

#[test]
fn a_guest_without_a_standby_is_told_of_its_disk() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    let mut b = pair.start("b", FakeVm::new(&world, PAGES));
    wait_for("a is protected", || a.role() == "protected");
    assert!(a.vm.lock().withholds);
    b.stop();
    b.ended().expect("a clean stop");
    wait_for("a is alone", || a.role() == "solo");
    wait_for("a's guest is told", || !a.vm.lock().withholds);
}
