//! Single transitions of the core: what each input makes it do.

mod bench;

use std::time::Duration;

use bench::{Bench, claimed, node, swap};
use evertwin_protocol::{
    Action, Answer, CloseReason, End, Envelope, Input, Message, Record, Report, Request, Role,
    Status, Time,
};

#[test]
fn a_cold_start_follows_the_record() {
    let (a, b) = (node("a"), node("b"));
    let first = Record::solo(1, a);
    // Who starts, what the record says, what is claimed: nothing means waiting.
    let table = [
        ("a", None, Some(first)),
        ("b", None, None),
        ("a", Some(Record::solo(4, a)), Some(Record::solo(5, a))),
        ("b", Some(Record::solo(4, b)), Some(Record::solo(5, b))),
        ("a", Some(Record::solo(4, b)), None),
        ("a", Some(Record::protected(4, a, b)), None),
        ("a", Some(Record::protected(4, b, a)), None),
        ("b", Some(Record::protected(4, a, b)), None),
    ];
    for (name, record, claim) in table {
        let mut bench = Bench::new(name, true);
        assert_eq!(bench.give(Input::Start), [Action::Ask(Request::Read)]);
        let actions = bench.give(Input::Arbiter(Answer::Record(record)));
        let want = claim.map(|new| swap(record, new));
        assert_eq!(actions, Vec::from_iter(want), "{name} with {record:?}");
        if claim.is_some() {
            let actions = bench.give(Input::Arbiter(Answer::Won));
            assert_eq!(actions, [Action::OpenOutput, Action::Boot]);
        }
    }
}

#[test]
fn two_cold_twins_boot_where_the_right_was() {
    let record = Record::protected(4, node("a"), node("b"));
    for (name, boots) in [("a", true), ("b", false)] {
        let mut bench = Bench::new(name, true);
        bench.give(Input::Start);
        bench.give(Input::Arbiter(Answer::Record(Some(record))));
        bench.give(Input::LinkUp);
        let actions = bench.hear(0, 0, Message::Hello(Status::Cold));
        let claim = swap(Some(record), Record::solo(5, node("a")));
        assert_eq!(actions.contains(&claim), boots);
    }
}

#[test]
fn a_record_that_was_not_there_is_looked_for_again() {
    let record = Record::protected(4, node("a"), node("b"));
    let mut bench = Bench::new("b", true);
    bench.give(Input::Start);
    let read = [Action::Ask(Request::Read)];
    // It had only vanished for a while.
    assert!(bench.give(Input::Arbiter(Answer::Record(None))).is_empty());
    assert_eq!(bench.pass_retry(), read);
    assert!(bench.give(Input::Arbiter(Answer::Failed)).is_empty());
    assert_eq!(bench.pass_retry(), read);
    // What names a standby is waited with; nothing more is asked before the peer is heard.
    let answer = Answer::Record(Some(record));
    assert!(bench.give(Input::Arbiter(answer)).is_empty());
    assert!(bench.pass_retry().is_empty());
    // A cold peer does not know who boots either.
    bench.give(Input::LinkUp);
    let actions = bench.hear(0, 0, Message::Hello(Status::Cold));
    assert!(actions.contains(&read[0]), "{actions:?}");
    let newer = Record::protected(5, node("b"), node("a"));
    let actions = bench.give(Input::Arbiter(Answer::Record(Some(newer))));
    assert_eq!(
        actions,
        [swap(Some(newer), Record::solo(6, node("b")))],
        "R3"
    );
}

#[test]
fn a_record_read_before_a_late_swap_is_read_again() {
    let old = Record::protected(2, node("b"), node("a"));
    let mut bench = Bench::new("b", true);
    bench.give(Input::Start);
    bench.give(Input::Arbiter(Answer::Record(Some(old))));
    // The standby would promote itself, if a swap of this twin's last life did not come first.
    bench.give(Input::LinkUp);
    let read = Action::Ask(Request::Read);
    let actions = bench.hear(2, 0, Message::Hello(Status::Synced { epoch: 3 }));
    assert!(actions.contains(&read), "{actions:?}");
    bench.give(Input::Arbiter(Answer::Record(Some(old))));
    assert_eq!(bench.pass_retry(), [read]);
    let late = Record::solo(3, node("b"));
    assert_eq!(
        bench.give(Input::Arbiter(Answer::Record(Some(late)))),
        [swap(Some(late), Record::solo(4, node("b")))],
        "R2"
    );
}

