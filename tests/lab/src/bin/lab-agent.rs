//! The agent of the lab's hosts (process 1), and the tools that run on them.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use evertwin::lab::client::LoadOptions;
use evertwin_lab::agent;

/// Parts of the lab that run on its hosts.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Load a key-value server over one connection and judge every answer.
    Judge {
        /// The server.
        to: SocketAddr,
        /// Commands that may be unanswered at once.
        #[arg(long, default_value_t = 4)]
        depth: usize,
        /// The connection counts as lost after so many seconds without an answer.
        #[arg(long, default_value_t = 60)]
        patience: u64,
    },
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        if let Err(error) = agent::serve() {
            eprintln!("agent: {error}");
        }
        // The kernel panics when process 1 ends, and the machine ends with it (-no-reboot, panic=-1).
        return ExitCode::FAILURE;
    }
    let Tool::Judge {
        to,
        depth,
        patience,
    } = Cli::parse().tool;
    let options = LoadOptions {
        depth,
        keys: 1 << 10,
        patience: Duration::from_secs(patience),
    };
    match agent::judge(to, options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("judge: {to}: {error}");
            ExitCode::FAILURE
        }
    }
}
