//! Single transitions of a planned exchange of roles, and of promotion by hand.

mod bench;

use bench::{Bench, claimed, node, swap};
use evertwin_protocol::{
    Action, Answer, Command, End, Envelope, Input, Message, Record, Refusal, Report, Request, Role,
    Status,
};

fn named() -> Record {
    Record::protected(1, node("a"), node("b"))
}

fn taken() -> Record {
    Record::protected(2, node("b"), node("a"))
}

fn say(generation: u64, epoch: u64, message: Message) -> Action {
    Action::Send(Envelope {
        generation,
        epoch,
        message,
    })
}

/// A primary whose guest stands still as epoch 2, which has committed.
fn offered() -> Bench {
    let mut bench = Bench::protected();
    let actions = bench.give(Input::Operator(Command::Switchover));
    assert_eq!(actions, [Action::CaptureLast(2)], "at once");
    let actions = bench.give(Input::Captured {
        epoch: 2,
        idle: false,
    });
    let ship = Action::Ship {
        generation: 1,
        epoch: 2,
    };
    assert_eq!(actions, [ship]);
    let actions = bench.hear(1, 2, Message::Ack);
    let released = [Action::Committed(2), Action::Release(2)];
    assert_eq!(actions[..2], released, "its output leaves first (I1)");
    let offer = [say(1, 2, Message::HandOver), Action::StopTracking];
    assert_eq!(actions[2..], offer);
    assert_eq!(bench.role(), Role::HandingOver);
    bench
}

/// A standby that is named and was offered the guest.
fn asked() -> Bench {
    let mut bench = Bench::synced(true);
    bench.hear(1, 0, Message::Named);
    let actions = bench.hear(1, 1, Message::HandOver);
    assert_eq!(actions, [swap(Some(named()), taken())]);
    bench
}

#[test]
fn a_primary_becomes_the_standby_at_once() {
    let mut bench = offered();
    assert!(bench.hear(2, 0, Message::TookOver).is_empty());
    assert_eq!(bench.role(), Role::Synced);
    // The first epoch of the new generation follows what is held here.
    let actions = bench.hear(2, 1, Message::Epoch);
    assert_eq!(actions, [say(2, 1, Message::Ack), Action::Apply(1)]);
    let strike = Record::solo(3, node("a"));
    let actions = bench.give(Input::LinkDown);
    assert_eq!(actions, [swap(Some(taken()), strike)], "and it may promote");
}

#[test]
fn a_standby_runs_the_guest_once_the_arbiter_knows() {
    let mut bench = asked();
    let actions = bench.give(Input::Arbiter(Answer::Won));
    assert_eq!(
        actions,
        [
            Action::HoldOutput,
            Action::StartTracking,
            Action::Promote,
            say(2, 0, Message::TookOver),
        ],
        "what it changes is known from the start (I5), and held (I1)"
    );
    assert_eq!(bench.role(), Role::Protected);
}

#[test]
fn a_lost_answer_is_looked_up() {
    for (record, promotes) in [(taken(), true), (Record::solo(2, node("a")), false)] {
        let mut bench = asked();
        assert!(bench.give(Input::Arbiter(Answer::Failed)).is_empty());
        assert_eq!(bench.pass_retry(), [Action::Ask(Request::Read)]);
        let actions = bench.give(Input::Arbiter(Answer::Record(Some(record))));
        assert_eq!(actions.contains(&Action::Promote), promotes, "{record:?}");
    }
}

#[test]
fn a_successor_without_its_link_strikes_the_old_primary_before_anything_leaves() {
    let mut bench = asked();
    bench.give(Input::LinkDown);
    let actions = bench.give(Input::Arbiter(Answer::Won));
    let alone = Record::solo(3, node("b"));
    let strike = swap(Some(taken()), alone);
    assert_eq!(actions, [Action::HoldOutput, Action::Promote, strike]);
    let actions = bench.give(Input::Arbiter(Answer::Won));
    assert_eq!(actions, [Action::OpenOutput]);
}