#[test]
fn a_first_record_of_an_earlier_life_is_no_right() {
    let mut bench = Bench::new("a", true);
    bench.give(Input::Start);
    let actions = bench.give(Input::Arbiter(Answer::Record(None)));
    assert_eq!(actions, [swap(None, claimed())]);
    let actions = bench.give(Input::Arbiter(Answer::Lost(Some(claimed()))));
    let next = Record::solo(2, node("a"));
    assert_eq!(actions, [swap(Some(claimed()), next)]);
}

#[test]
fn an_answer_to_what_was_asked_before_a_sync_is_ignored() {
    let mut bench = Bench::new("b", true);
    bench.give(Input::Start);
    bench.give(Input::Arbiter(Answer::Record(None)));
    bench.give(Input::LinkUp);
    bench.hear(0, 0, Message::Hello(Status::Cold));
    // It reads the record, and meanwhile the peer boots and fills it.
    bench.hear(1, 0, Message::SyncBegin);
    bench.hear(1, 1, Message::Epoch);
    let named = Record::protected(1, node("a"), node("b"));
    let promotion = swap(Some(named), Record::solo(2, node("b")));
    assert_eq!(bench.give(Input::LinkDown), [promotion]);
    let other = Answer::Record(Some(Record::solo(7, node("a"))));
    assert!(bench.give(Input::Arbiter(other)).is_empty());
    assert_eq!(bench.role(), Role::Promoting, "its epoch is kept");
    let actions = bench.give(Input::Arbiter(Answer::Won));
    assert_eq!(actions, [Action::OpenOutput, Action::Promote]);
}

#[test]
fn a_claim_that_the_arbiter_did_not_take_is_made_again() {
    let record = Record::protected(4, node("a"), node("b"));
    let claim = swap(Some(record), Record::solo(5, node("a")));
    let mut bench = Bench::new("a", true);
    bench.give(Input::Start);
    bench.give(Input::Arbiter(Answer::Record(Some(record))));
    bench.give(Input::LinkUp);
    let actions = bench.hear(0, 0, Message::Hello(Status::Cold));
    assert!(actions.contains(&claim));
    bench.give(Input::Arbiter(Answer::Failed));
    for _ in 0..3 {
        bench.hear(0, 0, Message::Heartbeat);
        let actions = bench.pass(Duration::from_millis(200));
        assert!(actions.contains(&Action::Ask(Request::Read)), "{actions:?}");
        let actions = bench.give(Input::Arbiter(Answer::Record(Some(record))));
        assert!(actions.contains(&claim), "{actions:?}");
        bench.give(Input::Arbiter(Answer::Failed));
    }
}

#[test]
fn a_primary_that_can_not_capture_goes_on_alone() {
    let mut bench = Bench::protected();
    bench.give(Input::OutputWaiting);
    for _ in 1..10 {
        let actions = bench.give(Input::CaptureFailed);
        assert!(!actions.contains(&Action::Close(CloseReason::NoCapture)));
        bench.pass(Duration::from_millis(20));
    }
    let actions = bench.give(Input::CaptureFailed);
    assert_eq!(actions[0], Action::Close(CloseReason::NoCapture));
    let named = Record::protected(1, node("a"), node("b"));
    assert!(actions.contains(&swap(Some(named), Record::solo(2, node("a")))));
}

#[test]
fn without_an_arbiter_the_lower_name_runs() {
    let mut a = Bench::new("a", false);
    assert_eq!(
        a.give(Input::Start),
        [Action::Note(claimed()), Action::OpenOutput, Action::Boot]
    );
    let mut b = Bench::new("b", false);
    assert_eq!(b.give(Input::Start), []);
    assert!(b.twin.wants_link());
}

#[test]
fn nothing_is_released_before_its_acknowledgement() {
    let mut bench = Bench::protected();
    let actions = bench.give(Input::OutputWaiting);
    assert_eq!(actions, [Action::Capture(2)]);
    let captured = Input::Captured {
        epoch: 2,
        idle: false,
    };
    let ship = Action::Ship {
        generation: 1,
        epoch: 2,
    };
    assert_eq!(bench.give(captured), [ship]);
    let actions = bench.hear(1, 2, Message::Ack);
    assert_eq!(actions, [Action::Committed(2), Action::Release(2)]);
    // An acknowledgement of what was never shipped is not believed.
    let actions = bench.hear(1, 3, Message::Ack);
    let reason = CloseReason::OutOfPlace(Message::Ack);
    assert!(actions.contains(&Action::Close(reason)), "{actions:?}");
}

