//! Three hosts and the networks between them.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::error::{LabError, demand};
use crate::host::{Build, Host, RemoteProcess};
use crate::image::Artifacts;
use crate::network::{Card, GUEST_MAC, NETWORKS};
use crate::one_speaker::{self, Releaser};
use crate::switch::{Capture, Switch};

/// Bytes of a twin's host's own disk; it is sparse.
pub(crate) const DISK_BYTES: u64 = 2 << 30;

/// One of the lab's hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostName {
    /// Node `a`, which starts as the primary.
    A,
    /// Node `b`.
    B,
    /// The guest's clients, and the arbiter.
    Client,
}

impl HostName {
    /// The name as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::Client => "client",
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a scenario wants of its lab.
#[derive(Clone, Copy, Debug)]
pub struct LabOptions {
    /// Memory of a twin's host.
    pub memory_mib: u32,
    /// Whether there is a second host for a twin.
    pub twins: bool,
    /// Whether hosts have the previous monitor, too.
    pub upgrades: bool,
}

/// A lab that is up and running. Dropping it cuts the power of all hosts.
#[derive(Debug)]
pub struct Lab {
    /// Host a.
    pub a: Host,
    /// Host b, if the scenario has twins.
    pub b: Option<Host>,
    /// The client's host.
    pub client: Host,
    /// All monitors that were started, for their rights to speak.
    pub(crate) monitors: Vec<RemoteProcess>,
    /// How often the scenario itself makes the guest reset.
    pub(crate) resets: usize,
    /// The key that opens the Debian guest by ssh.
    pub(crate) ssh_key: PathBuf,
    replication: Switch,
    guest_lan: Switch,
    management: Switch,
}

impl Lab {
    /// Builds and boots a lab. Its logs and the capture of the guest's LAN go to `directory`, its sockets to
    /// `sockets`, whose path must be short. `image` is the hosts' file system. What should come and does not is
    /// waited for as long as `patience`.
    ///
    /// # Errors
    /// Anything that keeps a host from running.
    pub fn boot(
        artifacts: &Artifacts,
        image: &Path,
        directory: &Path,
        sockets: &Path,
        options: LabOptions,
        patience: Duration,
    ) -> Result<Self, LabError> {
        let switch = |(card, hosts): &(Card, &[HostName])| {
            let name = card.device();
            let capture = match card {
                Card::GuestLan => {
                    let path = directory.join("guest-lan.pcapng");
                    let made = Capture::create(&path, hosts).map_err(std::io::Error::other);
                    Some(made.map_err(LabError::io(format!("making {}", path.display())))?)
                }
                _ => None,
            };
            Switch::new(name, hosts, sockets, GUEST_MAC, capture)
                .map_err(LabError::io(format!("making the switch {name}")))
        };
        let [replication, guest_lan, management] = NETWORKS else {
            unreachable!("the lab has three networks");
        };
        let (replication, guest_lan, management) = (
            switch(replication)?,
            switch(guest_lan)?,
            switch(management)?,
        );
        let host = |name: HostName| {
            let twin = name != HostName::Client;
            Host::new(Build {
                name,
                memory_mib: if twin { options.memory_mib } else { 512 },
                qemu: artifacts.qemu.clone(),
                kernel: artifacts.guest.kernel.clone(),
                image: image.into(),
                root: artifacts.guest.root.clone(),
                disk: if twin {
                    Some(make_disk(directory, name, None)?)
                } else {
                    None
                },
                cards: cards(name, sockets),
                logs: directory.into(),
                sockets: sockets.into(),
                patience,
            })
        };
        let mut lab = Self {
            a: host(HostName::A)?,
            b: match options.twins {
                true => Some(host(HostName::B)?),
                false => None,
            },
            client: host(HostName::Client)?,
            monitors: Vec::new(),
            resets: 0,
            ssh_key: artifacts.guest.ssh_key.clone(),
            replication,
            guest_lan,
            management,
        };
        // All boot at once.
        for host in lab.hosts_mut() {
            host.power_on()?;
        }
        for host in lab.hosts_mut() {
            host.await_boot()?;
        }
        Ok(lab)
    }

    fn hosts_mut(&mut self) -> impl Iterator<Item = &mut Host> {
        [&mut self.a, &mut self.client]
            .into_iter()
            .chain(&mut self.b)
    }

    /// Checks that no machine has ended but those whose power was cut.
    ///
    /// # Errors
    /// [`LabError::Host`] naming the host.
    pub fn check_machines(&self) -> Result<(), LabError> {
        for host in [&self.a, &self.client].into_iter().chain(&self.b) {
            if let Some(last) = host.ended_by_itself() {
                return Err(LabError::Host {
                    host: host.name().as_str(),
                    reason: format!("its machine has ended by itself ({last})"),
                });
            }
        }
        Ok(())
    }

