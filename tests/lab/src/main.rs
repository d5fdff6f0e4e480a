//! `make lab`: runs the lab's scenarios.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use evertwin_lab::{Artifacts, Ended, LabError, Run, SCENARIOS, Selection};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Breaks emulated hosts and looks whether the guest minds.
#[derive(Debug, Parser)]
struct Cli {
    /// Scenarios to run; all without any.
    names: Vec<String>,
    /// List the scenarios and do nothing.
    #[arg(long)]
    list: bool,
    /// Run a part of them.
    #[arg(long, conflicts_with = "names")]
    subset: Option<Subset>,
    /// Run no scenario, but this command in one emulated host, which has /dev/kvm, /tmp/evertwin and Debian's tools.
    #[arg(long, value_name = "COMMAND", num_args = 1.., allow_hyphen_values = true, conflicts_with_all = ["names", "subset"])]
    in_host: Vec<String>,
    /// With --in-host: a directory to have a copy of at /mnt.
    #[arg(long, requires = "in_host")]
    files: Option<PathBuf>,
    /// How many run at the same time; each has three emulated machines.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Seconds after which a step that does not come is given up. Everything is emulated, on processors that others
    /// may use as well: this only bounds the wait for what never comes.
    #[arg(long, default_value_t = 600, env = "EVERTWIN_LAB_PATIENCE")]
    patience: u64,
    /// The monitor under test; without it the release build.
    #[arg(long, env = "EVERTWIN_BIN")]
    evertwin: Option<PathBuf>,
    /// The emulator, and options that come before the lab's own.
    #[arg(long, env = "EVERTWIN_LAB_QEMU", default_value = "qemu-system-x86_64")]
    qemu: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Subset {
    /// About five minutes.
    Quick,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        for scenario in SCENARIOS {
            let quick = if scenario.quick { " [quick]" } else { "" };
            println!("{}{quick}: {}", scenario.name, scenario.about);
        }
        return ExitCode::SUCCESS;
    }
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, LabError> {
    let selection = match cli.subset {
        Some(Subset::Quick) => Selection::Quick,
        None if cli.names.is_empty() => Selection::All,
        None => Selection::Named(cli.names),
    };
    let scenarios = selection.scenarios()?;
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let target = target.canonicalize().unwrap_or(target);
    let upgrades = scenarios.iter().any(|scenario| scenario.options.upgrades);
    let artifacts = Artifacts::find(&target, cli.evertwin, upgrades, &cli.qemu)?;
    let run = Run::new(&target, artifacts, Duration::from_secs(cli.patience))?;
    end_on_signals(run.sockets());
    if !cli.in_host.is_empty() {
        return Ok(match run.in_host(cli.files.as_deref(), &cli.in_host)? {
            Ended::Code(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
            Ended::Signal(_) | Ended::WithItsHost => ExitCode::FAILURE,
        });
    }
    Ok(match run.all(&scenarios, cli.jobs) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Ends the lab when it is interrupted. The machines end with the threads that started them; what is left to do is
/// to remove their sockets.
fn end_on_signals(sockets: &Path) {
    let sockets = sockets.to_owned();
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
        return;
    };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("lab: interrupted");
            let _ = std::fs::remove_dir_all(sockets);
            std::process::exit(128 + signal);
        }
    });
}
