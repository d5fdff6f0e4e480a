//! Many pairs on one machine, which keep all of its processors busy.

use std::time::{Duration, Instant};

use evertwin::lab::client::LoadOptions;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::stage::Stage;

use crate::report::{Demand, Row, Samples, Unit};

const PAIRS: usize = 8;
const TIME: Duration = Duration::from_secs(40);
const ALONE: Duration = Duration::from_secs(4);

/// Measures them: what they answer together, and how often one takes its peer for dead because nobody has time.
#[must_use]
pub fn run() -> Row {
    let config = PairConfig {
        memory: "64M".into(),
        ..PairConfig::default()
    };
    let mut stages = vec![Stage::protected(&config)];
    let (alone, _) = answers(&stages, ALONE);
    while stages.len() < PAIRS {
        let mut another = Stage::in_lab(stages[0].lab.another(), &config);
        another.protect();
        stages.push(another);
    }
    let (together, gap) = answers(&stages, TIME);
    let lost: usize = stages.iter_mut().map(lost).sum();
    // The first one's lab has the turn.
    while stages.len() > 1 {
        stages.pop();
    }
    let hours = TIME.as_secs_f64() / 3600.0 * PAIRS as f64;
    let rate = |figure: f64| {
        let mut samples = Samples::of(Unit::PerSecond);
        samples.push(figure);
        samples
    };
    let mut gaps = Samples::default();
    gaps.add(gap);
    Row::new("answers of eight busy pairs on one machine", &rate(together))
        .floor("those of one pair alone", &rate(alone))
        .demand(Demand::at_most(
            "links lost per pair and hour",
            Unit::Count,
            lost as f64 / hours,
            0.0,
        ))
        .part("longest time without an answer", &gaps)
        .detail(format!(
            "{PAIRS} primaries, {PAIRS} standbys and {PAIRS} clients for {} s; twins go where the scheduler puts them",
            TIME.as_secs()
        ))
}

/// Answers per second that clients of all pairs get, and the longest that one of them waits.
fn answers(stages: &[Stage], time: Duration) -> (f64, Duration) {
    let loads: Vec<_> = stages
        .iter()
        .map(|stage| stage.load(LoadOptions::default()))
        .collect();
    let begun = Instant::now();
    std::thread::sleep(time);
    let acked: u64 = loads.iter().map(|load| load.progress().acked).sum();
    let rate = acked as f64 / begun.elapsed().as_secs_f64();
    let mut longest = Duration::ZERO;
    for load in loads {
        let verdict = load.finish();
        assert!(verdict.is_clean(), "{}", verdict.summary());
        longest = longest.max(verdict.progress.longest_gap);
    }
    (rate, longest)
}

/// How often a pair's twins gave up their link.
fn lost(stage: &mut Stage) -> usize {
    let down = |node| {
        let log = stage.twin(node).log().lines();
        let down =
            |line: &&evertwin::lab::events::Line| line.message().as_deref() == Some("link down");
        log.iter().filter(down).count()
    };
    [Node::A, Node::B].map(down).into_iter().max().unwrap_or(0)
}
