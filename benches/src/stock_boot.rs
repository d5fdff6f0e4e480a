//! From `evertwin run` to process 1 of Debian's kernel, on an emulated machine.

use std::path::Path;
use std::time::Duration;

use evertwin_lab::{Artifacts, LabError, Run, StockBoot};
use evertwin_tests::lab::evertwin_binary;

use crate::report::{Row, Samples};

const RUNS: usize = 3;

/// Measures it. The Debian guest and the lab must have been built (`make lab-build`).
///
/// # Panics
/// If the lab can't be built or a machine does not boot.
#[must_use]
pub fn run() -> Row {
    let (mut guests, mut hosts) = (Samples::default(), Samples::default());
    for _ in 0..RUNS {
        let StockBoot { host, guest } = one().unwrap_or_else(|error| panic!("{error}"));
        guests.add(guest);
        hosts.add(host);
    }
    Row::new("stock kernel to /init, emulated host", &guests)
        .floor("the same kernel on the emulated host itself", &hosts)
        .p50_within(Duration::from_secs(20))
}

fn one() -> Result<StockBoot, LabError> {
    let artifacts = Artifacts::find(
        Path::new("target"),
        Some(evertwin_binary()),
        false,
        "qemu-system-x86_64",
    )?;
    let run = Run::new(Path::new("target"), artifacts, Duration::from_secs(600))?;
    let times = run.stock_boot()?;
    run.forget();
    Ok(times)
}
