//! Disks that are compared while their guest runs.

use std::time::{Duration, SystemTime};

use evertwin_replicator::control::{NoScrub, NotDone, ScrubCounts};
use evertwin_replicator::machine::PAGE_SIZE;

use crate::support::machine::{FakeVm, Handle, World};
use crate::support::proxy::Proxy;
use crate::support::{PAGES, Pair, Running, run_until_seen, wait_for, world};

/// Bytes of the guest's disk.
const BYTES: u64 = 128;

/// A protected pair whose guest has written to its disk.
fn protected(pair: &Pair, world: &World) -> (Running, Running) {
    let a = pair.start("a", FakeVm::new(world, PAGES));
    let b = pair.start("b", FakeVm::new(world, PAGES));
    pair.wait_named("a");
    run_until_seen(&a.vm, world, 100);
    (a, b)
}

/// Waits until both disks hold the same.
fn wait_for_same(a: &Handle, b: &Handle) {
    wait_for("both disks hold the same", || {
        let there = b.lock().disk;
        a.lock().disk == there
    });
}

fn refused(twin: &Running, why: NoScrub) {
    assert_eq!(twin.scrub(), Err(NotDone::NoScrub(why)));
}

#[test]
fn an_idle_guests_disks_are_compared_and_repaired() {
    let (pair, world) = (Pair::new(), world());
    let (a, b) = protected(&pair, &world);
    wait_for_same(&a.vm, &b.vm);
    let clean = ScrubCounts {
        bytes: BYTES,
        ..ScrubCounts::default()
    };
    assert_eq!(a.scrub(), Ok(1));
    assert_eq!(a.scrubbed(1).counts, clean);

    b.vm.lock().disk[5] = 12345;
    assert_eq!(a.scrub(), Ok(2));
    let report = a.scrubbed(2);
    assert!(report.is_clean(), "{report:?}");
    let found = ScrubCounts {
        differences: 1,
        repaired: 1,
        ..clean
    };
    assert_eq!(report.counts, found);
    wait_for_same(&a.vm, &b.vm);

    // What was repaired is good to go on with.
    drop(a);
    wait_for("b is promoted", || b.vm.running());
    assert!(b.vm.lock().consistent(), "exactly one epoch (I3)");
}

#[test]
fn a_guest_leaves_a_disk_that_has_a_block_nobody_can_read() {
    let (pair, world) = (Pair::new(), world());
    let (a, b) = protected(&pair, &world);
    wait_for_same(&a.vm, &b.vm);
    a.vm.lock().checks.unreadable = true;
    assert_eq!(a.scrub(), Ok(1));
    wait_for("b has the guest", || b.vm.running() && !a.vm.running());
    assert!(b.vm.lock().consistent(), "exactly one epoch (I3)");
    assert_eq!(a.scrubbed(1).counts.unreadable, 1);
    // The other twin follows, is compared with, and found to be the same.
    wait_for("b is protected", || b.role() == "protected");
    assert_eq!(b.scrub(), Ok(1));
    assert!(b.scrubbed(1).is_clean());
}

#[test]
fn disks_are_compared_by_themselves() {
    let (mut pair, world) = (Pair::new(), world());
    pair.scrub_every = Some(Duration::from_millis(200));
    let (a, b) = protected(&pair, &world);
    wait_for_same(&a.vm, &b.vm);
    b.vm.lock().disk[5] = 12345;
    wait_for_same(&a.vm, &b.vm);
    let passes = a.scrubs();
    wait_for("there is another pass", || a.scrubs() > passes);
    assert_eq!(b.scrubs(), 0, "only the primary begins one");
}

#[test]
fn a_guest_that_writes_all_the_time_is_never_in_the_wrong() {
    let (pair, world) = (Pair::new(), world());
    let (a, _b) = protected(&pair, &world);
    for number in 1..=3 {
        assert_eq!(a.scrub(), Ok(number));
        wait_for("the pass is over", || {
            a.vm.step();
            a.scrubs() == number
        });
        let counts = a.scrubbed(number).counts;
        assert_eq!((counts.differences, counts.unreadable), (0, 0));
        assert_eq!(counts.bytes + BYTES * counts.busy, BYTES);
    }
}

#[test]
fn memories_are_compared_and_repaired() {
    let (pair, world) = (Pair::new(), world());
    let (a, b) = protected(&pair, &world);
    let all = BYTES + PAGES * PAGE_SIZE as u64;
    assert_eq!(a.scrub_all(), Ok(1));
    let clean = a.scrubbed(1);
    assert!(clean.is_clean() && clean.counts.bytes == all, "{clean:?}");
    // The first page, and the last one of the second region.
    for at in [7, PAGES as usize * PAGE_SIZE - 1] {
        b.vm.lock().memory[at] ^= 1;
    }
    assert_eq!(a.scrub_all(), Ok(2));
    let report = a.scrubbed(2);
    assert!(
        report.is_clean() && report.counts.bytes == all,
        "{report:?}"
    );
    assert_eq!((report.counts.differences, report.counts.repaired), (2, 2));
    // While the guest goes through all its memory, nothing is taken for a difference.
    assert_eq!(a.scrub_all(), Ok(3));
    wait_for("the pass is over", || {
        a.vm.step();
        std::thread::sleep(Duration::from_millis(1));
        a.scrubs() == 3
    });
    assert_eq!(a.scrubbed(3).counts.differences, 0);
    drop(a);
    wait_for("b is promoted", || b.vm.running());
    assert!(b.vm.lock().consistent(), "exactly one epoch (I3)");
}

