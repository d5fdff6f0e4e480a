//! `evertwin scrub`: both twins' disks, and memories, are compared.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use evertwin_replicator::control::{ScrubCounts, ScrubReport, ScrubStatus};

use super::{OperateError, socket, unexpected};
use crate::cli::ScrubArgs;
use crate::control::{self, Reply, Request};

/// Time between two questions how far it is.
const LOOK: Duration = Duration::from_millis(200);
/// Percent of a pass between two lines that say so.
const STEP: u64 = 10;

/// Has a primary compare them, and shows how that goes until it is over.
///
/// # Errors
/// The twin can't be asked, or does not begin.
pub fn scrub(options: &ScrubArgs) -> Result<ExitCode, OperateError> {
    let (target, memory) = (&options.twin, options.memory);
    let path = socket(target)?.ok_or(OperateError::NoTwin)?;
    let number = match control::ask(&path, Request::Scrub { memory })? {
        Reply::Scrubbing { number } => number,
        other => return Err(unexpected(other)),
    };
    let report = follow(&path, number)?;
    if target.json {
        super::print_json(&report);
    } else {
        println!("scrub: {}", counts(&report.counts));
        if let Some(why) = &report.failure {
            eprintln!("evertwin: the scrub ended early: {why}");
        }
    }
    Ok(match report.is_clean() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Waits for the end of a pass.
fn follow(path: &Path, number: u64) -> Result<ScrubReport, OperateError> {
    let mut told = 0;
    loop {
        let scrub = match control::ask(path, Request::Status)? {
            Reply::Status(status) => status.twin.scrub,
            other => return Err(unexpected(other)),
        };
        let ScrubStatus { pass, last } = scrub.ok_or(OperateError::ScrubLost)?;
        if let Some(last) = last.filter(|last| last.number >= number) {
            return match last.number == number {
                true => Ok(last),
                // So much later that another one has ended, too.
                false => Err(OperateError::ScrubLost),
            };
        }
        let pass = pass.filter(|pass| pass.number == number);
        let pass = pass.ok_or(OperateError::ScrubLost)?;
        if pass.percent() >= told + STEP {
            told = pass.percent() / STEP * STEP;
            eprintln!("scrub: {told} % of {} MiB", pass.of >> 20);
        }
        std::thread::sleep(LOOK);
    }
}

/// In one line.
fn counts(counts: &ScrubCounts) -> String {
    let ScrubCounts {
        bytes,
        differences,
        repaired,
        busy,
        unreadable,
    } = counts;
    format!(
        "bytes={bytes} differences={differences} repaired={repaired} busy={busy} unreadable={unreadable}"
    )
}

/// What `evertwin status` says of it.
pub(super) fn print_status(status: &ScrubStatus) {
    let ScrubStatus { pass, last } = status;
    if let Some(pass) = pass {
        println!(
            "  scrub  {} % of {} MiB, now {}",
            pass.percent(),
            pass.of >> 20,
            pass.what()
        );
    }
    if let Some(last) = last {
        let age = humantime::format_duration(Duration::from_secs(last.age_s));
        let end = match &last.failure {
            Some(why) => format!("ended early: {why}; "),
            None => String::new(),
        };
        println!("  scrub  {age} ago: {end}{}", counts(&last.counts));
    }
}
