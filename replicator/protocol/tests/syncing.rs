//! The rounds of a sync: how they end, and a guest that has to be slowed for that.

mod bench;

use bench::Bench;
use evertwin_protocol::{
    Action, Answer, CloseReason, Command, End, Input, Message, Refusal, Report, Role, Status,
};

/// Pages that no link takes in a moment, in this file.
const MANY: u64 = 100_000;

/// Longer than the first epoch may take.
const LONG_NS: u64 = 200_000_000;

/// A primary that is about to be told that all memory was sent.
fn syncing(arbiter: bool) -> Bench {
    let mut bench = Bench::new("a", arbiter);
    bench.give(Input::Start);
    if arbiter {
        bench.give(Input::Arbiter(Answer::Record(None)));
        bench.give(Input::Arbiter(Answer::Won));
    }
    bench.give(Input::LinkUp);
    let actions = bench.hear(0, 0, Message::Hello(Status::Cold));
    assert!(actions.contains(&Action::SendMemory(1)), "{actions:?}");
    bench
}

/// The link took so long for the round, and so many pages were dirtied meanwhile.
fn round(bench: &mut Bench, nanos: u64, pages: u64) -> Vec<Action> {
    bench.now += nanos;
    bench.hear(1, 0, Message::Heartbeat);
    assert_eq!(bench.give(Input::RoundSent), [Action::Harvest]);
    bench.give(Input::Harvested(pages))
}

/// A guest that was slowed once.
fn slowed(arbiter: bool) -> Bench {
    let mut bench = syncing(arbiter);
    for _ in 0..2 {
        let actions = round(&mut bench, LONG_NS, MANY);
        assert_eq!(actions, [Action::SendHarvest(1)]);
    }
    let actions = round(&mut bench, LONG_NS, MANY);
    assert_eq!(actions, [Action::SlowGuest(20), Action::SendHarvest(1)]);
    bench
}

fn begins_epoch(actions: &[Action], slowed: bool) {
    let full_speed = slowed.then_some(Action::SlowGuest(0));
    let wanted = [Action::KeepHarvest, Action::HoldOutput]
        .into_iter()
        .chain(full_speed)
        .chain([Action::Capture(1)]);
    assert_eq!(actions, Vec::from_iter(wanted));
}

#[test]
fn rounds_that_shrink_slow_nobody() {
    let mut bench = syncing(true);
    let mut pages = MANY;
    while pages > 1024 {
        let actions = round(&mut bench, LONG_NS, pages);
        assert_eq!(actions, [Action::SendHarvest(1)], "{pages} pages");
        pages = pages * 7 / 10;
    }
    begins_epoch(&round(&mut bench, LONG_NS, pages), false);
}

#[test]
fn a_guest_is_slowed_until_rounds_shrink() {
    let mut bench = slowed(true);
    let actions = round(&mut bench, LONG_NS, MANY);
    assert_eq!(actions, [Action::SlowGuest(30), Action::SendHarvest(1)]);
    for pages in [MANY / 2, MANY / 4] {
        let actions = round(&mut bench, LONG_NS, pages);
        assert_eq!(actions, [Action::SendHarvest(1)], "it is slow enough");
    }
    let actions = round(&mut bench, LONG_NS, MANY / 4);
    assert_eq!(actions, [Action::SlowGuest(40), Action::SendHarvest(1)]);
    begins_epoch(&round(&mut bench, LONG_NS, 1024), true);
    assert_eq!(bench.role(), Role::Naming);
}

#[test]
fn a_guest_that_can_not_be_slow_enough_is_taken_as_it_is() {
    let mut bench = slowed(true);
    for percent in [30, 40, 50, 60, 70, 80, 90, 99] {
        let actions = round(&mut bench, LONG_NS, MANY);
        let wanted = [Action::SlowGuest(percent), Action::SendHarvest(1)];
        assert_eq!(actions, wanted);
    }
    begins_epoch(&round(&mut bench, LONG_NS, MANY), true);
}

#[test]
fn rounds_are_bounded() {
    let mut bench = syncing(true);
    let mut pages = 1 << 40;
    for _ in 1..32 {
        let actions = round(&mut bench, LONG_NS, pages);
        assert_eq!(actions, [Action::SendHarvest(1)], "{pages} pages");
        pages -= pages / 3;
    }
    begins_epoch(&round(&mut bench, LONG_NS, pages), false);
}

#[test]
fn what_the_link_takes_in_a_moment_is_left_to_the_first_epoch() {
    let mut bench = syncing(true);
    for _ in 0..2 {
        let actions = round(&mut bench, LONG_NS, MANY);
        assert_eq!(actions, [Action::SendHarvest(1)]);
    }
    begins_epoch(&round(&mut bench, LONG_NS / 3, MANY), false);
}

#[test]
fn a_guest_that_loses_its_standby_has_all_its_time_again() {
    for arbiter in [true, false] {
        let mut bench = slowed(arbiter);
        let actions = bench.give(Input::LinkDown);
        assert_eq!(actions, [Action::SlowGuest(0), Action::StopTracking]);
        // The next sync begins with a guest at full speed.
        bench.give(Input::LinkUp);
        bench.hear(0, 0, Message::Hello(Status::Cold));
        for _ in 0..2 {
            let actions = round(&mut bench, LONG_NS, MANY);
            assert_eq!(actions, [Action::SendHarvest(1)]);
        }
        let actions = round(&mut bench, LONG_NS, MANY);
        assert_eq!(actions[0], Action::SlowGuest(20));
    }
    // By this twin's own choice.
    let mut bench = slowed(true);
    let closed = Action::Close(CloseReason::OutOfPlace(Message::Ack));
    assert_eq!(
        bench.hear(1, 1, Message::Ack)[..3],
        [closed, Action::SlowGuest(0), Action::StopTracking]
    );
}

#[test]
fn a_guest_that_ends_or_is_stopped_is_slow_no_more() {
    let mut bench = slowed(true);
    let actions = bench.give(Input::GuestExited);
    assert_eq!(actions[..2], [Action::SlowGuest(0), Action::StopTracking]);
    assert_eq!(actions.last(), Some(&Action::End(End::GuestExited)));
    let mut bench = slowed(true);
    assert_eq!(
        bench.give(Input::Stop),
        [
            Action::SlowGuest(0),
            Action::Fence,
            Action::End(End::Stopped)
        ]
    );
    // What is not obeyed changes nothing.
    let mut bench = slowed(true);
    let reports = bench.reports(Input::Operator(Command::Leave));
    let refused = Report::Refused(Command::Leave, Refusal::NotProtected);
    assert_eq!(reports, [refused]);
    let actions = round(&mut bench, LONG_NS, MANY);
    assert_eq!(actions[0], Action::SlowGuest(30));
}
