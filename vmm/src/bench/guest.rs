//! Guests to measure, alone or with a twin.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::BenchError;
use crate::lab::epoch::{self, Epoch};
use crate::lab::interrupt::Cleaner;
use crate::lab::pair::{Pair, PairConfig};
use crate::lab::process::Process;
use crate::lab::topology::{Node, Topology};
use crate::lab::{LabError, own_binary};

/// The longest wait for any single step, on a machine that is not slow.
const STEP: Duration = Duration::from_secs(15);

/// This machine, and what is started on it.
#[derive(Debug)]
pub(super) struct Host {
    evertwin: PathBuf,
    directory: PathBuf,
    cleaner: Cleaner,
    slow: u32,
    started: usize,
}

impl Host {
    /// From now on everything ends on Ctrl-C, and the directory goes.
    pub(super) fn new(directory: &Path, slow: u32) -> Result<Self, LabError> {
        Ok(Self {
            evertwin: own_binary()?,
            directory: directory.to_owned(),
            cleaner: Cleaner::install("bench", directory)?,
            slow,
            started: 0,
        })
    }

    /// The longest wait for any single step.
    pub(super) fn step(&self) -> Duration {
        STEP * self.slow
    }

    /// So long on a machine that is not slow.
    pub(super) fn lasting(&self, time: Duration) -> Duration {
        time * self.slow
    }

    /// A directory that nothing else uses.
    pub(super) fn new_directory(&mut self) -> Result<PathBuf, LabError> {
        self.started += 1;
        let directory = self.directory.join(self.started.to_string());
        let what = format!("making {}", directory.display());
        std::fs::create_dir(&directory).map_err(LabError::io(what))?;
        Ok(directory)
    }

    /// Starts a guest without a twin and waits until it is ready.
    pub(super) fn bare(&mut self, config: &PairConfig) -> Result<Guest, BenchError> {
        let directory = self.new_directory()?;
        let topology = Topology::new()?;
        let mut command = topology.host(Node::A).command(&self.evertwin);
        command.args(config.bare_arguments());
        let mut process = Process::start(command, "bare", &directory)?;
        self.cleaner.watch(process.handle());
        process.wait_for_console("ready", self.step())?;
        Ok(Guest::Bare(Box::new(process), topology))
    }

    /// Starts a guest with its twin and waits until it is ready, and protected.
    pub(super) fn protected(&mut self, config: &PairConfig) -> Result<Guest, BenchError> {
        let directory = self.new_directory()?;
        let config = config.slowed(self.slow);
        let mut pair = Pair::new(Topology::new()?, &self.evertwin, &directory, &config)?;
        pair.set_env("EVERTWIN_LOG", epoch::LOG);
        for node in [Node::A, Node::B] {
            let twin = pair.start(node)?;
            self.cleaner.watch(twin.handle());
        }
        let step = self.step();
        let primary = pair.twin(Node::A);
        primary.wait_for_event("protected", step)?;
        primary.wait_for_console("ready", step)?;
        let from = primary.log().len();
        Ok(Guest::Protected(Box::new(pair), from))
    }
}

/// A guest that is ready. Its processes go before the network that they are in.
#[derive(Debug)]
pub(super) enum Guest {
    /// Without a twin.
    Bare(Box<Process>, Topology),
    /// With one, and so many lines in the primary's log until it was ready.
    Protected(Box<Pair>, usize),
}

impl Guest {
    pub(super) fn topology(&self) -> &Topology {
        match self {
            Self::Bare(_, topology) => topology,
            Self::Protected(pair, _) => &pair.topology,
        }
    }

    /// The process that it began in.
    pub(super) fn process(&mut self) -> &mut Process {
        match self {
            Self::Bare(process, _) => process,
            Self::Protected(pair, _) => pair.twin(Node::A),
        }
    }

    /// Epochs that the primary has logged from a line on.
    pub(super) fn epochs_since(&mut self, line: usize) -> Vec<Epoch> {
        let lines = self.process().log().lines();
        lines.iter().skip(line).filter_map(Epoch::of).collect()
    }

    /// Demands that it has been protected all the time since it was ready, if it has a twin.
    pub(super) fn undisturbed(&mut self) -> Result<(), BenchError> {
        let lost = match self {
            Self::Bare(..) => false,
            Self::Protected(pair, from) => pair.twin(Node::A).has_event_since(*from, "link down"),
        };
        match lost {
            true => Err(BenchError::Disturbed),
            false => Ok(()),
        }
    }
}

/// A key-value server without a disk.
pub(super) fn key_value() -> PairConfig {
    PairConfig {
        cmdline: "workload=kv ip=10.77.0.2/24".into(),
        disk: None,
        ..PairConfig::default()
    }
}
