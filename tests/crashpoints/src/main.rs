//! `make crashpoints`: kills each twin of a pair at each crash point in turn and judges what its client saw.

mod error;
mod points;
mod site;
mod trial;
mod watch;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use evertwin::lab::preflight;
use evertwin::lab::topology::Node;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

use error::CrashError;
use points::{Cause, POINTS, Point};
use trial::{Outcome, Trial};

/// Lines of a log that are shown of a kill that went wrong.
const SHOWN: usize = 12;

/// Kills each twin of a pair at each crash point in turn and judges what its client saw.
#[derive(Debug, Parser)]
struct Cli {
    /// Only this point, by its name; may be given more than once.
    #[arg(long, value_name = "NAME")]
    point: Vec<String>,
    /// Only this twin dies.
    #[arg(long)]
    node: Option<NodeName>,
    /// List the points and do nothing.
    #[arg(long)]
    list: bool,
    /// Repeats what was left to chance in another run.
    #[arg(long)]
    seed: Option<u64>,
    /// How often each kill is done, each time at another moment.
    #[arg(long, default_value_t = 1)]
    rounds: u64,
    /// Failpoints that break the twins on purpose, as in FAILPOINTS: a run that does not mind judges nothing.
    #[arg(long, value_name = "FAILPOINTS", default_value = "")]
    broken: String,
    /// The monitor under test, built with the feature failpoints; without it, that of `make crashpoints`.
    #[arg(long, env = "EVERTWIN_BIN")]
    evertwin: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum NodeName {
    A,
    B,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        for point in POINTS {
            println!(
                "{:<4} {:<20} {:<12} {:?} dies, the guest {}",
                point.row,
                point.name,
                point.cause,
                point.role,
                match point.then {
                    points::Then::GoesOn => "goes on",
                    points::Then::Restarts => "restarts from its disk",
                }
            );
        }
        return ExitCode::SUCCESS;
    }
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("crashpoints: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode, CrashError> {
    if let Some(name) = unknown(&cli.point) {
        eprintln!("crashpoints: there is no point {name}: see --list");
        return Ok(ExitCode::FAILURE);
    }
    preflight::gain_namespace_rights()?;
    preflight::check()?;
    let built = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../target/sabotage/x86_64-unknown-linux-gnu/release/evertwin");
    let evertwin = cli.evertwin.clone().unwrap_or(built);
    let evertwin = evertwin.canonicalize().map_err(CrashError::io(format!(
        "{}: run `make crashpoints`",
        evertwin.display()
    )))?;
    let directory = tempfile::Builder::new()
        .prefix("evertwin-crashpoints-")
        .tempdir()
        .map_err(CrashError::io("making a directory"))?;
    end_on_signals(directory.path());
    let seed = cli.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("crashpoints: seed={seed}");
    let trials = trials(cli, seed);
    let mut total = Total::default();
    for (index, trial) in trials.iter().enumerate() {
        let place = directory.path().join(index.to_string());
        std::fs::create_dir(&place).map_err(CrashError::io("making a directory"))?;
        let outcome = trial.run(&evertwin, &place, &cli.broken);
        tell(index + 1, trials.len(), trial, &outcome);
        if outcome.is_good() {
            let _ = std::fs::remove_dir_all(&place);
        } else {
            show(&outcome, &place);
        }
        total.add(trial, &outcome);
    }
    Ok(total.finish(directory))
}

fn unknown(names: &[String]) -> Option<&String> {
    let known = |name: &str| POINTS.iter().any(|point| point.name == name);
    names.iter().find(|name| !known(name))
}

fn trials(cli: &Cli, seed: u64) -> Vec<Trial> {
    let wanted =
        |point: &&Point| cli.point.is_empty() || cli.point.iter().any(|name| name == point.name);
    let nodes: &[Node] = match cli.node {
        None => &[Node::A, Node::B],
        Some(NodeName::A) => &[Node::A],
        Some(NodeName::B) => &[Node::B],
    };
    let mut trials = Vec::new();
    for round in 0..cli.rounds {
        for (number, point) in (0..).zip(POINTS).filter(|(_, point)| wanted(point)) {
            for &node in nodes {
                // Whatever else is run, a kill has the same moment under the same seed.
                let all = 2 * POINTS.len() as u64;
                let seed = seed.wrapping_add(round * all + 2 * number + node as u64);
                if point.cause != Cause::FirstStart || node == Node::A {
                    trials.push(Trial { point, node, seed });
                }
            }
        }
    }
    trials
}

fn tell(number: usize, of: usize, trial: &Trial, outcome: &Outcome) {
    let Trial { point, node, .. } = trial;
    println!(
        "{number:>3}/{of} {:<4} {:<20} node={} cause={:<11} passes={:<3} {} acked={} blackout_ms={} protected_ms={}",
        point.row,
        point.name,
        node.name(),
        point.cause.to_string(),
        outcome.passes,
        if outcome.is_good() { "ok" } else { "WRONG" },
        outcome.acked,
        outcome.blackout.as_millis(),
        outcome.protected.as_millis(),
    );
}

/// What went wrong, and the ends of the logs.
fn show(outcome: &Outcome, place: &Path) {
    for trouble in outcome.troubles.iter().chain(&outcome.split) {
        println!("    {trouble}");
    }
    for name in ["a.log", "b.log"] {
        let text = std::fs::read(place.join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        println!("    --- end of {}", place.join(name).display());
        for line in &lines[lines.len().saturating_sub(SHOWN)..] {
            println!("    {line}");
        }
    }
}

/// The counts of a run.
#[derive(Default)]
struct Total {
    points: BTreeSet<&'static str>,
    kills: usize,
    lost: u64,
    split: usize,
    not_reprotected: usize,
    wrong: usize,
}

impl Total {
    fn add(&mut self, trial: &Trial, outcome: &Outcome) {
        self.points.insert(trial.point.name);
        self.kills += usize::from(outcome.killed);
        self.lost += outcome.lost;
        self.split += outcome.split.len();
        self.not_reprotected += usize::from(outcome.unprotected);
        self.wrong += usize::from(!outcome.is_good());
    }

    /// Prints the last lines. What a kill that went wrong has left is kept.
    fn finish(self, directory: TempDir) -> ExitCode {
        if self.wrong > 0 {
            let kept = directory.keep();
            println!(
                "crashpoints: {} went wrong; their files are in {}",
                self.wrong,
                kept.display()
            );
        }
        println!(
            "crashpoints: points={} kills={} lost={} split={} not_reprotected={}",
            self.points.len(),
            self.kills,
            self.lost,
            self.split,
            self.not_reprotected
        );
        ExitCode::from(u8::from(self.wrong > 0))
    }
}

/// Ends the run when it is interrupted. The twins end with the threads that started them.
fn end_on_signals(directory: &Path) {
    let directory = directory.to_owned();
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
        return;
    };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("crashpoints: interrupted");
            let _ = std::fs::remove_dir_all(directory);
            std::process::exit(128 + signal);
        }
    });
}
