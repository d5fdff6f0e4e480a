//! One emulated host: a machine under QEMU, and what the lab does to it.

mod agent;
mod disk;
mod observe;
mod process;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use evertwin::lab::events::Line;
use evertwin::lab::process::Process;

use crate::error::LabError;
use crate::lab::HostName;
use crate::network::Card;
use crate::wire::{Answer, Request};
use agent::Agent;
pub use process::{Ended, RemoteProcess};

/// How long a host may take to boot; the machine that emulates it may be busy.
const BOOT: Duration = Duration::from_secs(300);
/// How long a command on a host may take.
const COMMAND: Duration = Duration::from_secs(300);
/// Most that an agent's answer about a file or signal may take.
const ANSWER: Duration = Duration::from_secs(120);

/// What a host is made of.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub(crate) name: HostName,
    pub(crate) memory_mib: u32,
    /// The emulator, and options that come before the host's own.
    pub(crate) qemu: Vec<String>,
    /// Debian's kernel.
    pub(crate) kernel: PathBuf,
    /// The file system in memory.
    pub(crate) image: PathBuf,
    /// The guest's root image, for its tools and for guests.
    pub(crate) root: PathBuf,
    /// The host's own disk.
    pub(crate) disk: Option<PathBuf>,
    /// The cards and their switches' sockets, in order.
    pub(crate) cards: Vec<(Card, PathBuf)>,
    /// Where logs go.
    pub(crate) logs: PathBuf,
    /// Where the agent's socket is made.
    pub(crate) sockets: PathBuf,
    /// The longest wait for what a process on it should say or do.
    pub(crate) patience: Duration,
}

/// A host. Dropping it cuts its power.
#[derive(Debug)]
pub struct Host {
    build: Build,
    listener: UnixListener,
    machine: Option<Machine>,
}

/// A host's machine while its power is on.
#[derive(Debug)]
struct Machine {
    qemu: Process,
    agent: Agent,
}

impl Host {
    pub(crate) fn new(build: Build) -> Result<Self, LabError> {
        let path = agent_socket(&build);
        let listener = UnixListener::bind(&path)
            .map_err(LabError::io(format!("making {}", path.display())))?;
        Ok(Self {
            build,
            listener,
            machine: None,
        })
    }

    /// The host's name.
    #[must_use]
    pub fn name(&self) -> HostName {
        self.build.name
    }

    /// Switches the power on. [`Host::await_boot`] must follow.
    ///
    /// # Errors
    /// QEMU can't be started.
    pub fn power_on(&mut self) -> Result<(), LabError> {
        self.machine = None;
        let name = format!("host-{}", self.build.name);
        let qemu = Process::start(self.command(), &name, &self.build.logs)?;
        let transcript = self.build.logs.join(format!("{name}.agent.jsonl"));
        let agent = Agent::accept(&self.listener, self.build.name, &qemu, &transcript)?;
        self.machine = Some(Machine { qemu, agent });
        Ok(())
    }

    /// Waits until the host has booted and its network is set up.
    ///
    /// # Errors
    /// It ends, or takes too long.
    pub fn await_boot(&self) -> Result<(), LabError> {
        self.agent()?.await_hello(BOOT)?;
        self.set_up_network()
    }

    fn set_up_network(&self) -> Result<(), LabError> {
        let cards: Vec<Card> = self.build.cards.iter().map(|(card, _)| *card).collect();
        let lines = crate::network::set_up(self.build.name, &cards);
        self.write("/debian/tmp/network", &lines, 0o644)?;
        self.tool(&["ip", "-batch", "/tmp/network"])?;
        Ok(())
    }

