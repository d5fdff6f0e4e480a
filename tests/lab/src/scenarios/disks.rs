//! The hosts' own disks hang, fill up and fail.

use std::time::Duration;

use super::debian::{run_in_guest, start_in_guest, start_protected};
use super::pico::under_load;
use crate::error::{LabError, demand};
use crate::host::{Ended, RemoteProcess};
use crate::lab::{HostName, Lab};
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
    let (mut twins, judge) = under_load(lab)?;
    let before = twins.on(A).log().len();
    lab.host(B).fill_disk()?;
    demand_stepped_down(twins.on(B), "No space left on device")?;
    twins.on(A).await_event_since(before, "solo")?;
    judge.await_more(50)?;
    lab.host(B).free_disk()?;
    let before = twins.on(A).log().len();
    twins.start(lab, B)?;
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

/// Waits for a standby's end, and demands that it named its disk and what was wrong with it.
fn demand_stepped_down(standby: &RemoteProcess, reason: &str) -> Result<(), LabError> {
    let ended = standby.await_end()?;
    demand!(
        ended == Ended::Code(1),
        "the standby ended with {ended:?} and not with code 1"
    );
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