#[test]
fn a_primary_whose_offer_is_not_taken_goes_on() {
    let mut bench = offered();
    let actions = bench.pass_timeout();
    let back = Record::solo(2, node("a"));
    assert!(matches!(actions[0], Action::Close(_)));
    assert_eq!(actions[1], swap(Some(named()), back));
    let actions = bench.give(Input::Arbiter(Answer::Won));
    assert_eq!(actions, [Action::OpenOutput, Action::Promote]);
}

#[test]
fn a_primary_that_lost_its_successor_asks_who_has_the_guest() {
    let back = Record::solo(2, node("a"));
    // What the record says after the swap was lost, and whether the guest goes on here.
    let table = [
        (taken(), Role::Promoting),
        (Record::solo(2, node("b")), Role::Starting),
        (Record::solo(3, node("b")), Role::Starting),
    ];
    for (record, role) in table {
        let mut bench = offered();
        let actions = bench.give(Input::LinkDown);
        assert_eq!(actions, [swap(Some(named()), back)]);
        let actions = bench.give(Input::Arbiter(Answer::Lost(Some(record))));
        assert!(!actions.contains(&Action::Promote), "{record:?}");
        let dropped = actions.contains(&Action::DropOutput);
        assert_eq!(dropped, role == Role::Starting, "another story goes on");
        assert_eq!(bench.role(), role, "{record:?}");
    }
}

#[test]
fn an_offer_of_an_epoch_that_is_not_held_is_refused() {
    for (named, epoch) in [(false, 1), (true, 2), (true, 0)] {
        let mut bench = Bench::synced(true);
        if named {
            bench.hear(1, 0, Message::Named);
        }
        let actions = bench.hear(1, epoch, Message::HandOver);
        assert!(matches!(actions[0], Action::Close(_)), "{named} {epoch}");
    }
}

#[test]
fn commands_that_can_not_be_obeyed_are_refused() {
    let starting = || {
        let mut bench = Bench::new("b", true);
        bench.give(Input::Start);
        bench.give(Input::Arbiter(Answer::Record(Some(claimed()))));
        bench
    };
    let table = [
        (Bench::shipped(), Command::Switchover, Refusal::NotProtected),
        (Bench::shipped(), Command::Leave, Refusal::NotProtected),
        (Bench::protected(), Command::Promote, Refusal::HasTheRight),
        (
            Bench::synced(true),
            Command::Switchover,
            Refusal::NotPrimary,
        ),
        (Bench::synced(true), Command::Promote, Refusal::PeerIsThere),
        (starting(), Command::Promote, Refusal::ArbiterDecides),
        (starting(), Command::Switchover, Refusal::NotPrimary),
        (offered(), Command::Switchover, Refusal::Busy),
    ];
    for (mut bench, command, why) in table {
        let reports = bench.reports(Input::Operator(command));
        assert_eq!(reports, [Report::Refused(command, why)]);
    }
}

#[test]
fn a_standby_that_leaves_says_so() {
    let mut bench = Bench::synced(true);
    let actions = bench.give(Input::Operator(Command::Leave));
    assert_eq!(actions, [say(1, 0, Message::Bye), Action::End(End::Left)]);
}

#[test]
fn a_primary_that_leaves_is_a_standby_first() {
    let mut bench = Bench::protected();
    bench.give(Input::Operator(Command::Leave));
    bench.give(Input::Captured {
        epoch: 2,
        idle: true,
    });
    bench.hear(1, 2, Message::Ack);
    let actions = bench.hear(2, 0, Message::TookOver);
    assert_eq!(actions, [say(2, 0, Message::Bye), Action::End(End::Left)]);
}

#[test]
fn without_an_arbiter_each_host_notes_what_it_knows() {
    let mut bench = Bench::synced(false);
    let actions = bench.hear(1, 0, Message::Named);
    assert_eq!(
        actions,
        [Action::Note(named())],
        "before it may be promoted"
    );
    bench.give(Input::LinkDown);
    let actions = bench.give(Input::Operator(Command::Promote));
    let alone = Action::Note(Record::solo(2, node("b")));
    assert_eq!(actions, [alone, Action::OpenOutput, Action::Promote]);
}