    fn command(&self) -> Command {
        let build = &self.build;
        // The emulator ends with the thread that started it, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(&build.qemu);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-machine", "pc", "-accel", "tcg,thread=multi"]);
        command.args(["-cpu", "max,+svm"]);
        // One processor: while QEMU (7.2 to 10.0) emulates SVM on several at once, hosts and guests crash at random.
        command.args(["-smp", "1"]);
        command.args(["-m", &build.memory_mib.to_string()]);
        command.args(["-display", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(&build.kernel);
        command.arg("-initrd").arg(&build.image);
        command.args([
            "-append",
            "console=ttyS0 quiet panic=-1 ipv6.disable=1 net.ifnames=0 mitigations=off",
        ]);
        let mut drive = |number: usize, path: &Path, options: &str| {
            let id = format!("disk{number}");
            let file = path.display();
            command.args([
                "-drive",
                &format!("id={id},file={file},format=raw,if=none,{options}"),
            ]);
            let slot = 4 + number;
            command.args([
                "-device",
                &format!("virtio-blk-pci,drive={id},addr={slot:#x}"),
            ]);
        };
        drive(0, &build.root, "readonly=on");
        if let Some(disk) = &build.disk {
            drive(1, disk, "cache=unsafe");
        }
        command.args(["-device", "virtio-serial-pci,addr=0x3"]);
        let socket = agent_socket(build);
        command.args([
            "-chardev",
            &format!("socket,id=agent,path={}", socket.display()),
        ]);
        command.args([
            "-device",
            "virtserialport,chardev=agent,name=org.evertwin.lab",
        ]);
        command.args(["-device", "virtio-rng-pci,addr=0x6"]);
        for (number, (card, socket)) in build.cards.iter().enumerate() {
            let id = format!("net{number}");
            let path = socket.display();
            let net = format!("stream,id={id},server=off,addr.type=unix,addr.path={path}");
            command.args(["-netdev", &net]);
            let mac = card.mac(build.name);
            let slot = 8 + number;
            let device = format!("virtio-net-pci,netdev={id},mac={mac},addr={slot:#x},romfile=");
            command.args(["-device", &device]);
        }
        command
    }

    fn agent(&self) -> Result<&Agent, LabError> {
        match &self.machine {
            Some(machine) => Ok(&machine.agent),
            None => Err(self.off()),
        }
    }

    fn off(&self) -> LabError {
        LabError::Host {
            host: self.build.name.as_str(),
            reason: "its power is off".to_owned(),
        }
    }

    /// Waits for a line on the machine's serial console.
    ///
    /// # Errors
    /// It does not come in time, or the machine ends.
    pub(crate) fn await_console(&self, text: &str) -> Result<Line, LabError> {
        let Some(machine) = &self.machine else {
            return Err(self.off());
        };
        let wanted = |line: &Line| line.text.contains(text);
        let found = machine.qemu.console().wait(0, BOOT, wanted);
        found.map_err(|_| LabError::Host {
            host: self.build.name.as_str(),
            reason: format!("no \"{text}\" on its console"),
        })
    }

    /// Cuts the power.
    pub fn power_off(&mut self) {
        self.machine = None;
    }

    /// Freezes the whole machine.
    pub fn freeze(&self) {
        if let Some(machine) = &self.machine {
            machine.qemu.freeze();
        }
    }

    /// Lets a frozen machine go on.
    pub fn thaw(&self) {
        if let Some(machine) = &self.machine {
            machine.qemu.thaw();
        }
    }

    /// QEMU's last words, if the machine has ended although nobody cut its power.
    #[must_use]
    pub fn ended_by_itself(&self) -> Option<String> {
        let machine = self.machine.as_ref()?;
        let last = || machine.qemu.log().lines().pop().map(|line| line.text);
        (!machine.qemu.is_running()).then(|| last().unwrap_or_default())
    }

    /// Runs a command of the host's own file system to its end and returns its output.
    ///
    /// # Errors
    /// [`LabError::Command`] if it fails.
    pub fn run(&self, argv: &[&str]) -> Result<String, LabError> {
        let command = argv.join(" ");
        let argv = argv.iter().map(|&word| word.to_owned()).collect();
        let answer = self.agent()?.ask(Request::Run { argv }, COMMAND)?;
        let Answer::Ended {
            code,
            output,
            error,
        } = answer
        else {
            return Err(self.agent()?.confused("a command"));
        };
        if code == Some(0) {
            return Ok(output);
        }
        Err(LabError::Command {
            host: self.build.name.as_str(),
            command,
            outcome: match code {
                Some(code) => format!("ended with {code}"),
                None => "was killed".to_owned(),
            },
            message: format!("{} {}", error.trim(), output.trim()),
        })
    }

    /// Runs one of Debian's tools to its end and returns its output.
    ///
    /// # Errors
    /// [`LabError::Command`] if it fails.
    pub fn tool(&self, argv: &[&str]) -> Result<String, LabError> {
        self.run(&[CHROOT, argv].concat())
    }

    /// Starts a program of the host's own file system.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(
        &self,
        name: &str,
        argv: &[&str],
        env: &[(String, String)],
    ) -> Result<RemoteProcess, LabError> {
        let argv = argv.iter().map(|&word| word.to_owned()).collect();
        let build = &self.build;
        self.agent()?
            .start(name, argv, env.to_vec(), &build.logs, build.patience)
    }

    /// Starts one of Debian's tools.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start_tool(&self, name: &str, argv: &[&str]) -> Result<RemoteProcess, LabError> {
        self.start(name, &[CHROOT, argv].concat(), &[])
    }