#[test]
fn epochs_in_flight_are_bounded() {
    let mut bench = Bench::protected();
    for epoch in [2, 3] {
        let actions = bench.pass(Duration::from_millis(25));
        assert!(actions.contains(&Action::Capture(epoch)), "{actions:?}");
        bench.give(Input::Captured { epoch, idle: false });
    }
    let actions = bench.pass(Duration::from_millis(25));
    assert!(!actions.contains(&Action::Capture(4)), "{actions:?}");
    let actions = bench.hear(1, 2, Message::Ack);
    assert!(actions.contains(&Action::Capture(4)), "{actions:?}");
}

#[test]
fn a_primary_that_loses_the_race_is_fenced() {
    let mut bench = Bench::protected();
    let named = Record::protected(1, node("a"), node("b"));
    let actions = bench.give(Input::LinkDown);
    let strike = swap(Some(named), Record::solo(2, node("a")));
    assert_eq!(actions, [Action::StopTracking, strike]);
    let lost = Answer::Lost(Some(Record::solo(2, node("b"))));
    let actions = bench.give(Input::Arbiter(lost));
    assert_eq!(actions, [Action::Fence, Action::End(End::Fenced)]);
}

#[test]
fn a_primary_holds_until_the_arbiter_answers() {
    let mut bench = Bench::protected();
    bench.give(Input::LinkDown);
    for _ in 0..3 {
        assert_eq!(bench.give(Input::Arbiter(Answer::Failed)), []);
        let actions = bench.pass(Duration::from_millis(150));
        assert_eq!(actions, [Action::Ask(Request::Read)]);
    }
    // The strike was made, though its answer was lost.
    let record = Some(Record::solo(2, node("a")));
    let actions = bench.give(Input::Arbiter(Answer::Record(record)));
    assert_eq!(actions, [Action::OpenOutput]);
    assert_eq!(
        (bench.twin.role(), bench.twin.generation()),
        (Role::Solo, 2)
    );
}

#[test]
fn a_naming_that_is_still_on_its_way_is_made_void_before_anything_is_released() {
    let mut bench = Bench::shipped();
    let named = Record::protected(1, node("a"), node("b"));
    let actions = bench.hear(1, 1, Message::Ack);
    assert!(actions.contains(&swap(Some(claimed()), named)));
    assert_eq!(bench.give(Input::LinkDown), [Action::StopTracking]);
    bench.give(Input::Arbiter(Answer::Failed));
    bench.pass(Duration::from_millis(150));
    // Not written, but it may be yet: only the next generation is a right to release.
    let unnamed = Answer::Record(Some(claimed()));
    let actions = bench.give(Input::Arbiter(unnamed));
    let next = Record::solo(2, node("a"));
    assert_eq!(actions, [swap(Some(claimed()), next)]);
    // It was written at just this moment.
    bench.give(Input::Arbiter(Answer::Lost(Some(named))));
    bench.pass(Duration::from_millis(150));
    let actions = bench.give(Input::Arbiter(Answer::Record(Some(named))));
    assert_eq!(actions, [swap(Some(named), next)]);
    let actions = bench.give(Input::Arbiter(Answer::Won));
    assert_eq!(actions, [Action::OpenOutput]);
    assert_eq!(bench.twin.generation(), 2);
}

#[test]
fn a_sync_after_one_that_named_nobody_has_a_generation_of_its_own() {
    let mut bench = Bench::shipped();
    let next = Record::solo(2, node("a"));
    let actions = bench.give(Input::LinkDown);
    let renewal = swap(Some(claimed()), next);
    // The right to release alone was never given up: output does not wait for the answer.
    let wanted = [Action::StopTracking, Action::OpenOutput, renewal];
    assert_eq!(actions, wanted);
    bench.give(Input::LinkUp);
    let actions = bench.hear(0, 0, Message::Hello(Status::Cold));
    assert_eq!(actions, [], "the sync waits");
    bench.give(Input::Arbiter(Answer::Failed));
    let actions = bench.pass(Duration::from_millis(150));
    assert!(actions.contains(&Action::Ask(Request::Read)), "{actions:?}");
    let actions = bench.give(Input::Arbiter(Answer::Record(Some(claimed()))));
    assert_eq!(actions, [renewal]);
    let actions = bench.give(Input::Arbiter(Answer::Won));
    assert!(actions.contains(&Action::SendMemory(2)), "{actions:?}");
}