#[test]
fn a_difference_that_stays_is_told() {
    let (pair, world) = (Pair::new(), world());
    let (a, b) = protected(&pair, &world);
    wait_for_same(&a.vm, &b.vm);
    a.vm.lock().checks.forgets = true;
    b.vm.lock().disk[5] = 12345;
    assert_eq!(a.scrub(), Ok(1));
    let report = a.scrubbed(1);
    assert_eq!((report.counts.differences, report.counts.repaired), (1, 0));
    assert!(!report.is_clean() && report.failure.is_none());
}

#[test]
fn who_can_not_compare_says_why() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    refused(&a, NoScrub::NotProtected);
    drop(a);
    let (a, b) = protected(&pair, &world);
    refused(&b, NoScrub::NotPrimary);
    b.vm.lock().checks.silent = true;
    assert_eq!(a.scrub(), Ok(1));
    refused(&a, NoScrub::Running);
}

#[test]
fn a_pass_ends_with_the_protection() {
    let (pair, world) = (Pair::new(), world());
    let (a, b) = protected(&pair, &world);
    b.vm.lock().checks.silent = true;
    assert_eq!(a.scrub(), Ok(1));
    drop(b);
    let report = a.scrubbed(1);
    let why = report.failure.as_deref();
    assert_eq!(why, Some("the guest is not protected any more"));
    // The next standby is compared as any other.
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    run_until_seen(&a.vm, &world, 100);
    wait_for_same(&a.vm, &b.vm);
    assert_eq!(a.scrub(), Ok(2));
    assert!(a.scrubbed(2).is_clean());
}

#[test]
fn a_pass_goes_on_over_a_link_that_is_back() {
    let (mut pair, world) = (Pair::new(), world());
    pair.reconnect = Some(Duration::from_secs(5));
    let proxy = Proxy::to(pair.listen);
    pair.dial = proxy.address;
    let (a, b) = protected(&pair, &world);
    wait_for_same(&a.vm, &b.vm);
    b.vm.lock().disk[5] = 12345;
    b.vm.lock().checks.silent = true;
    assert_eq!(a.scrub(), Ok(1));
    b.wait_for_check();
    b.vm.lock().checks.silent = false;
    proxy.cut();
    let report = a.scrubbed(1);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.counts.differences, report.counts.repaired), (1, 1));
    assert_eq!(a.role(), "protected");
}

#[test]
fn an_answer_to_what_was_not_asked_costs_the_link() {
    let (mut pair, world) = (Pair::new(), world());
    pair.reconnect = Some(Duration::from_secs(5));
    let (a, b) = protected(&pair, &world);
    wait_for_same(&a.vm, &b.vm);
    b.vm.lock().checks.strays = true;
    let link = a.link();
    assert_eq!(a.scrub(), Ok(1));
    let report = a.scrubbed(1);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.counts.differences, 0);
    assert!(!b.vm.lock().checks.strays && a.link() != link);
}

#[test]
fn the_roles_may_change_in_the_middle() {
    use evertwin_replicator::control::Command;
    let (pair, world) = (Pair::new(), world());
    let (a, b) = protected(&pair, &world);
    b.vm.lock().checks.silent = true;
    assert_eq!(a.scrub(), Ok(1));
    a.command(Command::Switchover).expect("a switchover");
    assert!(a.scrubbed(1).failure.is_some());
    run_until_seen(&b.vm, &world, 100);
    wait_for_same(&a.vm, &b.vm);
    assert_eq!(b.scrub(), Ok(1));
    assert!(b.scrubbed(1).is_clean());
}

/// A pair whose primary knows of a pass that ended so long ago, and whether it begins one at once.
fn scrubs_at_once(ago: Option<Duration>) -> (bool, Option<SystemTime>) {
    let mut pair = Pair::new();
    pair.scrub_every = Some(Duration::from_secs(3600));
    let world = world();
    let vm = FakeVm::new(&world, PAGES);
    vm.handle().lock().checks.last = ago.map(|ago| SystemTime::now() - ago);
    let a = pair.start("a", vm);
    let _b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    run_until_seen(&a.vm, &world, 100);
    wait_for("what is noted is looked at", || {
        a.vm.lock().checks.last.is_some()
    });
    let due = ago.is_some_and(|ago| ago > Duration::from_secs(3600));
    if due {
        a.scrubbed(1);
    }
    let last = a.vm.lock().checks.last;
    (a.scrubs() == 1, last)
}

#[test]
fn the_time_from_pass_to_pass_goes_on_over_a_restart() {
    let began = SystemTime::now();
    let (at_once, noted) = scrubs_at_once(Some(Duration::from_secs(4000)));
    assert!(at_once && noted >= Some(began), "{noted:?}");
    let (at_once, noted) = scrubs_at_once(Some(Duration::from_secs(3000)));
    assert!(!at_once && noted < Some(began), "{noted:?}");
    // From now on it is waited for.
    let (at_once, noted) = scrubs_at_once(None);
    assert!(!at_once && noted >= Some(began), "{noted:?}");
}
