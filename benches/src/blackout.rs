//! How long a client waits when the primary is killed.

use std::time::{Duration, Instant};

use evertwin::lab::client::LoadOptions;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::STEP;
use evertwin_tests::stage::Stage;

use crate::report::{Row, Samples, Target};

const KILLS: usize = 15;

/// Measures it.
#[must_use]
pub fn run() -> Row {
    let (mut blackout, mut usual) = (Samples::default(), Samples::default());
    for _ in 0..KILLS {
        let (gap, before) = one();
        blackout.add(gap);
        usual.add(before);
    }
    Row::new(
        "blackout on kill -9",
        &blackout,
        ("longest gap between answers in the second before", &usual),
        Target::Within(Duration::from_millis(150)),
        vec![],
    )
}

/// The gap around the kill, and the longest one before it.
fn one() -> (Duration, Duration) {
    let mut stage = Stage::protected(&PairConfig::default());
    let load = stage.load(LoadOptions::default());
    let until = Instant::now() + Duration::from_secs(1);
    load.wait_until(Duration::from_secs(1), |_| Instant::now() >= until);
    let before = load.measure_anew();
    stage.twin(Node::A).kill();
    let killed = before.acked;
    assert!(
        load.wait_until(STEP, |now| now.acked > killed + 500),
        "the twin did not go on: {:?}",
        load.progress()
    );
    let verdict = load.finish();
    assert!(verdict.is_clean(), "{}", verdict.summary());
    (verdict.progress.longest_gap, before.longest_gap)
}
