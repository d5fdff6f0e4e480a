//! A guest that is to have no standby for a while.

use evertwin_replicator::Error;
use evertwin_replicator::control::{Command, Level, NotDone};

use crate::support::machine::FakeVm;
use crate::support::{PAGES, Pair, Running, assert_ascending, run_until_seen, wait_for, world};

/// Has the standby go, and its guest run on without protection.
fn unprotect(arbiter: bool, primary: &Running, standby: &mut Running) {
    assert_eq!(primary.level(Level::Nothing), Err(NotDone::NotAlone));
    standby.command(Command::Leave).expect("a standby may go");
    standby.ended().expect("a clean end");
    if !arbiter {
        wait_for("the operator is asked", || primary.role() == "holding");
        assert_eq!(primary.level(Level::Nothing), Err(NotDone::NotAlone));
        primary.command(Command::Promote).expect("its word counts");
    }
    wait_for("the guest runs alone", || primary.role() == "solo");
    primary.level(Level::Nothing).expect("nobody relies on it");
    assert_eq!(primary.role(), "unprotected");
}

#[test]
fn a_standby_waits_until_it_is_wanted() {
    for arbiter in [true, false] {
        let (mut pair, world) = (Pair::new(), world());
        pair.arbiter = arbiter;
        let a = pair.start("a", FakeVm::new(&world, PAGES));
        let b = pair.start("b", FakeVm::new(&world, PAGES));
        let mut twins = [a, b];
        // The one that listens keeps the other out, and then the one that dials.
        for name in ["b", "a"] {
            wait_for("it is protected", || twins[0].role() == "protected");
            let [primary, standby] = &mut twins;
            run_until_seen(&primary.vm, &world, 50);
            unprotect(arbiter, primary, standby);
            *standby = pair.start(name, FakeVm::new(&world, PAGES));
            wait_for("it is told to wait", || standby.kept_out().is_some());
            run_until_seen(&primary.vm, &world, 50);
            assert!(!standby.vm.running() && standby.role() == "starting");
            assert_eq!(primary.role(), "unprotected");

            primary.level(Level::Guest).expect("nobody relies on it");
            wait_for("it is protected", || primary.role() == "protected");
            wait_for("it is the standby", || standby.role() == "standby");
            assert_eq!(standby.kept_out(), None);
            run_until_seen(&primary.vm, &world, 50);
            primary.command(Command::Switchover).expect("a switchover");
            twins.reverse();
            run_until_seen(&twins[0].vm, &world, 50);
        }
        assert_ascending(&world);
    }
}

#[test]
fn an_unprotected_guests_peer_never_runs_it() {
    for arbiter in [true, false] {
        let (mut pair, world) = (Pair::new(), world());
        pair.arbiter = arbiter;
        let mut a = pair.start("a", FakeVm::new(&world, PAGES));
        let mut b = pair.start("b", FakeVm::new(&world, PAGES));
        wait_for("a is protected", || a.role() == "protected");
        unprotect(arbiter, &a, &mut b);
        b = pair.start("b", FakeVm::new(&world, PAGES));
        wait_for("it is told to wait", || b.kept_out().is_some());
        a.stop();
        a.ended().expect("a clean stop");
        assert!(b.command(Command::Promote).is_err(), "it holds nothing");
        std::thread::sleep(pair.timeout * 4);
        assert!(!b.vm.running() && b.role() == "starting");
        // Who had the guest has it again, and wants a standby as its configuration says.
        a = pair.start("a", FakeVm::new(&world, PAGES));
        wait_for("a is protected", || a.role() == "protected");
        assert!(a.vm.running() && !b.vm.running());
    }
}

#[test]
fn who_is_no_twin_of_an_unprotected_guest_need_not_wait() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a runs alone", || a.role() == "solo");
    a.level(Level::Nothing).expect("nobody relies on it");
    let mut b = pair.start("b", FakeVm::new(&world, PAGES * 2));
    let ended = b.ended();
    assert!(
        matches!(&ended, Err(Error::Refused { reason, .. }) if reason.contains("`memory`")),
        "{ended:?}"
    );
    assert_eq!(a.role(), "unprotected");
}