    /// Writes down what the twins' hosts are doing, for whoever looks for why a scenario failed. A host that can't say
    /// is left out.
    pub fn observe(&self) {
        for host in [&self.a].into_iter().chain(&self.b) {
            let _ = host.observe();
        }
    }

    /// Checks that the guest has reset or panicked no more often than the scenario made it: a guest whose state is
    /// wrong may well recover by booting again.
    ///
    /// # Errors
    /// It has.
    pub fn check_resets(&self) -> Result<(), LabError> {
        let reset = |text: &str| text.ends_with(": booting it again");
        let logs = self
            .monitors
            .iter()
            .flat_map(|monitor| monitor.log().lines());
        let resets = logs
            .filter(|line| line.message().as_deref().is_some_and(reset))
            .count();
        demand!(
            resets == self.resets,
            "the guest was reset {resets} times, and {} times on purpose",
            self.resets
        );
        Ok(())
    }

    /// A host by its name.
    ///
    /// # Panics
    /// If the scenario did not ask for it.
    #[must_use]
    pub fn host(&self, name: HostName) -> &Host {
        match name {
            HostName::A => &self.a,
            HostName::B => self.b.as_ref().expect("the scenario has twins"),
            HostName::Client => &self.client,
        }
    }

    /// A host by its name, to switch it on or off.
    ///
    /// # Panics
    /// If the scenario did not ask for it.
    pub fn host_mut(&mut self, name: HostName) -> &mut Host {
        match name {
            HostName::A => &mut self.a,
            HostName::B => self.b.as_mut().expect("the scenario has twins"),
            HostName::Client => &mut self.client,
        }
    }

    /// Lets nothing that `from` sends to `to` on a network pass any more.
    pub fn cut(&self, network: Card, from: HostName, to: HostName) {
        self.switch(network).cut(from, to);
    }

    /// Takes all cuts of a network back.
    pub fn heal(&self, network: Card) {
        self.switch(network).heal();
    }

    fn switch(&self, network: Card) -> &Switch {
        match network {
            Card::Replication => &self.replication,
            Card::GuestLan => &self.guest_lan,
            Card::Management => &self.management,
        }
    }

    /// How many frames a host has sent in the guest's name so far.
    #[must_use]
    pub fn frames_from(&self, host: HostName) -> usize {
        let spoken = self.guest_lan.spoken();
        spoken.iter().filter(|frame| frame.from == host).count()
    }

    /// Checks that only one host at a time spoke for the guest, each by a right of its own.
    ///
    /// # Errors
    /// [`LabError::TwoSpeakers`].
    pub fn check_one_speaker(&self) -> Result<(), LabError> {
        let periods = one_speaker::periods(self.guest_lan.spoken());
        Ok(one_speaker::check_one_speaker(periods, self.releasers())?)
    }

    /// The rights to speak that the monitors told of.
    fn releasers(&self) -> Vec<Releaser> {
        let mut releasers = Vec::new();
        for monitor in &self.monitors {
            for line in monitor.log().lines() {
                let message = line.message();
                let rights = [
                    "guest running",
                    "promoted",
                    "not handed over: the guest goes on here",
                ];
                if message.is_some_and(|message| rights.contains(&message.as_str())) {
                    let generation = line.field("generation");
                    releasers.push(Releaser {
                        // A plain VM has no generations and never loses its right.
                        generation: generation.and_then(|value| value.as_u64()).unwrap_or(0),
                        host: monitor.host(),
                    });
                }
            }
        }
        releasers
    }
}

/// A host's cards and the sockets of the switches that they are plugged into.
fn cards(host: HostName, sockets: &Path) -> Vec<(Card, PathBuf)> {
    NETWORKS
        .iter()
        .filter(|(_, hosts)| hosts.contains(&host))
        .map(|(card, _)| (*card, Switch::socket(sockets, card.device(), host)))
        .collect()
}

/// A new disk of a host's own, with a file system that holds a copy of the directory `files`, or nothing.
pub(crate) fn make_disk(
    directory: &Path,
    host: HostName,
    files: Option<&Path>,
) -> Result<PathBuf, LabError> {
    let path = directory.join(format!("host-{host}.disk"));
    let what = format!("making {}", path.display());
    let make = || {
        File::create(&path)?.set_len(DISK_BYTES)?;
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-t", "ext4", "-O", "^has_journal"]);
        if let Some(files) = files {
            command.arg("-d").arg(files);
        }
        command.arg(&path);
        // Debian keeps it where an ordinary user's PATH does not look.
        let paths = std::env::var("PATH").unwrap_or_default();
        let output = command
            .env("PATH", format!("{paths}:/usr/sbin:/sbin"))
            .output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(std::io::Error::other(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            )),
        }
    };
    make().map_err(LabError::io(what))?;
    Ok(path)
}
