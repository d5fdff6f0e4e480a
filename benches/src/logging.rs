//! A guest whose writes are logged and whose log is read, and nothing else: what protection costs before anything is
//! copied or sent, and with no output held. It runs in a process of its own, as `evertwin run` does.

use std::process::Command;
use std::time::Duration;

use evertwin::config::{self, KernelSource, VmConfig};
use evertwin::kvm::{self, DirtyLog};
use evertwin::lab::namespace::NetNamespace;
use evertwin::lab::pair::GUEST_MAC;
use evertwin::lab::topology::TAP;
use evertwin::machine::{ConsoleOutput, Machine};

/// The first argument of the process.
pub const ARGUMENT: &str = "--guest-with-dirty-log";

/// The guest and how often its log is read.
#[derive(Debug, Clone)]
pub struct Logged {
    /// Its command line.
    pub cmdline: String,
    /// Its memory, as in a config file.
    pub memory: String,
    /// Whether it has a network card.
    pub net: bool,
    /// The log is read so often.
    pub every: Duration,
}

impl Logged {
    /// The process's command in a host's namespace.
    ///
    /// # Panics
    /// If this program can't be found.
    #[must_use]
    pub fn command(&self, host: &NetNamespace) -> Command {
        let this = std::env::current_exe().unwrap_or_else(|error| panic!("{error}"));
        let mut command = host.command(this);
        command.args([ARGUMENT, &self.cmdline, &self.memory]);
        command.arg(self.every.as_micros().to_string());
        command.args(self.net.then_some("net"));
        command
    }

    /// Of a process's arguments after the first.
    fn parse(arguments: &[String]) -> Option<Self> {
        let [cmdline, memory, every, net @ ..] = arguments else {
            return None;
        };
        Some(Self {
            cmdline: cmdline.clone(),
            memory: memory.clone(),
            net: !net.is_empty(),
            every: Duration::from_micros(every.parse().ok()?),
        })
    }

    /// The same for a machine in this process.
    ///
    /// # Panics
    /// If the memory's size is not one.
    #[must_use]
    pub fn config(&self) -> VmConfig {
        let net = format!("tap={TAP},mac={GUEST_MAC}");
        let nets = self.net.then(|| config::parse_net(&net));
        let memory = config::parse_size(&self.memory);
        let memory = memory.unwrap_or_else(|error| panic!("{error}"));
        VmConfig {
            cmdline: self.cmdline.clone(),
            nets: nets
                .map(|net| net.unwrap_or_else(|error| panic!("{error}")))
                .into_iter()
                .collect(),
            ..VmConfig::alone("logged", KernelSource::Pico, memory)
        }
    }
}

/// Runs the guest until this process is killed.
///
/// # Errors
/// Whatever is wrong with the arguments or the host.
pub fn serve(arguments: &[String]) -> Result<std::convert::Infallible, Box<dyn std::error::Error>> {
    let logged = Logged::parse(arguments).ok_or("wrong arguments")?;
    let kvm = kvm::open()?;
    let console = ConsoleOutput::Writer(Box::new(std::io::stdout()));
    let mut machine = Machine::new(&kvm, &logged.config(), console)?;
    let mut log = DirtyLog::new(machine.vm())?;
    machine.boot()?;
    log.start();
    log.started(machine.vm())?;
    loop {
        std::thread::sleep(logged.every);
        log.read(machine.vm(), |_, _| {})?;
    }
}
