//! `make sim`: runs schedules of failures until a number or a time is reached, and deliberate
//! faults in the core until each is caught.

mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use evertwin_protocol::Bug;
use evertwin_simulator::{
    Campaign, Failure, Kept, KeptError, Limit, Schedule, Violation, keep, kept, run, run_traced,
    shrink,
};
use report::Summary;

/// Schedules that a deliberate fault may survive.
const BUG_SCHEDULES: u64 = 100_000;

/// Violations after which a run ends.
const FAILURES: usize = 5;

/// Both twins, an arbiter and clients under a seeded clock and network.
#[derive(Debug, Parser)]
struct Cli {
    /// Schedules to run.
    #[arg(long, default_value_t = 200_000)]
    seeds: u64,
    /// Run until this time is over instead, deliberate faults included: 120s.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "seeds")]
    time: Option<Duration>,
    /// The first seed; others follow. A fresh one without.
    #[arg(long, value_name = "SEED")]
    first: Option<u64>,
    /// Threads.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    jobs: usize,
    /// Run only the schedule of this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Run only the schedule in this file.
    #[arg(long, conflicts_with = "seed")]
    schedule: Option<PathBuf>,
    /// With --seed or --schedule: print what happens.
    #[arg(long)]
    trace: bool,
    /// With --bug: keep the shrunk schedules, as those that broke a sound core are kept.
    #[arg(long, requires = "bug")]
    keep: bool,
    /// Break the core by this deliberate fault.
    #[arg(long, value_parser = bug)]
    bug: Option<Bug>,
}

fn bug(name: &str) -> Result<Bug, String> {
    let named = |bug: &&Bug| format!("{bug:?}") == name;
    Bug::ALL.iter().find(named).copied().ok_or_else(|| {
        let names: Vec<_> = Bug::ALL.iter().map(|bug| format!("{bug:?}")).collect();
        format!("there is no such fault, but {}", names.join(", "))
    })
}

fn main() -> ExitCode {
    match start(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: &Cli) -> Result<bool, KeptError> {
    if let Some(seed) = cli.seed {
        return Ok(replay(cli, &Schedule::generate(seed)));
    }
    if let Some(path) = &cli.schedule {
        return Ok(replay(cli, &Kept::read(path)?.schedule));
    }
    let end = cli.time.map(|time| Instant::now() + time);
    let first = cli.first.unwrap_or_else(report::fresh_seed);
    println!(
        "sim: commit {}, first seed {first}, {} threads",
        report::commit(),
        cli.jobs
    );
    let mut summary = Summary::default();
    for kept in kept(&kept_directory())? {
        if let Some(violation) = run(&kept.schedule, cli.bug).violation {
            let path = kept.path.display();
            println!("sim: {violation}\nsim: repeat with --schedule {path} --trace");
            summary.violations += 1;
        }
    }
    if cli.bug.is_none() {
        break_on_purpose(cli, first, end, &mut summary);
    }
    let campaign = Campaign {
        first,
        limit: end.map_or(Limit::Schedules(cli.seeds), Limit::Until),
        failures: FAILURES,
        jobs: cli.jobs,
        bug: cli.bug,
    };
    let found = campaign.run(|progress| println!("{}", report::progress(&progress, cli.jobs)));
    println!("{}", report::found(&found, cli.jobs));
    for failure in &found.failures {
        explain(cli, failure)?;
    }
    summary.violations += found.failures.len() as u64;
    summary.schedules += found.schedules;
    println!("{summary}");
    Ok(summary.good())
}

/// Runs one schedule and says what it breaks.
fn replay(cli: &Cli, schedule: &Schedule) -> bool {
    let outcome = if cli.trace {
        run_traced(schedule, cli.bug)
    } else {
        run(schedule, cli.bug)
    };
    match &outcome.violation {
        Some(violation) => println!("sim: seed {}: {violation}", schedule.seed),
        None => println!(
            "sim: seed {}: no violation, {:?}",
            schedule.seed, outcome.tally
        ),
    }
    outcome.violation.is_none()
}

/// Breaks the core in each way, until the checkers notice.
fn break_on_purpose(cli: &Cli, first: u64, end: Option<Instant>, summary: &mut Summary) {
    for bug in Bug::ALL {
        let began = Instant::now();
        // All of them take at most half of the time; what does not fit is not counted.
        let half = cli.time.map(|time| time / 2);
        if let (Some(end), Some(half)) = (end, half)
            && began + half > end
        {
            println!("sim: no time is left to try {bug:?}");
            continue;
        }
        let campaign = Campaign {
            first,
            limit: Limit::Schedules(BUG_SCHEDULES),
            failures: 1,
            jobs: cli.jobs,
            bug: Some(bug),
        };
        let found = campaign.run(|progress| println!("{}", report::progress(&progress, cli.jobs)));
        summary.bugs += 1;
        match found.failures.first() {
            Some(Failure { seed, violation }) => {
                summary.caught += 1;
                let Violation { invariant, .. } = violation;
                let schedules = found.schedules;
                println!("sim: {bug:?} caught: {invariant} (seed {seed}, after {schedules})");
            }
            None => println!("sim: {bug:?} NOT CAUGHT in {} schedules", found.schedules),
        }
    }
}

/// Shrinks a failing schedule, keeps it and says how to repeat it.
fn explain(cli: &Cli, failure: &Failure) -> Result<(), KeptError> {
    let Failure { seed, violation } = failure;
    println!("sim: VIOLATION of {violation}");
    println!("sim: seed {seed} at commit {}", report::commit());
    let schedule = Schedule::generate(*seed);
    let faults = schedule.faults.len();
    let short = shrink(&schedule, cli.bug, violation.invariant);
    println!(
        "sim: shrunk from {faults} faults to {}:",
        short.faults.len()
    );
    for fault in &short.faults {
        println!("sim:   at {} us: {:?}", fault.at_us, fault.what);
    }
    if cli.bug.is_some() && !cli.keep {
        return Ok(());
    }
    let path = keep(&kept_directory(), &short, violation)?;
    println!(
        "sim: repeat with: cargo run --release --locked --package evertwin-simulator -- --schedule {} --trace",
        path.display()
    );
    Ok(())
}

fn kept_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kept")
}
