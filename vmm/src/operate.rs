//! `evertwin status`, `switchover`, `promote`, `leave`, `level`, `grow` and `scrub`.

mod scrub;
mod uplink;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::{GrowArgs, TwinArgs};
use crate::config::{self, ConfigError, Protection, ReplicationConfig};
use crate::control::{self, ClientError, Reply, Request, VmStatus};
pub use scrub::scrub;

/// What `evertwin promote` says to who did not say that the peer is dead.
pub const PROMOTE_WARNING: &str = "\
promote makes this twin run the guest without asking anybody.

If the other twin's guest still runs, there will be two of it: both answer clients, both write
to their disks, and what one of them did will be lost. Only do this when the other host is
powered off or its evertwin has ended, and say so with --peer-is-dead.";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The twin could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It did not obey.
    #[error("not done: {0}")]
    NotDone(String),
    /// A pass was begun, and the twin knows nothing of it any more.
    #[error("the twin does not say how the scrub ended: see its log, and `evertwin status`")]
    ScrubLost,
    /// No twin was named.
    #[error("which twin? Give its configuration and node (vm.toml --node a), or --socket PATH")]
    NoTwin,
    /// No configuration was named, which has the level.
    #[error("which level? It is in the configuration: give that and the node (vm.toml --node a)")]
    NoLevel,
    /// The operator did not vouch for the peer's death.
    #[error("{PROMOTE_WARNING}")]
    PeerMayLive,
}

/// Shows what a twin does, or all twins of this host.
///
/// # Errors
/// The twin that was named can't be asked.
pub fn status(target: &TwinArgs) -> Result<ExitCode, OperateError> {
    let named = socket(target)?;
    let sockets = named
        .clone()
        .map_or_else(control::sockets, |path| vec![path]);
    if sockets.is_empty() && !target.json {
        println!(
            "no twin runs on this host (in {})",
            control::default_directory().display()
        );
    }
    for path in sockets {
        match control::ask(&path, Request::Status) {
            Ok(Reply::Status(status)) if target.json => print_json(&*status),
            Ok(Reply::Status(status)) => print(&status),
            Ok(other) => return Err(unexpected(other)),
            // A twin that was killed leaves its socket behind.
            Err(_) if named.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Has a twin obey.
///
/// # Errors
/// It can't be asked, or does not obey.
pub fn command(target: &TwinArgs, request: Request) -> Result<ExitCode, OperateError> {
    let path = socket(target)?.ok_or(OperateError::NoTwin)?;
    match control::ask(&path, request)? {
        Reply::Done { generation } if target.json => println!("{{\"generation\":{generation}}}"),
        Reply::Done { generation } => println!("done, generation {generation}"),
        other => return Err(unexpected(other)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Has a twin take over the level of protection that its configuration has now.
///
/// # Errors
/// There is no such configuration, or the twin can't be asked or does not obey.
pub fn level(target: &TwinArgs) -> Result<ExitCode, OperateError> {
    let replication = replication(target)?.ok_or(OperateError::NoLevel)?;
    let request = match replication.protection {
        Protection::None => Request::Unprotect,
        Protection::Ft | Protection::Ha => Request::Level {
            lease_ms: replication.lease.map(|lease| lease.as_millis() as u64),
        },
    };
    command(target, request)
}

/// Has a disk grow under the guest.
///
/// # Errors
/// The size is none, the twin can't be asked, or it does not obey.
pub fn grow(options: &GrowArgs) -> Result<ExitCode, OperateError> {
    let (target, disk) = (&options.twin, options.disk);
    let bytes = options.size.as_deref().map(config::parse_disk_size);
    let bytes = bytes.transpose()?;
    let path = socket(target)?.ok_or(OperateError::NoTwin)?;
    match control::ask(&path, Request::Grow { disk, bytes })? {
        Reply::Grown { bytes } if target.json => println!("{{\"bytes\":{bytes}}}"),
        Reply::Grown { bytes } => println!("done, disk {disk} has {bytes} bytes"),
        other => return Err(unexpected(other)),
    }
    Ok(ExitCode::SUCCESS)
}

fn unexpected(reply: Reply) -> OperateError {
    OperateError::NotDone(match reply {
        Reply::Error(why) => why,
        other => format!("the twin answered {other:?}"),
    })
}

fn socket(target: &TwinArgs) -> Result<Option<PathBuf>, OperateError> {
    if let Some(path) = &target.socket {
        return Ok(Some(path.clone()));
    }
    Ok(replication(target)?.map(|replication| replication.control))
}

/// How the VM of the configuration is protected, if one is named.
fn replication(target: &TwinArgs) -> Result<Option<ReplicationConfig>, ConfigError> {
    let of_config = |path: &Path| {
        let replication = config::load_operated(path, target.node.as_deref())?;
        let plain = || {
            ConfigError::Value(format!(
                "{} has no twin: it is not protected",
                path.display()
            ))
        };
        replication.ok_or_else(plain)
    };
    target.config.as_deref().map(of_config).transpose()
}

fn print_json(answer: &impl serde::Serialize) {
    match serde_json::to_string(answer) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("evertwin: {error}"),
    }
}

fn print(status: &VmStatus) {
    let VmStatus { vm, twin } = status;
    println!(
        "{vm}: {} (node {}, generation {})",
        twin.role, twin.node, twin.generation
    );
    let replicated = match twin.protection.as_str() {
        "ha" => "its disks are mirrored, the other host boots it anew",
        "none" => "nothing is replicated, and no standby is admitted",
        _ => "all of the guest is replicated",
    };
    println!("  level  {}: {replicated}", twin.protection);
    match &twin.link {
        Some(address) => println!("  peer   {} at {address}", twin.peer),
        None => println!("  peer   {}, no link", twin.peer),
    }
    if let Some(why) = &twin.disk_failure {
        println!("  disk   fails here, and is tried again: {why}");
    }
    if let Some(why) = &twin.peer_disk_failure {
        println!("  disk   fails at the peer, which tries it again: {why}");
    }
    uplink::print_status(twin);
    if let Some(why) = &twin.kept_out {
        println!("  waits  the peer wants no standby now: {why}");
    }
    println!("  epoch  {}", twin.epoch);
    if let Some(lease) = &twin.lease {
        let left = match lease.left_ms {
            Some(ms) if twin.role == "waiting-to-boot" => format!("over in {ms} ms at the latest"),
            Some(0) => "over: the guest is stopped".to_owned(),
            Some(ms) => format!("{ms} ms left"),
            None if lease.holder == twin.node => "no standby could take over".to_owned(),
            None => "given anew by each epoch".to_owned(),
        };
        println!(
            "  lease  {} has it, {} ms long, {left}",
            lease.holder, lease.length_ms
        );
    }
    if let Some(sync) = twin.sync {
        let percent = sync.percent();
        let left = sync.eta_ms.map_or(String::new(), |ms| {
            format!(", {:.1} s left", ms as f64 / 1e3)
        });
        let mib = sync.bytes >> 20;
        println!(
            "  sync   {percent} % of {} MiB, of which {} are disks; {mib} MiB sent{left}",
            sync.all_bytes() >> 20,
            sync.disk_of >> 20
        );
        if sync.slowed_percent > 0 {
            let speed = 100 - sync.slowed_percent.min(100);
            println!("  guest  at {speed} % of its speed until the standby has caught up");
        }
    }
    if let Some(scrub) = &twin.scrub {
        scrub::print_status(scrub);
    }
}
