//! How long the guest stands still at an epoch's end.

use std::time::Duration;

use super::BenchError;
use super::guest::Host;
use super::row::Row;
use super::samples::Samples;
use crate::lab::epoch::Epoch;
use crate::lab::pair::PairConfig;

const WARM_UP: Duration = Duration::from_millis(500);
const TIME: Duration = Duration::from_secs(3);
const PAGES: u64 = 64;
/// The guest writes its pages once in such a time, and so long is an epoch.
const PERIOD: Duration = Duration::from_millis(10);

pub(super) fn measure(host: &mut Host) -> Result<Row, BenchError> {
    let period_us = host.lasting(PERIOD).as_micros();
    let mut guest = host.protected(&PairConfig {
        cmdline: format!("workload=dirty pages={PAGES} period_us={period_us} pattern=seq"),
        memory: "512M".into(),
        disk: None,
        epoch: PERIOD,
        ..PairConfig::default()
    })?;
    std::thread::sleep(host.lasting(WARM_UP));
    let from = guest.process().log().len();
    std::thread::sleep(host.lasting(TIME));
    guest.undisturbed()?;
    let (mut pauses, mut vcpus) = (Samples::default(), Samples::default());
    // One round of the guest's, and a few pages of its own.
    let usual = PAGES * 85 / 100..=PAGES * 13 / 10 + 16;
    let epochs = guest.epochs_since(from);
    for epoch in epochs.iter().filter(|epoch| usual.contains(&epoch.pages)) {
        pauses.push(epoch.pause_us);
        vcpus.push(kick(epoch));
    }
    if pauses.p50().is_nan() {
        return Err(BenchError::NoEpochs);
    }
    Ok(Row::new(
        [("p50_us", pauses.p50()), ("p99_us", pauses.p99())],
        ("vcpu_p50_us", vcpus.p50()),
        "vcpu: what of it the virtual CPU takes to stop and to give out its state",
    ))
}

fn kick(epoch: &Epoch) -> f64 {
    let mut phases = epoch.phases_us.iter();
    let kick = phases.find(|(name, _)| name == "kick");
    kick.map_or(f64::NAN, |(_, us)| *us)
}
