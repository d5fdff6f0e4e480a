//! How long a client waits when the twins exchange their roles.

use std::time::{Duration, Instant};

use evertwin::lab::client::LoadOptions;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::STEP;
use evertwin_tests::stage::Stage;

use crate::report::{Row, Samples};

const SWITCHOVERS: usize = 40;

/// Measures it, on one pair whose guest goes to and fro.
#[must_use]
pub fn run() -> Row {
    let (mut blackout, mut usual) = (Samples::default(), Samples::default());
    let stage = Stage::protected(&PairConfig::default());
    let nodes = [Node::A, Node::B];
    for turn in 0..SWITCHOVERS {
        let (gap, before) = one(&stage, nodes[turn % 2]);
        blackout.add(gap);
        usual.add(before);
    }
    Row::new("blackout on switchover", &blackout)
        .floor(
            "longest gap between answers in the half second before",
            &usual,
        )
        .p50_within(Duration::from_millis(15))
}

/// The longest gap with the switchover, and the longest one before it.
fn one(stage: &Stage, primary: Node) -> (Duration, Duration) {
    let load = stage.load(LoadOptions::default());
    let until = Instant::now() + Duration::from_millis(500);
    load.wait_until(STEP, |_| Instant::now() >= until);
    let before = load.measure_anew();
    let output = stage.operate(primary, &["switchover"]);
    assert!(output.status.success(), "{output:?}");
    let done = load.progress().acked;
    assert!(
        load.wait_until(STEP, |now| now.acked > done + 200),
        "the guest did not go on: {:?}",
        load.progress()
    );
    let verdict = load.finish();
    assert!(verdict.is_clean(), "{}", verdict.summary());
    (verdict.progress.longest_gap, before.longest_gap)
}
