//! The hosts' own disks hang, fill up and fail, and twins are lost while fio verifies what it writes.

use std::time::{Duration, Instant};

use super::debian::{
    demand_success, run_in_guest, start_in_guest, start_protected, verified_writes,
};
use super::pico::under_load;
use crate::error::{LabError, demand};
use crate::host::RemoteProcess;
use crate::lab::{HostName, Lab};
use crate::twins::{DATA_DISK_FOR_TOOLS, Twins};
use HostName::{A, B};

/// Writes a number, syncs it, says so, and goes on with the next one.
const COUNT: &str = "n=0; while n=$((n+1)); echo $n | dd of=/var/tmp/count conv=notrunc,fsync status=none; do echo synced $n; done";

pub(super) fn hang(lab: &mut Lab) -> Result<(), LabError> {
    lab.host(A).make_disk_breakable()?;
    let twins = start_protected(lab, "sshd", 1)?;
    let counter = start_in_guest(lab, "count", COUNT)?;
    counter.await_output(0, "synced 3")?;
    lab.host(A).hang_disk()?;
    // The guest comes to its next write, which never ends, and epochs with that commit.
    let mut seen = 0;
    while counter.console().len() > seen {
        seen = counter.console().len();
        std::thread::sleep(Duration::from_secs(10));
    }
    demand!(
        counter.ended().is_none(),
        "the guest gave up on its disk instead of waiting for it"
    );
    lab.a.power_off();
    twins.on(B).await_event("promoted")?;
    let synced = format!("synced {}", seen + 3);
    counter.await_output(seen, &synced)?;
    let read = "echo 3 >/proc/sys/vm/drop_caches; cat /var/tmp/count";
    let count: usize = run_in_guest(lab, read)?.parse().unwrap_or_default();
    demand!(
        count >= seen + 3,
        "the disk's last number is {count}, and {} was synced",
        seen + 3
    );
    Ok(())
}

pub(super) fn standby_full(lab: &mut Lab) -> Result<(), LabError> {
    let (twins, judge) = under_load(lab)?;
    let before = twins.on(A).log().len();
    lab.host(B).fill_disk()?;
    demand_stepped_down(twins.on(B), "No space left on device")?;
    twins.on(A).await_event_since(before, "solo")?;
    judge.await_more(50)?;
    let before = twins.on(A).log().len();
    lab.host(B).free_disk()?;
    twins.on(A).await_event_since(before, "protected")?;
    lab.a.power_off();
    twins.on(B).await_event("promoted")?;
    judge.await_more(50)?;
    judge.demand_clean(lab).map(drop)
}

pub(super) fn standby_fails(lab: &mut Lab) -> Result<(), LabError> {
    lab.host(B).make_disk_breakable()?;
    let (twins, judge) = under_load(lab)?;
    let before = twins.on(A).log().len();
    lab.host(B).break_disk()?;
    demand_stepped_down(twins.on(B), "Input/output error")?;
    twins.on(A).await_event_since(before, "solo")?;
    judge.await_more(50)?;
    judge.demand_clean(lab).map(drop)
}

/// Waits until a standby is none for the time being, and demands that it named its disk and what was wrong with it.
fn demand_stepped_down(standby: &RemoteProcess, reason: &str) -> Result<(), LabError> {
    standby.await_event("a disk fails here: this standby tries it again")?;
    let lines = standby.log().lines();
    demand!(
        lines
            .iter()
            .any(|line| line.text.contains("data.img") && line.text.contains(reason)),
        "the standby did not say \"{reason}\" of its disk: {:?}",
        lines.last().map(|line| &line.text)
    );
    Ok(())
}

/// What happens to one of the twins while fio writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    KillPrimary,
    KillStandby,
    SwitchOver,
    PrimaryLosesPower,
    StandbyLosesPower,
}

const BLOWS: [Blow; 5] = [
    Blow::KillStandby,
    Blow::PrimaryLosesPower,
    Blow::SwitchOver,
    Blow::StandbyLosesPower,
    Blow::KillPrimary,
];

/// fio finds every block right whatever happens to a twin, and both disks are the same after each blow.
pub(super) fn fio_torture(lab: &mut Lab) -> Result<(), LabError> {
    let mut twins = start_protected(lab, "sshd", 1)?;
    let (mut primary, mut standby) = (A, B);
    let writes = verified_writes(8) + " && sync";
    for (number, blow) in BLOWS.into_iter().enumerate() {
        let fio = start_in_guest(lab, &format!("fio-{number}"), &writes)?;
        fio.await_output(0, "begins")?;
        std::thread::sleep(Duration::from_secs(5));
        demand!(fio.ended().is_none(), "fio was done before {blow:?}");
        strike(lab, &mut twins, blow, primary, standby)?;
        if !matches!(blow, Blow::KillStandby | Blow::StandbyLosesPower) {
            (primary, standby) = (standby, primary);
        }
        demand_success(&fio)?;
        demand_same_disks(lab)?;
    }
    Ok(())
}

/// Does that to the pair, and waits until it is protected again.
fn strike(
    lab: &mut Lab,
    twins: &mut Twins,
    blow: Blow,
    primary: HostName,
    standby: HostName,
) -> Result<(), LabError> {
    let (survivor, lost, event) = match blow {
        Blow::SwitchOver => return super::roles::switch_over(lab, twins, primary, standby),
        Blow::KillStandby | Blow::StandbyLosesPower => (primary, standby, "solo"),
        Blow::KillPrimary | Blow::PrimaryLosesPower => (standby, primary, "promoted"),
    };
    let before = twins.on(survivor).log().len();
    match blow {
        Blow::KillPrimary | Blow::KillStandby => twins.crash(lab, lost)?,
        _ => lab.host_mut(lost).power_off(),
    }
    twins.on(survivor).await_event_since(before, event)?;
    if matches!(blow, Blow::PrimaryLosesPower | Blow::StandbyLosesPower) {
        lab.host_mut(lost).power_on()?;
        lab.host(lost).await_boot()?;
        twins.place_files(lab, lost)?;
    }
    twins.start(lab, lost)?;
    twins
        .on(survivor)
        .await_event_since(before, "protected")
        .map(drop)
}

/// Demands that both hosts' disks of a quiet guest become the same, block by block.
fn demand_same_disks(lab: &Lab) -> Result<(), LabError> {
    let until = Instant::now() + Duration::from_secs(120);
    let sum = |host| lab.host(host).tool(&["sha256sum", DATA_DISK_FOR_TOOLS]);
    loop {
        let (a, b) = (sum(A)?, sum(B)?);
        if a == b {
            return Ok(());
        }
        demand!(Instant::now() < until, "the disks stay different: {a} {b}");
        std::thread::sleep(Duration::from_secs(2));
    }
}
