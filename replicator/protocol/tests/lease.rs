//! Leases of guests of which only the disks are replicated: when they run, stand still and are booted elsewhere.

mod bench;

use std::time::Duration;

use bench::{Bench, claimed, node, swap};
use evertwin_protocol::{
    Action, Answer, Command, Input, Message, Record, Refusal, Report, Role, Status, Time,
    lease_wait,
};

const LEASE: Duration = Duration::from_secs(1);

fn named() -> Record {
    Record::protected(1, node("a"), node("b"))
}

/// When the next thing is due, from now on.
fn due(bench: &Bench) -> Duration {
    bench.twin.poll_timeout().unwrap() - Time::from_nanos(bench.now)
}

/// A primary whose standby is named, with epoch 1 committed.
fn primary() -> Bench {
    Bench::leased("a", LEASE).protect()
}

/// Signs of life of the peer for so long, and nothing else.
fn quiet(bench: &mut Bench, millis: u64) -> Vec<Action> {
    let mut done = Vec::new();
    for _ in 0..millis / 100 {
        done.extend(bench.pass(Duration::from_millis(100)));
        done.extend(bench.hear(1, 0, Message::Heartbeat));
    }
    done.retain(|action| !matches!(action, Action::Send(_)));
    done
}

#[test]
fn an_idle_guest_extends_its_lease_four_times_in_its_course() {
    let mut bench = primary();
    let mut captured = 0;
    for step in 0..40 {
        let done = quiet(&mut bench, 100);
        assert!(!done.contains(&Action::StopGuest), "after {step}");
        assert!(!done.contains(&Action::Peek), "there is nothing to look at");
        for action in done {
            if let Action::Capture(epoch) = action {
                captured += 1;
                bench.give(Input::Captured { epoch, idle: true });
                bench.hear(1, epoch, Message::Ack);
            }
        }
    }
    assert!((12..=20).contains(&captured), "{captured} in four leases");
}

#[test]
fn a_lease_counts_from_the_capture_and_not_from_the_acknowledgement() {
    let mut bench = primary();
    bench.give(Input::OutputWaiting);
    let captured_at = bench.now;
    let epoch = 2;
    bench.give(Input::Captured { epoch, idle: false });
    // The acknowledgement is late.
    let done = quiet(&mut bench, 600);
    assert!(!done.contains(&Action::StopGuest));
    let done = bench.hear(1, 2, Message::Ack);
    let until = Time::from_nanos(captured_at) + LEASE;
    assert_eq!(done[0], Action::Lease(Some(until)));
}

#[test]
fn without_an_answer_the_guest_stands_still_and_then_goes_on_where_it_was() {
    let mut bench = primary();
    let alone = Record::solo(2, node("a"));
    let done = bench.give(Input::LinkDown);
    assert_eq!(done, [Action::StopTracking, swap(Some(named()), alone)]);
    // The arbiter does not answer.
    bench.give(Input::Arbiter(Answer::Failed));
    assert!(!bench.pass(LEASE / 2).contains(&Action::StopGuest));
    assert!(bench.pass(LEASE).contains(&Action::StopGuest));
    assert!(!bench.pass(LEASE).contains(&Action::StopGuest), "once");
    let done = bench.give(Input::Arbiter(Answer::Record(Some(alone))));
    assert_eq!(
        done,
        [
            Action::OpenOutput,
            Action::Lease(None),
            Action::ContinueGuest
        ]
    );
    assert_eq!(bench.role(), Role::Solo);
    // Nobody else can take the right now.
    assert!(!bench.pass(LEASE * 10).contains(&Action::StopGuest));
}

#[test]
fn whatever_a_thawed_primary_is_told_first_its_guest_is_stopped_before() {
    for input in [
        Input::OutputWaiting,
        Input::Heard,
        Input::LinkDown,
        Input::Arbiter(Answer::Won),
    ] {
        let mut bench = primary();
        bench.now += u64::try_from((LEASE * 2).as_nanos()).unwrap();
        assert_eq!(bench.give(input)[0], Action::StopGuest, "{input:?}");
    }
}

