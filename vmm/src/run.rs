//! `evertwin run`: one VM from start to end.

mod again;
mod alone;
mod disks;
mod stop;

pub use alone::check_alone;
pub use stop::{AskStop, Stop};

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use evertwin_devices::legacy::GuestExit;
use evertwin_replicator::arbiter::{
    Arbiter, ArbiterError, EtcdArbiter, EtcdError, FileArbiter, Notes,
};
use evertwin_replicator::control::Control;
use evertwin_replicator::tls::{Keys, KeysError, Security};
use evertwin_replicator::{Config as LinkConfig, Ended, NodeId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::config::{ArbiterConfig, ConfigError, ReplicationConfig, VmConfig};
use crate::kvm;
use crate::machine::{self, ConsoleOutput, Machine};
use crate::terminal::RawTerminal;
use crate::twin::Twin;
use crate::uplink::{UplinkError, Uplinks};

/// How a run ended, and with it the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest shut itself down, or reset itself and is not to be restarted.
    GuestEnded,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// Someone asked for the end: a signal, or Ctrl-A x.
    Stopped,
    /// The other twin runs the guest now; here it was stopped for good (I2).
    Fenced,
}

impl Outcome {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::GuestEnded | Self::Stopped => 0,
            Self::Fenced => 3,
            Self::GuestPanicked => 101,
        }
    }
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The machine.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// An uplink.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::KvmError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The replicator.
    #[error(transparent)]
    Replicator(#[from] evertwin_replicator::Error),
    /// The keys can't be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The arbiter is unusable from the start.
    #[error(transparent)]
    Arbiter(#[from] evertwin_replicator::arbiter::ArbiterError),
    /// A guest that is to run alone may be at the other host, or go on there.
    #[error(
        "the arbiter does not say that node `{node}` alone has this guest: `{peer}` may have it, or go on with it. Start it with \
         protection = \"ft\" or \"ha\" first and lower that while it runs, or take [replication] out of the file if the guest is nowhere else"
    )]
    NotAlone {
        /// This host's.
        node: String,
        /// The other's.
        peer: String,
    },
    /// The same, and nobody can say.
    #[error(
        "{0}: so nobody says whether the other host has this guest. Start it when the arbiter answers, or take [replication] out of the \
         file if the guest is nowhere else"
    )]
    Unasked(evertwin_replicator::arbiter::ArbiterError),
    /// KVM gave up on the guest.
    #[error("the guest was stopped: {0}")]
    Guest(String),
    /// The host refused something small.
    #[error("can't {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl RunError {
    fn host<E: Into<std::io::Error>>(what: &'static str) -> impl Fn(E) -> Self {
        move |e| Self::Host {
            what,
            source: e.into(),
        }
    }
}

/// Runs a VM until it ends, with its console on standard input and output.
///
/// `started` is when the process began, for the time to the guest's first instruction.
///
/// # Errors
/// Anything wrong with host or configuration, before the guest starts; KVM giving up on
/// the guest.
pub fn run(
    vm: &VmConfig,
    replication: Option<&ReplicationConfig>,
    started: Instant,
) -> Result<Outcome, RunError> {
    let kvm = kvm::open()?;
    let stop = Stop::new().map_err(RunError::host("catch signals"))?;
    let make = || -> Result<Machine, RunError> {
        let asker = stop.asker().map_err(RunError::host("copy a descriptor"))?;
        let machine = Machine::new(&kvm, vm, ConsoleOutput::Stdio(asker))?;
        machine.recover_disks()?;
        Ok(machine)
    };
    let machine = make()?;
    let _terminal = RawTerminal::enter().map_err(RunError::host("set up the terminal"))?;
    match replication {
        None => plain(machine, &stop, started),
        Some(replication) => {
            let uplinks = Uplinks::find(&vm.nets)?;
            again::run(machine, make, &vm.name, replication, &uplinks, &stop)
        }
    }
}

fn plain(mut machine: Machine, stop: &Stop, started: Instant) -> Result<Outcome, RunError> {
    machine.check_disks()?;
    machine.forget_mirrors()?;
    machine.boot()?;
    tracing::info!(
        started_us = started.elapsed().as_micros() as u64,
        "guest running"
    );
    // SAFETY: the machine, and with it the event, outlives the wait.
    #[allow(unsafe_code)]
    let exit = unsafe { BorrowedFd::borrow_raw(machine.exit().event().as_raw_fd()) };
    loop {
        wait_for_any(&[stop.as_fd(), exit], None)?;
        if machine.failure().is_some() || !machine.after_guest_exit()? {
            break;
        }
    }
    if let Some(first) = machine.first_instruction() {
        let us = (first - started).as_micros() as u64;
        tracing::debug!(target: "evertwin::boot", first_instruction_us = us, "first instruction");
    }
    outcome(&machine)
}

