//! A twin dies between any two things that it does, in each way, and the pair recovers.

use evertwin_simulator::{Command, Fault, Schedule, What, run};

fn schedule(arbiter: bool, ha: bool, reconnect_us: u64, faults: Vec<Fault>) -> Schedule {
    Schedule {
        seed: 1,
        arbiter,
        ha,
        window: 2,
        reconnect_us,
        epoch_us: 5_000,
        step_us: 4_000,
        second_us: 1_000,
        heal_us: 150_000,
        last_blow: true,
        faults,
    }
}

/// What else happens, in the middle of the run.
fn stories() -> [Vec<Fault>; 4] {
    let at = |at_us, what| Fault { at_us, what };
    let command = Command::Switchover;
    [
        vec![],
        vec![at(60_000, What::Operator { host: 0, command })],
        vec![at(60_000, What::Cut)],
        vec![at(60_000, What::GuestExits { host: 0 })],
    ]
}

fn crash(host: usize, after: u64, mode: u64) -> Fault {
    Fault {
        // Just when it has started.
        at_us: host as u64 * 1_000,
        what: What::Crash {
            host,
            after,
            power: mode & 1 != 0,
            silently: mode & 2 != 0,
            back_us: (mode & 4 != 0).then_some(10_000),
        },
    }
}

fn every_crash(arbiter: bool, ha: bool, reconnect_us: u64) {
    let mut schedules = 0;
    for story in stories() {
        let sound = schedule(arbiter, ha, reconnect_us, story);
        let outcome = run(&sound, None);
        assert_eq!(outcome.violation, None);
        for host in 0..2 {
            let actions = outcome.tally.actions[host];
            assert!(actions > 30, "{actions}");
            for after in 0..actions {
                for mode in 0..8 {
                    let mut broken = sound.clone();
                    broken.faults.push(crash(host, after, mode));
                    let violation = run(&broken, None).violation;
                    assert_eq!(violation, None, "{broken:#?}");
                    schedules += 1;
                }
            }
        }
    }
    println!("{schedules} schedules");
}

#[test]
fn a_twin_may_die_anywhere() {
    every_crash(true, false, 0);
}

#[test]
fn a_twin_may_die_anywhere_without_an_arbiter() {
    every_crash(false, false, 0);
}

#[test]
fn a_twin_may_die_anywhere_while_the_other_waits_for_it() {
    every_crash(true, false, 20_000);
}

#[test]
fn a_twin_may_die_anywhere_where_only_disks_are_replicated() {
    every_crash(true, true, 20_000);
}
