//! One emulated host on no network: a place for a program that needs `/dev/kvm`, on a machine that has none, and for
//! measuring the boot of a stock kernel.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use evertwin::lab::events::LineLog;
use rustix::process::Signal;

use crate::error::LabError;
use crate::host::{Build, Ended, Host, RemoteProcess};
use crate::lab::{HostName, make_disk};
use crate::runner::Run;

/// Memory of the host: two twins and their tools.
const MEMORY_MIB: u32 = 2048;
/// The program may take its time: whoever started it knows how long.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// The words with which the hosts' process 1, and the guest's, begin.
const HOST_BEGINS: &str = "lab-agent: begins";
const GUEST_BEGINS: &str = "initrd: begins";

/// Runs a command with Debian's tools as the root of a mount namespace: in a mere chroot nobody may make a user namespace
/// (user_namespaces(7)).
const IN_DEBIAN: &[&str] = &[
    "/bin/busybox",
    "unshare",
    "-m",
    "/bin/busybox",
    "sh",
    "-c",
    "cd /debian && /bin/busybox mount --move . / && exec /bin/busybox chroot . /usr/bin/env \"$@\"",
    "sh",
];

/// How long one kernel took from its start to its process 1.
#[derive(Clone, Copy, Debug)]
pub struct StockBoot {
    /// On the emulated machine, with the machine's own start.
    pub host: Duration,
    /// In a guest of that machine, from `evertwin run` on.
    pub guest: Duration,
}

impl Run {
    /// Boots a host and runs a command in it, among Debian's tools, with `/tmp/evertwin` and a copy of the directory
    /// `files` at `/mnt`. What it prints is printed as it comes.
    ///
    /// # Errors
    /// The host does not boot, or its machine ends.
    pub fn in_host(&self, files: Option<&Path>, argv: &[String]) -> Result<Ended, LabError> {
        let mut host = self.lone_host(files)?;
        host.power_on()?;
        host.await_boot()?;
        host.run(&["/bin/busybox", "cp", "/evertwin", "/debian/tmp/evertwin"])?;
        let words = argv.iter().map(String::as_str);
        let argv: Vec<&str> = IN_DEBIAN.iter().copied().chain(words).collect();
        let process = host.start("command", &argv, &[])?;
        let ended = show(&process)?;
        match host.ended_by_itself() {
            Some(reason) => Err(LabError::Host {
                host: host.name().as_str(),
                reason,
            }),
            None => {
                self.forget();
                Ok(ended)
            }
        }
    }

    /// Measures the boot of Debian's kernel in a guest, and on the emulated machine under it.
    ///
    /// # Errors
    /// One of them does not boot.
    pub fn stock_boot(&self) -> Result<StockBoot, LabError> {
        let mut host = self.lone_host(None)?;
        let began = Instant::now();
        host.power_on()?;
        let up = host.await_console(HOST_BEGINS)?;
        host.await_boot()?;
        let argv = [
            "/evertwin",
            "run",
            "--kernel",
            "/guest/vmlinuz",
            "--initrd",
            "/guest/initrd",
            "--memory",
            "256M",
            "--cmdline",
            "console=ttyS0 quiet panic=-1 ipv6.disable=1 mitigations=off",
        ];
        let started = Instant::now();
        let vm = host.start("evertwin", &argv, &[])?;
        let booted = vm.await_output(0, GUEST_BEGINS)?;
        host.signal(vm.name(), Signal::KILL)?;
        vm.await_end()?;
        Ok(StockBoot {
            host: up.at - began,
            guest: booted.at - started,
        })
    }

    fn lone_host(&self, files: Option<&Path>) -> Result<Host, LabError> {
        let name = HostName::A;
        let artifacts = self.artifacts();
        let logs = self.directory();
        Host::new(Build {
            name,
            memory_mib: MEMORY_MIB,
            qemu: artifacts.qemu.clone(),
            kernel: artifacts.guest.kernel.clone(),
            image: self.image().into(),
            root: artifacts.guest.root.clone(),
            disk: Some(make_disk(logs, name, files)?),
            cards: Vec::new(),
            logs: logs.into(),
            sockets: self.sockets().into(),
            patience: PATIENCE,
        })
    }
}

/// Prints what a process writes until its end.
fn show(process: &RemoteProcess) -> Result<Ended, LabError> {
    std::thread::scope(|scope| {
        scope.spawn(|| copy(process.console(), std::io::stdout()));
        scope.spawn(|| copy(process.log(), std::io::stderr()));
    });
    process.await_end()
}

fn copy(log: &LineLog, mut to: impl Write) {
    let mut from = 0;
    while let Ok(line) = log.wait(from, PATIENCE, |_| true) {
        // Nobody may be reading any more; the program still runs to its end.
        let _ = writeln!(to, "{}", line.text);
        from += 1;
    }
}
