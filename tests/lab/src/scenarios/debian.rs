//! Debian as the guest: how it is started, and how a scenario reaches into it from the client's host.

use crate::error::{LabError, demand};
use crate::host::{Ended, RemoteProcess};
use crate::lab::{HostName, Lab};
use crate::network::GUEST;
use crate::twins::{Kernel, Twins, VmFile};

/// Said by the guest's short init when all its services answer.
pub(super) const READY: &str = "lab-init: ready";

/// A Debian guest with these services, or with systemd.
pub(super) fn guest(services: Option<&'static str>, vcpus: u32, protected: bool) -> VmFile {
    VmFile {
        kernel: Kernel::Debian(services),
        memory_mib: 256,
        vcpus,
        data_mib: Some(192),
        vsock: false,
        second_path: false,
        protected,
        ha: false,
    }
}

/// Starts an unprotected guest on host a and waits for its services.
pub(super) fn start_alone(
    lab: &mut Lab,
    services: &'static str,
    vcpus: u32,
) -> Result<RemoteProcess, LabError> {
    let mut twins = Twins::prepare(lab, guest(Some(services), vcpus, false))?;
    let vm = twins.start(lab, HostName::A)?;
    vm.await_output(0, READY)?;
    Ok(vm)
}

/// Starts a protected guest and waits for its services and its protection.
pub(super) fn start_protected(
    lab: &mut Lab,
    services: &'static str,
    vcpus: u32,
) -> Result<Twins, LabError> {
    start_as(lab, guest(Some(services), vcpus, true))
}

/// The same for a guest of which only the disks are replicated.
pub(super) fn start_mirrored(lab: &mut Lab, services: &'static str) -> Result<Twins, LabError> {
    let file = VmFile {
        ha: true,
        ..guest(Some(services), 1, true)
    };
    start_as(lab, file)
}

fn start_as(lab: &mut Lab, file: VmFile) -> Result<Twins, LabError> {
    let mut twins = Twins::prepare(lab, file)?;
    twins.start_protected(lab, READY)?;
    Ok(twins)
}

/// A command line that runs `command` in the guest by ssh from the client's host.
fn ssh(lab: &Lab, command: &str) -> Result<Vec<String>, LabError> {
    let key = std::fs::read_to_string(&lab.ssh_key);
    let key = key.map_err(LabError::io(format!("reading {}", lab.ssh_key.display())))?;
    lab.client.write("/debian/tmp/ssh_key", &key, 0o600)?;
    let mut argv: Vec<String> = ["ssh", "-i", "/tmp/ssh_key"].map(str::to_owned).into();
    for option in [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        "BatchMode=yes",
        // The connection is to survive by itself; ssh must not give it up.
        "ServerAliveInterval=0",
        "ConnectTimeout=60",
    ] {
        argv.extend(["-o".to_owned(), option.to_owned()]);
    }
    argv.extend([format!("root@{GUEST}"), command.to_owned()]);
    Ok(argv)
}

/// Runs a command in the guest by ssh and returns its output.
pub(super) fn run_in_guest(lab: &Lab, command: &str) -> Result<String, LabError> {
    let argv = ssh(lab, command)?;
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    Ok(lab.client.tool(&argv)?.trim().to_owned())
}

/// Starts a command in the guest over an ssh session of its own.
pub(super) fn start_in_guest(
    lab: &Lab,
    name: &str,
    command: &str,
) -> Result<RemoteProcess, LabError> {
    let argv = ssh(lab, command)?;
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    lab.client.start_tool(name, &argv)
}

/// Demands that a client's tool ends well.
pub(super) fn demand_success(process: &RemoteProcess) -> Result<(), LabError> {
    let ended = process.await_end()?;
    let last = |log: &evertwin::lab::events::LineLog| {
        log.lines().pop().map(|line| line.text).unwrap_or_default()
    };
    demand!(
        ended == Ended::Code(0),
        "{} ended with {ended:?}: {} {}",
        process.name(),
        last(process.console()),
        last(process.log())
    );
    Ok(())
}

/// A command for the guest: fio writes every block of a file of so many MiB once, at random, and reads all of them back.
pub(super) fn verified_writes(mib: u32) -> String {
    format!(
        "echo begins; fio --name=lab --filename=/var/tmp/fio --size={mib}m --bs=4k --rw=randwrite --direct=1 \
         --ioengine=libaio --iodepth=8 --rate_iops=100 --verify=crc32c --verify_fatal=1 --do_verify=1"
    )
}
