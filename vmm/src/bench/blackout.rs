//! How long a client waits when the primary dies.

use std::time::Duration;

use super::BenchError;
use super::guest::Host;
use super::row::Row;
use super::samples::Samples;
use crate::lab::client::{Load, LoadOptions};
use crate::lab::pair::PairConfig;
use crate::lab::topology::GUEST_KV;

const KILLS: usize = 5;
/// From the load's start to the kill.
const BEFORE: Duration = Duration::from_millis(700);
/// Answers after which the guest has gone on.
const ENOUGH: u64 = 200;

pub(super) fn measure(host: &mut Host) -> Result<Row, BenchError> {
    let (mut gaps, mut before) = (Samples::default(), Samples::default());
    for _ in 0..KILLS {
        let (gap, usual) = kill(host)?;
        gaps.push(gap.as_secs_f64() * 1e3);
        before.push(usual.as_secs_f64() * 1e3);
    }
    Ok(Row::new(
        [("p50_ms", gaps.p50()), ("max_ms", gaps.max())],
        ("before_p50_ms", before.p50()),
        "the longest time without an answer at each kill -9; before: the same until just before the kill",
    ))
}

/// The client's longest wait, and that before the kill.
fn kill(host: &mut Host) -> Result<(Duration, Duration), BenchError> {
    let mut guest = host.protected(&PairConfig::default())?;
    let stream = guest.topology().client.connect(GUEST_KV, host.step())?;
    let usual = LoadOptions::default();
    let patience = host.lasting(usual.patience);
    let load = Load::start(stream, LoadOptions { patience, ..usual })?;
    load.wait_until(host.lasting(BEFORE), |seen| seen.broken.is_some());
    guest.undisturbed()?;
    let before = load.measure_anew();
    guest.process().kill();
    load.wait_until(host.step(), |seen| seen.acked > before.acked + ENOUGH);
    let verdict = load.finish();
    match verdict.is_clean() {
        true => Ok((verdict.progress.longest_gap, before.longest_gap)),
        false => Err(BenchError::Wrong(verdict.summary())),
    }
}