#[test]
fn a_standby_boots_the_guest_only_when_every_lease_is_over() {
    let mut bench = Bench::leased("b", LEASE).sync(true);
    bench.hear(1, 0, Message::Named);
    let won = Record::solo(2, node("b"));
    assert_eq!(bench.give(Input::LinkDown), [swap(Some(named()), won)]);
    assert_eq!(bench.give(Input::Arbiter(Answer::Won)), []);
    assert_eq!(bench.role(), Role::Lapsing);
    assert_eq!(due(&bench), lease_wait(LEASE));
    assert!(lease_wait(LEASE) > LEASE);
    // Nothing makes it earlier, and nobody is promised anything meanwhile.
    assert!(!bench.twin.wants_link());
    for input in [Input::LinkUp, Input::PeerDead, Input::OutputWaiting] {
        assert_eq!(bench.give(input), []);
    }
    bench.give(Input::LinkDown);
    assert_eq!(bench.pass(LEASE), []);
    let done = bench.pass(lease_wait(LEASE) - LEASE);
    assert_eq!(done, [Action::OpenOutput, Action::Promote]);
    assert_eq!(bench.role(), Role::Solo);
}

#[test]
fn a_winner_that_was_started_anew_waits_anew() {
    let mut bench = Bench::leased("b", LEASE);
    bench.give(Input::Start);
    let won = Record::solo(2, node("b"));
    let next = Record::solo(3, node("b"));
    let done = bench.give(Input::Arbiter(Answer::Record(Some(won))));
    assert_eq!(done, [swap(Some(won), next)]);
    assert_eq!(bench.give(Input::Arbiter(Answer::Won)), []);
    assert_eq!(due(&bench), lease_wait(LEASE));
    let done = bench.pass(lease_wait(LEASE));
    assert_eq!(done, [Action::OpenOutput, Action::Boot]);
}

#[test]
fn the_first_start_waits_for_nobody() {
    let mut bench = Bench::leased("a", LEASE);
    bench.give(Input::Start);
    bench.give(Input::Arbiter(Answer::Record(None)));
    let done = bench.give(Input::Arbiter(Answer::Won));
    assert_eq!(done, [Action::OpenOutput, Action::Boot]);
}

#[test]
fn a_guest_without_a_twin_needs_no_lease() {
    let mut bench = Bench::leased("a", LEASE);
    bench.give(Input::Start);
    bench.give(Input::Arbiter(Answer::Record(None)));
    bench.give(Input::Arbiter(Answer::Won));
    assert_eq!(bench.pass(LEASE * 100), []);
    // A standby that is being filled lends nothing either.
    bench.give(Input::LinkUp);
    bench.hear(0, 0, Message::Hello(Status::Cold));
    assert_eq!(bench.role(), Role::Syncing);
    assert!(!quiet(&mut bench, 3000).contains(&Action::StopGuest));
}

#[test]
fn a_primary_beside_another_stands_still_until_the_arbiter_has_spoken() {
    let mut bench = Bench::leased("a", LEASE);
    bench.give(Input::Start);
    bench.give(Input::Arbiter(Answer::Record(None)));
    bench.give(Input::Arbiter(Answer::Won));
    bench.give(Input::LinkUp);
    let done = bench.hear(2, 0, Message::Hello(Status::Primary));
    assert!(done.contains(&Action::StopGuest), "{done:?}");
    let done = bench.give(Input::Arbiter(Answer::Record(Some(claimed()))));
    assert_eq!(done, [Action::OpenOutput, Action::ContinueGuest]);
}

