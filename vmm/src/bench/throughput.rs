//! What a protected guest gets done.

use std::time::Duration;

use super::BenchError;
use super::guest::{Guest, Host, key_value};
use super::load::Load;
use super::row::Row;
use super::samples::Samples;

const ROUNDS: usize = 3;
const WARM_UP: Duration = Duration::from_millis(200);
const TIME: Duration = Duration::from_secs(1);

pub(super) fn measure(host: &mut Host) -> Result<Row, BenchError> {
    let config = key_value();
    let (mut bare, mut protected) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        let guest = host.bare(&config)?;
        bare.push(rate(host, guest)?);
        let guest = host.protected(&config)?;
        protected.push(rate(host, guest)?);
    }
    Ok(Row::new(
        [("protected_per_s", protected.p50())],
        ("bare_per_s", bare.p50()),
        "SETs and GETs of 100 bytes, each client waits for its answer; bare: the same guest without a twin",
    ))
}

fn rate(host: &Host, mut guest: Guest) -> Result<f64, BenchError> {
    Load::SetAndGet.run(host, &guest, host.lasting(WARM_UP))?;
    let rate = Load::SetAndGet.run(host, &guest, host.lasting(TIME))?;
    guest.undisturbed()?;
    Ok(rate)
}