    /// Sends a signal to a process that was started here.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, name: &str, signal: rustix::process::Signal) -> Result<(), LabError> {
        let request = Request::Signal {
            name: name.to_owned(),
            signal: signal.as_raw(),
        };
        self.agent()?.ask(request, ANSWER).map(drop)
    }

    /// Writes to the standard input of a process that was started here.
    ///
    /// # Errors
    /// It has ended.
    pub fn input(&self, name: &str, text: &str) -> Result<(), LabError> {
        let request = Request::Input {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        self.agent()?.ask(request, ANSWER).map(drop)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self, path: &str, text: &str, mode: u32) -> Result<(), LabError> {
        let request = Request::Write {
            path: path.to_owned(),
            text: text.to_owned(),
            mode,
        };
        self.agent()?.ask(request, ANSWER).map(drop)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It can't be read.
    pub fn read(&self, path: &str) -> Result<String, LabError> {
        let request = Request::Read {
            path: path.to_owned(),
        };
        match self.agent()?.ask(request, ANSWER)? {
            Answer::Contents(text) => Ok(text),
            _ => Err(self.agent()?.confused("a file")),
        }
    }

    /// Delays and loses frames that leave by a card: `netem` as tc-netem(8) describes it, for instance
    /// `["delay", "20ms", "loss", "1%"]`.
    ///
    /// # Errors
    /// `tc` refuses.
    pub fn netem(&self, card: Card, netem: &[&str]) -> Result<(), LabError> {
        let start = [
            "tc",
            "qdisc",
            "replace",
            "dev",
            card.device(),
            "root",
            "netem",
        ];
        self.tool(&[&start[..], netem].concat()).map(drop)
    }

    /// Sets the host's clock forward or back.
    ///
    /// # Errors
    /// The clock can't be set.
    pub fn jump_clock(&self, seconds: i64) -> Result<(), LabError> {
        let now = self.run(&["/bin/busybox", "date", "+%s"])?;
        let now: i64 = now.trim().parse().unwrap_or(0);
        let then = format!("@{}", now + seconds);
        self.run(&["/bin/busybox", "date", "-s", &then]).map(drop)
    }
}

/// Debian's tools are in a root of their own. By env(1), since busybox prefers its own tools of the same names.
const CHROOT: &[&str] = &["/bin/busybox", "chroot", "/debian", "/usr/bin/env"];

fn agent_socket(build: &Build) -> PathBuf {
    build.sockets.join(format!("agent-{}", build.name))
}
