//! The same guest in four ways, which are measured in turns.

use std::time::Duration;

use evertwin::config::FastPath;
use evertwin::lab::epoch::{self, Epoch};
use evertwin::lab::pair::PairConfig;
use evertwin::lab::process::Process;
use evertwin::lab::topology::{Node, Topology};
use evertwin_tests::lab::{STEP, TestLab, evertwin_binary};
use evertwin_tests::stage::Stage;

use crate::logging::Logged;
use crate::pin::{self, Side};
use crate::plaintext;
use crate::report::Row;

/// To measure an arm without losing the link.
const ATTEMPTS: usize = 3;

/// What is done with a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// Nothing: `evertwin run` without a twin.
    Bare,
    /// Its writes are logged and the log is read once per epoch; nothing is copied, sent or held.
    Logging,
    /// A standby follows it, over TLS.
    Protected,
    /// A standby follows it, over a link that is not encrypted.
    Plaintext,
}

impl Arm {
    /// All of them, in the order in which they take turns.
    pub const ALL: [Self; 4] = [Self::Bare, Self::Logging, Self::Protected, Self::Plaintext];

    /// Its name in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Logging => "dirty logging only",
            Self::Protected => "protected",
            Self::Plaintext => "protected, no TLS",
        }
    }

    /// Where it stands in [`ALL`](Self::ALL).
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

/// A guest of pico, and its twins if there are any. The guest has a card of the lab's LAN.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The guest's command line.
    pub cmdline: String,
    /// Its memory, as in a config file.
    pub memory: String,
    /// How many vCPUs it has where it is protected. Pico runs on the first; the others wait for their start.
    pub vcpus: u8,
    /// The longest epoch.
    pub epoch: Duration,
    /// How often the log is read if that is all; the length of an epoch, if not said.
    pub harvest: Option<Duration>,
    /// Whether the primary logs each epoch.
    pub log_epochs: bool,
    /// What the twins do to make epochs cheap.
    pub fast_path: FastPath,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            cmdline: "workload=kv ip=10.77.0.2/24".into(),
            memory: "128M".into(),
            vcpus: 1,
            epoch: PairConfig::default().epoch,
            harvest: None,
            log_epochs: false,
            fast_path: FastPath::default(),
        }
    }
}

/// A guest that runs, its processes pinned.
#[derive(Debug)]
pub enum Running {
    /// One process. It goes before its lab.
    Alone(Box<Process>, TestLab),
    /// Two.
    Pair(Box<Stage>),
}

impl Setup {
    /// The same with one of the optimisations turned off, to see its worth.
    #[must_use]
    pub fn switched(&self, off: impl FnOnce(&mut FastPath)) -> Self {
        let mut setup = self.clone();
        off(&mut setup.fast_path);
        setup
    }

    /// Starts the guest, and waits until it is ready, and protected if it is to be.
    ///
    /// # Panics
    /// If it does not get there.
    #[must_use]
    pub fn start(&self, arm: Arm) -> Running {
        let mut running = match arm {
            Arm::Bare => {
                let lab = TestLab::new();
                let process = lab.evertwin("bare", self.pair_config().bare_arguments());
                Running::Alone(Box::new(process), lab)
            }
            Arm::Logging => {
                let lab = TestLab::new();
                let command = self.logged().command(lab.topology.host(Node::A));
                let process = Process::start(command, "logging", lab.directory());
                let process = process.unwrap_or_else(|error| panic!("{error}"));
                Running::Alone(Box::new(process), lab)
            }
            Arm::Protected | Arm::Plaintext => Running::Pair(Box::new(self.pair(arm))),
        };
        pin::process(running.guest().id(), Side::Guest);
        let ready = running.guest().wait_for_console("ready", STEP);
        ready.unwrap_or_else(|error| panic!("{error}"));
        running
    }

    fn pair(&self, arm: Arm) -> Stage {
        let mut stage = Stage::new(&self.pair_config());
        if arm == Arm::Plaintext {
            plaintext::prepare(&stage);
        }
        if self.log_epochs {
            let pair = &mut stage.pair;
            pair.set_env("EVERTWIN_LOG", epoch::LOG);
        }
        for (node, side) in [(Node::A, Side::Guest), (Node::B, Side::Other)] {
            let twin = stage.pair.start(node);
            pin::process(twin.unwrap_or_else(|error| panic!("{error}")).id(), side);
        }
        stage.wait_for(Node::A, "protected");
        stage
    }