#[test]
fn a_connection_that_nobody_speaks_over_is_no_peer() {
    let alone = Action::Note(Record::solo(2, node("b")));
    for greets in [false, true] {
        let mut bench = Bench::synced(false);
        bench.hear(1, 0, Message::Named);
        bench.give(Input::LinkDown);
        bench.give(Input::LinkUp);
        if greets {
            bench.hear(1, 0, Message::Hello(Status::Primary));
        }
        let actions = bench.give(Input::Operator(Command::Promote));
        assert_eq!(actions.contains(&alone), !greets, "{actions:?}");
    }
}

#[test]
fn without_an_arbiter_a_start_follows_what_was_noted() {
    let (a, b) = (node("a"), node("b"));
    // Who starts, what was noted, and the generation in which it boots.
    let table = [
        ("a", None, Some(1)),
        ("b", None, None),
        ("a", Some(Record::solo(4, a)), Some(5)),
        ("a", Some(Record::protected(4, a, b)), None),
        ("a", Some(Record::protected(4, b, a)), None),
        ("b", Some(Record::solo(4, b)), Some(5)),
    ];
    for (name, noted, generation) in table {
        let mut bench = Bench::noted(name, noted);
        let actions = bench.give(Input::Start);
        let want = generation.map_or(Vec::new(), |generation| {
            let note = Action::Note(Record::solo(generation, node(name)));
            vec![note, Action::OpenOutput, Action::Boot]
        });
        assert_eq!(actions, want, "{name} with {noted:?}");
    }
}

#[test]
fn without_an_arbiter_the_older_generation_gives_way() {
    let mut bench = Bench::noted("a", None);
    bench.give(Input::Start);
    bench.give(Input::LinkUp);
    let actions = bench.hear(2, 0, Message::Hello(Status::Primary));
    assert!(actions.contains(&Action::Fence));
    let mut bench = Bench::noted("a", Some(Record::solo(2, node("a"))));
    bench.give(Input::Start);
    bench.give(Input::LinkUp);
    let actions = bench.hear(2, 0, Message::Hello(Status::Primary));
    assert!(matches!(actions[..], [Action::Close(_)]), "{actions:?}");
}

#[test]
fn of_two_cold_twins_without_an_arbiter_the_newer_note_counts() {
    let (a, b) = (node("a"), node("b"));
    for (theirs, boots) in [(1, true), (2, true), (3, false)] {
        let mut bench = Bench::noted("a", Some(Record::protected(2, a, b)));
        assert!(bench.give(Input::Start).is_empty());
        let hello = say(2, 0, Message::Hello(Status::Cold));
        assert_eq!(bench.give(Input::LinkUp), [hello], "it tells its own");
        let actions = bench.hear(theirs, 0, Message::Hello(Status::Cold));
        assert_eq!(actions.contains(&Action::Boot), boots, "{theirs}");
    }
}

#[test]
fn a_standby_goes_on_for_a_primary_that_died_before_it_said_named() {
    for (theirs, promotes) in [(0, false), (1, true), (2, false)] {
        let mut bench = Bench::synced(false);
        bench.give(Input::LinkDown);
        bench.give(Input::LinkUp);
        let actions = bench.hear(theirs, 0, Message::Hello(Status::Cold));
        assert_eq!(actions.contains(&Action::Promote), promotes, "{theirs}");
    }
}

#[test]
fn a_guest_that_is_taken_back_is_newer_than_what_its_successor_noted() {
    let mut bench = Bench::noted("a", None);
    bench.give(Input::Start);
    bench.give(Input::LinkUp);
    // It had the guest since, never released anything, and died.
    let actions = bench.hear(2, 0, Message::Hello(Status::Cold));
    let note = Action::Note(Record::solo(3, node("a")));
    assert!(actions.contains(&note), "{actions:?}");
    assert!(actions.contains(&say(3, 0, Message::SyncBegin)));
    assert!(actions.contains(&Action::SendMemory(3)));
}
