//! The `evertwin` command.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use evertwin::cli::{Cli, Command, LogFormat};
use evertwin::control::Request;
use evertwin::operate::{self, OperateError};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

fn main() -> ExitCode {
    let started = Instant::now();
    let cli = Cli::parse();
    // Named points where a test may break things; nothing without the `failpoints` feature.
    let _failpoints = fail::FailScenario::setup();
    if let Err(error) = start_log(&cli) {
        eprintln!("evertwin: {error}");
        return ExitCode::FAILURE;
    }
    match execute(&cli, started) {
        Ok(code) => code,
        Err(error) => {
            // The terminal is its own again here: guards have been dropped.
            eprintln!("evertwin: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(cli: &Cli) -> Result<(), String> {
    let filter: Targets = cli
        .log
        .parse()
        .map_err(|e| format!("--log {}: {e}; try info or debug", cli.log))?;
    let log = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match cli.log_format {
        LogFormat::Text => log.with(lines.with_target(false)).init(),
        LogFormat::Json => log.with(lines.json().flatten_event(true)).init(),
    }
    Ok(())
}

fn execute(cli: &Cli, started: Instant) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match &cli.command {
        Command::Run(args) => {
            let (vm, replication) = args.resolve()?;
            if let Some(unprotected) = args.unprotected()? {
                evertwin::run::check_alone(&vm.name, &unprotected)?;
            }
            let outcome = evertwin::run::run(&vm, replication.as_ref(), started)?;
            Ok(outcome.code().into())
        }
        Command::Status(target) => Ok(operate::status(target)?),
        Command::Switchover(target) => Ok(operate::command(target, Request::Switchover)?),
        Command::Leave(target) => Ok(operate::command(target, Request::Leave)?),
        Command::Promote(promote) if promote.peer_is_dead => {
            Ok(operate::command(&promote.twin, Request::Promote)?)
        }
        Command::Promote(_) => Err(OperateError::PeerMayLive.into()),
        Command::Scrub(target) => Ok(operate::scrub(target)?),
        Command::Grow(options) => Ok(operate::grow(options)?),
        Command::Level(target) => Ok(operate::level(target)?),
        Command::Keys(options) => {
            evertwin::keys::make(&options.directory, &options.node, options.renew)?;
            print!(
                "{}",
                evertwin::keys::advice(&options.directory, &options.node)
            );
            Ok(ExitCode::SUCCESS)
        }
        // No thread has been started yet, as these two demand.
        Command::Demo(options) => Ok(evertwin::demo::run(options.slow).into()),
        Command::Bench(options) => Ok(evertwin::bench::run(options).into()),
    }
}
