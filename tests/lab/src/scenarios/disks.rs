//! The hosts' own disks fill up and fail.

use super::pico::under_load;
use crate::error::{LabError, demand};
use crate::host::{Ended, RemoteProcess};
use crate::lab::{HostName, Lab};
use HostName::{A, B};

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
