//! What a run of many schedules says.

use std::fmt;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use evertwin_simulator::{Found, Progress};

/// The last line.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) schedules: u64,
    pub(crate) violations: u64,
    pub(crate) bugs: u64,
    pub(crate) caught: u64,
}

impl Summary {
    pub(crate) fn good(&self) -> bool {
        self.violations == 0 && self.caught == self.bugs
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            schedules,
            violations,
            bugs,
            caught,
        } = self;
        write!(
            f,
            "sim: schedules={schedules} violations={violations} seeded_bugs={bugs} caught={caught}"
        )
    }
}

pub(crate) fn progress(progress: &Progress, jobs: usize) -> String {
    let Progress {
        schedules,
        failures,
        took,
    } = progress;
    let seconds = took.as_secs_f64();
    let rate = *schedules as f64 / seconds / jobs as f64;
    let seeds: Vec<_> = failures
        .iter()
        .map(|failure| failure.seed.to_string())
        .collect();
    let violations = if seeds.is_empty() {
        "no violations".to_owned()
    } else {
        format!("violations by seeds {}", seeds.join(", "))
    };
    format!(
        "sim: {schedules} schedules in {seconds:.0} s, {rate:.0} per second and core, {violations}"
    )
}

/// The sum of what happened.
pub(crate) fn found(found: &Found, jobs: usize) -> String {
    let Found {
        schedules,
        tally,
        took,
        ..
    } = found;
    let seconds = took.as_secs_f64();
    let rate = *schedules as f64 / seconds.max(1e-9) / jobs as f64;
    format!(
        "sim: {schedules} schedules in {seconds:.1} s: {rate:.0} schedules per second and core\n\
         sim: events={} crashes={} boots={} protected={} slowed={} promotions={} handovers={} fenced={} answers={}\n\
         sim: longest recovery {} ms of simulated time",
        tally.events,
        tally.crashes,
        tally.boots,
        tally.protected,
        tally.slowed,
        tally.promotions,
        tally.handovers,
        tally.fenced,
        tally.answers,
        tally.recovery_us / 1000,
    )
}

/// A seed that was not used before.
pub(crate) fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // Seeds follow each other, so that runs a second apart must not start a second apart.
    now.map_or(0, |now| {
        now.as_secs().wrapping_mul(1_000_000_000) + u64::from(now.subsec_nanos())
    }) & i64::MAX as u64
}

/// The commit that is tested, as far as git knows it.
pub(crate) fn commit() -> String {
    let git = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    match git {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}
