//! Guests that boot and end, on one host.

use std::time::Duration;

use super::debian::{self, READY, run_in_guest, start_alone};
use crate::error::{LabError, demand};
use crate::host::Ended;
use crate::lab::{HostName, Lab};
use crate::twins::{Judge, Kernel, Twins, VmFile};

pub(super) fn pico(lab: &mut Lab) -> Result<(), LabError> {
    let file = VmFile {
        kernel: Kernel::Pico("workload=kv ip=10.77.0.2/24 log=vda".to_owned()),
        memory_mib: 64,
        vcpus: 1,
        data_mib: Some(16),
        vsock: false,
        second_path: false,
        protected: false,
        ha: false,
    };
    let mut twins = Twins::prepare(lab, file)?;
    let vm = twins.start(lab, HostName::A)?;
    vm.await_output(0, "pico: ready")?;
    let judge = Judge::start(lab, 4)?;
    judge.await_more(200)?;
    judge.demand_clean(lab).map(drop)
}

pub(super) fn one_vcpu(lab: &mut Lab) -> Result<(), LabError> {
    boot_on(lab, 1)
}

pub(super) fn two_vcpus(lab: &mut Lab) -> Result<(), LabError> {
    boot_on(lab, 2)
}

pub(super) fn four_vcpus(lab: &mut Lab) -> Result<(), LabError> {
    boot_on(lab, 4)
}

fn boot_on(lab: &mut Lab, vcpus: u32) -> Result<(), LabError> {
    start_alone(lab, "sshd", vcpus)?;
    let online = run_in_guest(lab, "nproc")?;
    demand!(
        online == vcpus.to_string(),
        "{online} processors are online in the guest, not {vcpus}"
    );
    Ok(())
}

pub(super) fn login(lab: &mut Lab) -> Result<(), LabError> {
    let mut twins = Twins::prepare(lab, debian::guest(None, 1, false))?;
    let vm = twins.start(lab, HostName::A)?;
    // The line before the prompt, which has no end of line to wait for.
    vm.await_output(0, "Debian GNU/Linux 12 debian ttyS0")?;
    std::thread::sleep(Duration::from_secs(3));
    twins.type_line(lab, HostName::A, "root")?;
    vm.await_output(0, "debian login: root")?;
    std::thread::sleep(Duration::from_secs(3));
    twins.type_line(lab, HostName::A, "echo i-am-$(whoami)")?;
    vm.await_output(0, "i-am-root")?;
    let state = run_in_guest(lab, "systemctl is-system-running --wait")?;
    demand!(state == "running", "systemd says {state}");
    Ok(())
}

pub(super) fn reboot(lab: &mut Lab) -> Result<(), LabError> {
    let vm = start_alone(lab, "sshd", 2)?;
    let boot_id = "cat /proc/sys/kernel/random/boot_id";
    let before = run_in_guest(lab, boot_id)?;
    let from = vm.console().len();
    lab.resets = 1;
    // The machine goes before ssh can say goodbye.
    let _session = debian::start_in_guest(lab, "reboot", "reboot -f")?;
    vm.await_output(from, READY)?;
    let after = run_in_guest(lab, boot_id)?;
    demand!(
        before != after,
        "the guest says that it has not booted again"
    );
    demand!(
        vm.ended().is_none(),
        "evertwin ended with the guest's reboot"
    );
    Ok(())
}

pub(super) fn power_off(lab: &mut Lab) -> Result<(), LabError> {
    let vm = start_alone(lab, "sshd", 2)?;
    let _session = debian::start_in_guest(lab, "poweroff", "poweroff -f")?;
    let ended = vm.await_end()?;
    demand!(
        ended == Ended::Code(0),
        "evertwin ended with {ended:?} and not with code 0"
    );
    Ok(())
}