/// How the guest in `machine` ended; it was asked to stop if it did not end by itself.
fn outcome(machine: &Machine) -> Result<Outcome, RunError> {
    if let Some(failure) = machine.failure() {
        return Err(RunError::Guest(failure.into()));
    }
    Ok(match machine.exit().get() {
        Some(GuestExit::Panicked) => Outcome::GuestPanicked,
        Some(GuestExit::Reset | GuestExit::Shutdown) => Outcome::GuestEnded,
        None => Outcome::Stopped,
    })
}

/// Waits until one of these is readable, or for so long at most. False if none came to be.
fn wait_for_any(fds: &[BorrowedFd<'_>], longest: Option<Duration>) -> Result<bool, RunError> {
    let until = longest.map(|time| Instant::now() + time);
    let mut polled: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut polled, left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(RunError::host("wait for the guest")(e)),
        }
    }
}

/// One run of a twin. `disk_failure` is why the last one has ended, if a disk was to blame.
fn protected(
    machine: Machine,
    name_of_vm: &str,
    replication: &ReplicationConfig,
    uplinks: &Uplinks,
    stop: &Stop,
    control: Control,
    disk_failure: Option<String>,
) -> Result<Outcome, RunError> {
    let name = |name: &str| {
        name.parse::<NodeId>()
            .map_err(|e| ConfigError::Value(e.to_string()))
    };
    let (node, peer) = (name(&replication.node)?, name(&replication.peer)?);
    let security = security(replication, node, peer)?;
    let mut notes = match &replication.arbiter {
        Some(ArbiterConfig::Manual(path)) => Some(Notes::new(path)),
        _ => None,
    };
    let mut arbiter = match &replication.arbiter {
        Some(ArbiterConfig::Manual(_)) => None,
        Some(ArbiterConfig::File(path)) => Some(open_file(path)?),
        Some(ArbiterConfig::Etcd(endpoints)) => Some(open_etcd(endpoints, name_of_vm)?),
        None => {
            tracing::warn!("no arbiter is configured: the standby will not take over by itself");
            None
        }
    };
    disks::check(
        &machine,
        (node, peer),
        arbiter.as_deref_mut(),
        notes.as_mut(),
    )?;
    let config = LinkConfig {
        node,
        peer,
        addresses: replication.addresses.clone(),
        security,
        lease: replication.lease,
        epoch: replication.epoch,
        heartbeat: replication.heartbeat,
        timeout: replication.timeout,
        reconnect: replication.reconnect,
        resync_rate: replication.resync_rate,
        poll: replication.fast_path.poll,
        suspect: replication.suspect,
        delta_cache: replication
            .fast_path
            .deltas
            .then_some(replication.delta_cache),
        pack: replication.fast_path.pack,
        scrub_every: replication.scrub_every,
        scrub_rate: replication.scrub_rate,
        disk_failure,
        uplinks: uplinks.for_run(),
        stop: stop
            .as_fd()
            .try_clone_to_owned()
            .map_err(RunError::host("copy a descriptor"))?,
        control: Some(control),
        notes,
    };
    machine.open_mirrors(name_of_vm)?;
    let mut twin = match replication.lease {
        None => Twin::new(machine)?,
        Some(lease) => {
            let lease = format!("{}ms", lease.as_millis());
            tracing::info!(
                protection = "ha",
                lease,
                "only disks are mirrored: the guest is booted anew where it has to go on"
            );
            Twin::of_disks(machine)?
        }
    }
    .with_fast_path(&replication.fast_path);
    Ok(
        match evertwin_replicator::run(config, &mut twin, arbiter)? {
            Ended::GuestExited => outcome(twin.machine())?,
            Ended::PeerGuestExited => Outcome::GuestEnded,
            Ended::Fenced => Outcome::Fenced,
            Ended::Stopped | Ended::Left => Outcome::Stopped,
        },
    )
}

/// The keys of this node, if the link is not to be in plaintext.
fn security(
    replication: &ReplicationConfig,
    node: NodeId,
    peer: NodeId,
) -> Result<Security, KeysError> {
    let Some(directory) = &replication.keys else {
        tracing::warn!(
            "the link to the peer is not encrypted: others on this host may listen and speak"
        );
        return Ok(Security::Plaintext);
    };
    let (keys, warnings) = Keys::load(directory, node, peer)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(Security::Tls(keys))
}

/// Later on a failing arbiter is waited for; at the start it is a mistake of the set-up.
fn open_file(path: &Path) -> Result<Box<dyn Arbiter>, ArbiterError> {
    let mut arbiter = FileArbiter::new(path);
    arbiter.read()?;
    Ok(Box::new(arbiter))
}

/// The same, but one that is on another machine may be starting as well.
fn open_etcd(endpoints: &[SocketAddr], vm: &str) -> Result<Box<dyn Arbiter>, ArbiterError> {
    let mut arbiter = EtcdArbiter::new(endpoints.to_vec(), vm);
    match arbiter.load() {
        // Whoever waits for it reads why.
        Ok(_) | Err(EtcdError::NoAnswer(_)) => Ok(Box::new(arbiter)),
        Err(error) => Err(ArbiterError::new(error)),
    }
}