#[test]
fn a_renewal_finds_out_who_else_has_the_right() {
    let mut bench = Bench::shipped();
    bench.give(Input::LinkDown);
    let other = Some(Record::solo(2, node("b")));
    bench.give(Input::Arbiter(Answer::Lost(other)));
    bench.pass(Duration::from_millis(150));
    let actions = bench.give(Input::Arbiter(Answer::Record(other)));
    assert_eq!(actions, [Action::Fence, Action::End(End::Fenced)]);
}

#[test]
fn a_standby_keeps_its_epoch_until_it_is_clear_that_it_will_not_be_named() {
    let named = Record::protected(1, node("a"), node("b"));
    let promotion = swap(Some(named), Record::solo(2, node("b")));
    for promoted in [true, false] {
        let mut bench = Bench::synced(true);
        assert_eq!(bench.give(Input::LinkDown), [promotion]);
        let mut answer = Answer::Lost(Some(claimed()));
        for _ in 0..3 {
            assert_eq!(bench.give(Input::Arbiter(answer)), []);
            let actions = bench.pass(Duration::from_millis(150));
            assert_eq!(actions, [Action::Ask(Request::Read)]);
            assert_eq!(bench.twin.role(), Role::Promoting);
            answer = Answer::Record(Some(claimed()));
        }
        if promoted {
            let actions = bench.give(Input::Arbiter(Answer::Record(Some(named))));
            assert_eq!(actions, [promotion]);
            let actions = bench.give(Input::Arbiter(Answer::Won));
            assert_eq!(actions, [Action::OpenOutput, Action::Promote]);
        } else {
            let renewed = Record::solo(2, node("a"));
            bench.give(Input::Arbiter(Answer::Record(Some(renewed))));
            assert_eq!(bench.twin.role(), Role::Starting);
        }
    }
}

#[test]
fn silence_is_loss() {
    let mut bench = Bench::synced(true);
    for _ in 0..20 {
        let actions = bench.pass(Duration::from_millis(60));
        assert!(matches!(actions[..], [Action::Send(_)]), "{actions:?}");
        bench.hear(1, 0, Message::Heartbeat);
    }
    let actions = bench.pass(Duration::from_millis(501));
    let named = Record::protected(1, node("a"), node("b"));
    let promotion = swap(Some(named), Record::solo(2, node("b")));
    assert_eq!(actions, [Action::Close(CloseReason::Silent), promotion]);
    let actions = bench.give(Input::Arbiter(Answer::Won));
    assert_eq!(actions, [Action::OpenOutput, Action::Promote]);
}

#[test]
fn a_primary_that_was_frozen_releases_nothing_when_it_learns_that_the_standby_is_named() {
    let mut bench = Bench::shipped();
    bench.hear(1, 1, Message::Ack);
    bench.now += 600_000_000;
    let actions = bench.give(Input::Arbiter(Answer::Won));
    assert!(actions.contains(&Action::Close(CloseReason::Silent)));
    assert!(!actions.contains(&Action::Release(1)), "{actions:?}");
    let named = Record::protected(1, node("a"), node("b"));
    let strike = swap(Some(named), Record::solo(2, node("a")));
    assert!(actions.contains(&strike), "{actions:?}");
}

#[test]
fn a_primary_that_was_frozen_releases_nothing_that_it_finds_acknowledged() {
    let mut bench = Bench::protected();
    bench.give(Input::OutputWaiting);
    bench.give(Input::Captured {
        epoch: 2,
        idle: false,
    });
    bench.now += 600_000_000;
    let actions = bench.hear(1, 2, Message::Ack);
    assert_eq!(actions[0], Action::Close(CloseReason::Silent));
    let releases = |action: &Action| matches!(action, Action::Release(_) | Action::OpenOutput);
    assert!(!actions.iter().any(releases), "{actions:?}");
}

#[test]
fn a_bad_frame_leaves_the_guest_to_a_primary_that_is_alive() {
    let mut bench = Bench::synced(true);
    assert_eq!(bench.give(Input::LinkFault), []);
    assert_eq!(bench.twin.role(), Role::Promoting);
    // The primary has not struck this standby off in time.
    let actions = bench.pass(Duration::from_millis(501));
    assert_eq!(actions, [Action::Ask(Request::Read)]);
    let named = Record::protected(1, node("a"), node("b"));
    let actions = bench.give(Input::Arbiter(Answer::Record(Some(named))));
    assert_eq!(actions, [swap(Some(named), Record::solo(2, node("b")))]);
}

