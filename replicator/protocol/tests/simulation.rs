//! Thousands of seeded schedules of failures, checked against I1, I2, I3 and I4.
//!
//! `SEED=n cargo test -p evertwin-protocol --test simulation` runs one of them again.

mod sim;

use sim::{Tally, World};

fn run(seed: u64, arbiter: bool) -> Tally {
    let mut world = World::new(seed, arbiter);
    world.shake(1500);
    world.recover(1500);
    world.tally
}

#[test]
fn no_schedule_of_failures_breaks_an_invariant() {
    if let Ok(seed) = std::env::var("SEED") {
        run(seed.parse().expect("SEED is a number"), true);
        return;
    }
    let mut total = Tally::default();
    for seed in 0..1000 {
        let Tally {
            boots,
            promotions,
            fenced,
            protected,
            released,
        } = run(seed, true);
        total.boots += boots;
        total.promotions += promotions;
        total.fenced += fenced;
        total.protected += protected;
        total.released += released;
    }
    // The schedules lead to what they are meant to test.
    assert!(total.promotions > 500 && total.fenced > 300, "{total:?}");
    assert!(total.protected > 2000, "{total:?}");
    println!("{total:?}");
}

#[test]
fn without_an_arbiter_a_bad_network_costs_nothing_but_time() {
    let mut protected = 0;
    for seed in 0..300 {
        let tally = run(seed, false);
        // Roles were exchanged, but nobody was promoted against the other.
        assert_eq!((tally.boots, tally.fenced), (1, 0));
        protected += tally.protected;
    }
    // Links were lost and the pair was whole again.
    assert!(protected > 600, "{protected}");
}