    fn pair_config(&self) -> PairConfig {
        PairConfig {
            cmdline: self.cmdline.clone(),
            memory: self.memory.clone(),
            vcpus: self.vcpus,
            disk: None,
            epoch: self.epoch,
            fast_path: self.fast_path,
            ..PairConfig::default()
        }
    }

    /// For a guest in this process, or of this program.
    #[must_use]
    pub fn logged(&self) -> Logged {
        Logged {
            cmdline: self.cmdline.clone(),
            memory: self.memory.clone(),
            net: true,
            every: self.harvest.unwrap_or(self.epoch),
        }
    }

    /// The commands of an arm, as in the report.
    #[must_use]
    pub fn commands(&self, arm: Arm) -> Vec<String> {
        let binary = evertwin_binary();
        let name = binary.file_name().unwrap_or_default().to_string_lossy();
        let quoted = |argument: &String| match argument.contains(' ') {
            true => format!("'{argument}'"),
            false => argument.clone(),
        };
        match arm {
            Arm::Bare => {
                let arguments: Vec<_> = self
                    .pair_config()
                    .bare_arguments()
                    .iter()
                    .map(quoted)
                    .collect();
                vec![format!("{name} {}", arguments.join(" "))]
            }
            Arm::Logging => vec![format!(
                "evertwin-bench {} '{}' {} {} net",
                crate::logging::ARGUMENT,
                self.cmdline,
                self.memory,
                self.logged().every.as_micros()
            )],
            Arm::Protected | Arm::Plaintext => {
                let mut config = self.pair_config().to_toml();
                if arm == Arm::Plaintext {
                    config = plaintext::without_keys(&config);
                }
                let log = match self.log_epochs {
                    true => format!("EVERTWIN_LOG={} ", epoch::LOG),
                    false => String::new(),
                };
                let run = |node| format!("{log}{name} run vm.toml --node {node} --log-format json");
                vec![run("a"), run("b"), format!("# vm.toml:\n{config}")]
            }
        }
    }

    /// The commands of all arms.
    #[must_use]
    pub fn all_commands(&self) -> Vec<String> {
        Arm::ALL
            .iter()
            .flat_map(|arm| self.commands(*arm))
            .collect()
    }
}

impl Running {
    /// The process that runs the guest.
    pub fn guest(&mut self) -> &mut Process {
        match self {
            Self::Alone(process, _) => process,
            Self::Pair(stage) => stage.twin(Node::A),
        }
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &TestLab {
        match self {
            Self::Alone(_, lab) => lab,
            Self::Pair(stage) => &stage.lab,
        }
    }

    /// The network.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.lab().topology
    }

    /// The pair, if it is one.
    pub fn stage(&mut self) -> Option<&mut Stage> {
        match self {
            Self::Alone(..) => None,
            Self::Pair(stage) => Some(stage),
        }
    }

    /// Epochs that were logged from a line of the log on.
    pub fn epochs_since(&mut self, line: usize) -> Vec<Epoch> {
        let lines = self.guest().log().lines();
        lines.iter().skip(line).filter_map(Epoch::of).collect()
    }

    /// Whether the link went down from a line of the guest's log on.
    pub fn was_disturbed(&mut self, line: usize) -> bool {
        self.guest().has_event_since(line, "link down")
    }
}

/// Measurements during which a pair has to stay protected. Others may use the machine as well: one that takes a processor
/// away for half a second makes a twin count as dead.
#[derive(Debug, Default)]
pub struct Undisturbed {
    lost: usize,
}

impl Undisturbed {
    /// Starts a guest, measures it, and does so again if its link went down meanwhile.
    ///
    /// # Panics
    /// If that goes wrong several times.
    pub fn measure<T>(&mut self, setup: &Setup, arm: Arm, work: impl Fn(&mut Running) -> T) -> T {
        for _ in 0..ATTEMPTS {
            let mut running = setup.start(arm);
            let from = running.guest().log().len();
            let measured = work(&mut running);
            if !running.was_disturbed(from) {
                return measured;
            }
            self.lost += 1;
        }
        panic!(
            "the link was lost in {ATTEMPTS} attempts to measure `{}`",
            arm.name()
        );
    }

    /// What the report says of it.
    #[must_use]
    pub fn note(&self, row: Row) -> Row {
        match self.lost {
            0 => row,
            lost => row.detail(format!(
                "the link was lost {lost} times, and what it disturbed was measured again"
            )),
        }
    }
}