#[test]
fn a_standby_that_was_struck_off_never_promotes() {
    let mut bench = Bench::synced(true);
    bench.give(Input::LinkDown);
    let lost = Answer::Lost(Some(Record::solo(2, node("a"))));
    assert_eq!(bench.give(Input::Arbiter(lost)), []);
    assert_eq!(bench.twin.role(), Role::Starting);
    // The old right is not followed any more, the new one is.
    bench.give(Input::LinkUp);
    bench.hear(2, 0, Message::Hello(Status::Primary));
    assert_eq!(bench.hear(2, 0, Message::SyncBegin), [Action::Expect(2)]);
    let actions = bench.hear(1, 2, Message::Epoch);
    assert_eq!(actions, [Action::Close(CloseReason::StaleGeneration)]);
}

#[test]
fn an_epoch_that_skips_one_is_refused() {
    let mut bench = Bench::synced(true);
    let actions = bench.hear(1, 3, Message::Epoch);
    let reason = CloseReason::OutOfPlace(Message::Epoch);
    assert_eq!(actions[0], Action::Close(reason));
}

#[test]
fn without_an_arbiter_a_standby_waits() {
    let mut bench = Bench::synced(false);
    assert_eq!(bench.give(Input::LinkDown), []);
    assert_eq!(bench.twin.role(), Role::Synced);
    bench.now += 1000;
    let now = Time::from_nanos(bench.now);
    bench.twin.handle(now, Input::LinkUp);
    let hello = bench.twin.poll_action();
    let status = Message::Hello(Status::Synced { epoch: 1 });
    assert!(
        matches!(hello, Some(Action::Send(envelope)) if envelope.message == status),
        "{hello:?}"
    );
}

#[test]
fn an_ended_guest_says_its_last_words_alone() {
    let mut bench = Bench::protected();
    let actions = bench.give(Input::GuestExited);
    let named = Record::protected(1, node("a"), node("b"));
    let strike = swap(Some(named), Record::solo(2, node("a")));
    assert_eq!(actions, [Action::StopTracking, strike]);
    let actions = bench.give(Input::Arbiter(Answer::Won));
    assert!(
        matches!(
            actions[..],
            [
                Action::OpenOutput,
                Action::Send(Envelope {
                    message: Message::Bye,
                    ..
                }),
                Action::End(End::GuestExited)
            ]
        ),
        "{actions:?}"
    );
}

#[test]
fn an_ended_guest_does_not_wait_for_ever() {
    let mut bench = Bench::protected();
    bench.give(Input::GuestExited);
    let actions = bench.pass(Duration::from_secs(3));
    assert!(actions.contains(&Action::Fence), "{actions:?}");
    assert!(actions.contains(&Action::End(End::GuestExited)));
    assert!(!actions.contains(&Action::OpenOutput));
}

#[test]
fn an_idle_guest_is_looked_at_less_and_less() {
    let mut bench = Bench::protected();
    let actions = bench.pass(Duration::from_millis(21));
    assert!(actions.contains(&Action::Capture(2)));
    let captured = Input::Captured {
        epoch: 2,
        idle: true,
    };
    bench.give(captured);
    bench.hear(1, 2, Message::Ack);
    for wait in [20, 40, 80, 100, 100] {
        let early = bench.pass(Duration::from_millis(wait - 1));
        assert!(!early.contains(&Action::Peek), "{wait} ms");
        let actions = bench.pass(Duration::from_millis(1));
        assert!(actions.contains(&Action::Peek), "{wait} ms: {actions:?}");
        bench.hear(1, 0, Message::Heartbeat);
        assert_eq!(bench.give(Input::Dirty(false)), []);
    }
    assert_eq!(bench.give(Input::OutputWaiting), [Action::Capture(3)]);
}

#[test]
fn the_operator_is_told() {
    let mut bench = Bench::protected();
    bench.now += 1000;
    let now = Time::from_nanos(bench.now);
    bench.twin.handle(now, Input::LinkDown);
    let told = std::iter::from_fn(|| bench.twin.poll_action());
    assert!(
        told.into_iter()
            .any(|action| action == Action::Report(Report::Holding))
    );
}
