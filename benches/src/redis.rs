//! `redis-benchmark` against the guest's key-value server.

use std::time::{Duration, Instant};

use evertwin::lab::topology::{GUEST, Node};
use evertwin_tests::lab::TestLab;

use crate::arms::{Arm, Running, Setup, Undisturbed};
use crate::delay::epoch;
use crate::pin::{Pinned, Side};
use crate::report::{Demand, Row, Samples, Unit};

const ROUNDS: usize = 3;
const CLIENTS: &str = "32";
const WARM_UP: [&str; 4] = ["-t", "set", "-n", "3000"];
const LOAD: [&str; 6] = ["-t", "set,get", "-n", "20000", "-r", "10000"];
/// The logging arm comes last: it reads its log as often as the protected one of the same round had epochs.
const ORDER: [Arm; 4] = [Arm::Bare, Arm::Protected, Arm::Plaintext, Arm::Logging];

fn arguments<'a>(load: &[&'a str], guest: &'a str) -> Vec<&'a str> {
    [&["-h", guest, "-c", CLIENTS, "--csv"], load].concat()
}

/// The command, as in the report.
#[must_use]
pub fn command_line(load: &[&str]) -> String {
    format!(
        "redis-benchmark {}",
        arguments(load, &GUEST.to_string()).join(" ")
    )
}

/// Requests per second of all its tests together.
///
/// # Panics
/// If the tool fails.
pub fn benchmark(lab: &TestLab, load: &[&str]) -> f64 {
    let _pinned = Pinned::to(Side::Other);
    let guest = GUEST.to_string();
    let output = lab.client_tool("redis-benchmark", &arguments(load, &guest));
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && errors.is_empty(),
        "redis-benchmark: {text}{errors}"
    );
    rate(&text).unwrap_or_else(|| panic!("redis-benchmark printed no rates: {text}"))
}

/// All tests have as many requests, so their times add up.
fn rate(csv: &str) -> Option<f64> {
    let rates = csv.lines().filter_map(|line| {
        let mut fields = line.split(',').map(|field| field.trim_matches('"'));
        fields.nth(1)?.parse::<f64>().ok()
    });
    let rates: Vec<f64> = rates.collect();
    let seconds: f64 = rates.iter().map(|rate| rate.recip()).sum();
    (!rates.is_empty()).then(|| rates.len() as f64 / seconds)
}

/// What one start of a guest came to.
struct Measured {
    rate: Samples,
    /// The average length of an epoch, of a pair.
    epoch: Option<Duration>,
}

fn one(running: &mut Running) -> Measured {
    benchmark(running.lab(), &WARM_UP);
    let before = running.stage().map(|stage| epoch(stage, Node::A));
    let begun = Instant::now();
    let mut rate = Samples::of(Unit::PerSecond);
    rate.push(benchmark(running.lab(), &LOAD));
    let took = begun.elapsed();
    let after = running.stage().map(|stage| epoch(stage, Node::A));
    let epochs = after.zip(before).map(|(after, before)| after - before);
    Measured {
        rate,
        epoch: epochs.map(|epochs| took.div_f64(epochs.max(1) as f64)),
    }
}

/// Measures it in four arms, and protected without deltas.
#[must_use]
pub fn run() -> Row {
    let mut setup = Setup::default();
    let without_deltas = setup.switched(|on| on.deltas = false);
    let mut off = Samples::of(Unit::PerSecond);
    let mut undisturbed = Undisturbed::default();
    let mut rates = Arm::ALL.map(|_| Samples::of(Unit::PerSecond));
    let mut lengths = Samples::default();
    for _ in 0..ROUNDS {
        for arm in ORDER {
            let measured = undisturbed.measure(&setup, arm, one);
            rates[arm.index()].add_round(&measured.rate);
            if let (Arm::Protected, Some(length)) = (arm, measured.epoch) {
                setup.harvest = Some(length.max(Duration::from_micros(100)));
                lengths.add(length);
            }
        }
        let measured = undisturbed.measure(&without_deltas, Arm::Protected, one);
        off.add_round(&measured.rate);
    }
    let of = |arm: Arm| &rates[arm.index()];
    let protected = of(Arm::Protected).p50();
    let row = Row::new("redis-benchmark SET and GET, 32 clients, protected", of(Arm::Protected))
        .floor("the same guest with dirty logging only", of(Arm::Logging))
        .demand(Demand::at_least(
            "protected / dirty logging only, p50",
            Unit::Ratio,
            protected / of(Arm::Logging).p50(),
            0.9,
        ))
        .part("bare", of(Arm::Bare))
        .part("protected, no TLS", of(Arm::Plaintext))
        .part("protected, deltas off", &off)
        .detail(format!(
            "{:.2} of the bare guest's; an epoch is {} long on average, and so often the log is read in the logging arm",
            protected / of(Arm::Bare).p50(),
            lengths.show_p50()
        ))
        .commands(setup.all_commands())
        .commands(without_deltas.commands(Arm::Protected))
        .commands([command_line(&WARM_UP), command_line(&LOAD)]);
    undisturbed.note(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_tests_add_up_by_their_times() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"1000.00\",\"1\"\n\"GET\",\"3000.00\",\"1\"\n";
        assert!((rate(csv).unwrap() - 1500.0).abs() < 0.01);
        assert_eq!(rate("\"test\",\"rps\"\n"), None);
    }
}