#[test]
fn a_guest_whose_memory_is_not_replicated_is_not_handed_over() {
    for command in [Command::Switchover, Command::Leave] {
        let refused = Report::Refused(command, Refusal::NotReplicated);
        assert_eq!(primary().reports(Input::Operator(command)), [refused]);
    }
    let mut bench = Bench::leased("b", LEASE).sync(true);
    bench.hear(1, 0, Message::Named);
    let done = bench.hear(1, 1, Message::HandOver);
    assert!(matches!(done[..], [Action::Close(_), ..]), "{done:?}");
}

#[test]
fn without_an_arbiter_the_operator_vouches_that_nobody_runs() {
    let mut bench = Bench::leased_by_hand("b", LEASE).sync(false);
    bench.hear(1, 0, Message::Named);
    bench.give(Input::LinkDown);
    let done = bench.give(Input::Operator(Command::Promote));
    let note = Action::Note(Record::solo(2, node("b")));
    assert_eq!(done, [note, Action::OpenOutput, Action::Promote]);
}

#[test]
fn without_an_arbiter_the_word_of_a_primary_may_be_late() {
    let mut bench = Bench::leased_by_hand("b", LEASE).sync(false);
    bench.hear(1, 0, Message::Named);
    bench.give(Input::LinkDown);
    bench.give(Input::LinkUp);
    // It was started anew and waits, it says, and perhaps it runs the guest again by now.
    let done = bench.hear(1, 0, Message::Hello(Status::Cold));
    assert!(done.contains(&Action::Note(Record::solo(2, node("b")))));
    assert!(!done.contains(&Action::Promote), "{done:?}");
    assert_eq!(bench.role(), Role::Lapsing);
    assert!(!bench.pass(LEASE).contains(&Action::Promote));
    assert!(bench.pass(LEASE / 8).contains(&Action::Promote));
}

#[test]
fn without_an_arbiter_a_guest_goes_on_when_its_standby_is_back() {
    let mut bench = Bench::leased_by_hand("a", LEASE);
    bench.give(Input::Start);
    let fill = |bench: &mut Bench| {
        bench.give(Input::LinkUp);
        bench.hear(0, 0, Message::Hello(Status::Cold));
        bench.give(Input::RoundSent);
        let done = bench.give(Input::Harvested(0));
        let captured = done.iter().find_map(|action| match action {
            Action::Capture(epoch) => Some(*epoch),
            _ => None,
        });
        let epoch = captured.expect("the first epoch");
        bench.give(Input::Captured { epoch, idle: true });
        let generation = bench.twin.generation();
        bench.hear(generation, epoch, Message::Ack)
    };
    let done = fill(&mut bench);
    assert!(matches!(done[0], Action::Lease(Some(_))), "{done:?}");
    assert!(!bench.give(Input::LinkDown).contains(&Action::StopGuest));
    assert!(bench.pass(LEASE).contains(&Action::StopGuest));
    assert!(fill(&mut bench).contains(&Action::ContinueGuest));
}

#[test]
fn a_level_changes_while_the_guest_runs_alone() {
    let mut bench = primary();
    assert!(!bench.twin.runs_alone(), "its standby relies on it");
    bench.give(Input::LinkDown);
    assert!(!bench.twin.runs_alone(), "a question is open");
    bench.give(Input::Arbiter(Answer::Won));
    assert!(bench.twin.runs_alone());
    bench.twin.set_lease(None);
    // The next standby gets all of the guest, and its epochs lend no time.
    bench.give(Input::LinkUp);
    bench.hear(0, 0, Message::Hello(Status::Cold));
    bench.give(Input::RoundSent);
    bench.give(Input::Harvested(0));
    let epoch = 1;
    bench.give(Input::Captured { epoch, idle: true });
    let done = bench.hear(2, 1, Message::Ack);
    assert_eq!(bench.role(), Role::Naming);
    let lent = |action: &Action| matches!(action, Action::Lease(_));
    assert!(!done.iter().any(lent), "{done:?}");
}
