//! `evertwin bench`: what protection costs on this machine.
//!
//! Every row starts guests as a user would start them, alone or with a twin, on two hosts made of network namespaces,
//! and compares what it measures with something of the same run.

mod blackout;
mod delay;
mod guest;
mod load;
mod pause;
mod row;
mod samples;
mod throughput;
mod wire;

use std::io::Write as _;
use std::path::Path;

use clap::ValueEnum;

use crate::cli::BenchArgs;
use crate::lab::{LabError, preflight};
use crate::narrate::Narrator;
use guest::Host;
use row::{Outcome, Row};

/// A row is measured so often at most until nothing disturbs it.
const ATTEMPTS: usize = 3;

/// What can be measured, in the order in which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// How long the guest stands still at an epoch's end, with 64 dirty pages.
    Pause,
    /// What protection adds to a round trip over one connection.
    Delay,
    /// Bytes on the replication link, over those of the dirty pages, while a key-value server is written to.
    Wire,
    /// Requests per second of a key-value server with 8 clients, protected over bare.
    Throughput,
    /// How long a client waits when the primary is killed.
    Blackout,
}

impl Name {
    fn text(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn about(self) -> String {
        let value = self.to_possible_value();
        let help = value.and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }

    fn measure(self, host: &mut Host) -> Result<Row, BenchError> {
        match self {
            Self::Pause => pause::measure(host),
            Self::Delay => delay::measure(host),
            Self::Wire => wire::measure(host),
            Self::Throughput => throughput::measure(host),
            Self::Blackout => blackout::measure(host),
        }
    }
}

/// Why a row has no figures.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(
        "the twins lost each other while this was measured: the machine has too much else to do, or is too slow for \
         the usual timeouts (try --slow 10)"
    )]
    Disturbed,
    #[error("the guest committed no epoch of this load: the machine is too slow (try --slow 10)")]
    NoEpochs,
    #[error("the client lost its connection or was answered wrongly: {0}")]
    Wrong(String),
}

/// Measures the rows that are asked for, tells what it does, and ends with one line of counts.
/// Returns the process's exit code: 1 if a row could not be measured.
///
/// To be called while the process still has only one thread: without root it enters a user namespace first.
#[must_use]
pub fn run(options: &BenchArgs) -> u8 {
    let known = Name::value_variants();
    if options.list {
        known
            .iter()
            .for_each(|name| print(&format!("{:<12}{}", name.text(), name.about())));
        return 0;
    }
    let story = match options.json {
        true => Narrator::on_stderr(),
        false => Narrator::on_stdout(),
    };
    let directory = match preflight::prepare("evertwin-bench-") {
        Ok(directory) => directory,
        Err(error) => {
            story.verdict(&format!("bench: FAILED {error}"));
            return 1;
        }
    };
    let wanted = |name: &&Name| options.rows.is_empty() || options.rows.contains(name);
    let names: Vec<Name> = known.iter().filter(wanted).copied().collect();
    let outcomes = match measure_all(&story, directory.path(), &names, options.slow.slow) {
        Ok(outcomes) => outcomes,
        Err(error) => {
            story.verdict(&format!("bench: FAILED {error}"));
            return 1;
        }
    };
    if options.json {
        print(&row::document(&outcomes));
    }
    let failed = outcomes.iter().filter(|row| row.measured.is_err()).count();
    if failed > 0 {
        let kept = directory.keep();
        story.detail(&format!("Configs and logs are kept in {}", kept.display()));
    }
    story.verdict(&format!("bench: rows={} failed={failed}", outcomes.len()));
    u8::from(failed > 0)
}

/// All of them, one after the other. Everything that is started has ended when it returns.
fn measure_all(
    story: &Narrator,
    directory: &Path,
    names: &[Name],
    slow: u32,
) -> Result<Vec<Outcome>, LabError> {
    story.title("evertwin bench: what protection costs on this machine");
    let mut host = Host::new(directory, slow)?;
    let mut outcomes = Vec::new();
    for name in names {
        story.step(&format!("{} ...", name.about()));
        let measured = measure(*name, &mut host).map_err(|error| error.to_string());
        let outcome = Outcome {
            name: name.text(),
            measured,
        };
        story.detail(&outcome.line());
        if let Ok(row) = &outcome.measured {
            story.detail(&format!("({})", row.explained));
        }
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// A row, measured again if something disturbed it.
fn measure(name: Name, host: &mut Host) -> Result<Row, BenchError> {
    for _ in 1..ATTEMPTS {
        match name.measure(host) {
            Err(BenchError::Disturbed) => {}
            measured => return measured,
        }
    }
    name.measure(host)
}

/// A reader that has gone away must not end the command before it tidies up.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
