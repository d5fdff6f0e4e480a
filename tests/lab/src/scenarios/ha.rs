//! A guest of which only the disks are replicated, on hosts that are lost.

use super::debian::{READY, start_mirrored};
use super::pico::{freeze_at_rest, small, with_load};
use super::services::{CREATE, INSERT, await_lines, demand_rows, lose_primary, query};
use crate::error::{LabError, demand};
use crate::host::Ended;
use crate::lab::{HostName, Lab};
use crate::network::GUEST;
use crate::twins::{Judge, Twins, VmFile};
use HostName::{A, B};

const STOPPED: &str = "the guest is stopped until it is clear whose it is";

fn under_load(lab: &mut Lab) -> Result<(Twins, Judge), LabError> {
    let file = VmFile {
        ha: true,
        ..small()
    };
    let twins = Twins::prepare(lab, file)?;
    with_load(lab, twins)
}

/// Waits until the guest was booted on b, and demands that it knows all that clients were told.
fn demand_restarted(lab: &Lab, twins: &Twins, acked: u64) -> Result<(), LabError> {
    twins.on(B).await_event("promoted")?;
    twins.on(B).await_output(0, "pico: ready")?;
    let redis = ["redis-cli", "-h", GUEST, "GET", "counter"];
    let known = lab.client.tool(&redis)?;
    // Every other write counts.
    let known: u64 = known.trim().parse().unwrap_or(0);
    demand!(
        known >= acked.div_ceil(2),
        "the guest knows {known} of {acked} acknowledged writes"
    );
    Ok(())
}

pub(super) fn restart(lab: &mut Lab) -> Result<(), LabError> {
    let (twins, judge) = under_load(lab)?;
    // A lease is a length of time, whatever time of day it is.
    for (a, b) in [(3600, -3600), (-7200, 7200)] {
        lab.host(A).jump_clock(a)?;
        lab.host(B).jump_clock(b)?;
        judge.await_more(50)?;
    }
    demand!(
        !twins.on(A).has_event_since(0, STOPPED) && !twins.on(B).has_event_since(0, "promoted"),
        "a clock jump was taken for the end of a lease"
    );
    lab.a.power_off();
    demand_restarted(lab, &twins, judge.acked())
}

/// A database's host loses its power. The guest is booted on the other one, where the database recovers with all that was committed.
pub(super) fn postgresql(lab: &mut Lab) -> Result<(), LabError> {
    let twins = start_mirrored(lab, "postgresql")?;
    query(lab, CREATE)?;
    let client = lab.client.start_tool("psql", &["bash", "-c", INSERT])?;
    await_lines(&client, 60)?;
    lose_primary(lab, &twins)?;
    let committed = client.console().len();
    twins.on(B).await_output(0, READY)?;
    let count = demand_rows(lab, committed)?;
    // It goes on from there.
    query(lab, &format!("INSERT INTO rows VALUES ({})", count + 1))?;
    demand_rows(lab, count + 1).map(drop)
}

pub(super) fn freeze(lab: &mut Lab) -> Result<(), LabError> {
    let (twins, judge) = under_load(lab)?;
    let spoken = freeze_at_rest(lab, &judge)?;
    demand_restarted(lab, &twins, judge.acked())?;
    lab.a.thaw();
    let ended = twins.on(A).await_end()?;
    demand!(
        ended == Ended::Code(3),
        "the thawed primary ended with {ended:?} and not with code 3"
    );
    let more = lab.frames_from(A) - spoken;
    demand!(more == 0, "the thawed primary sent {more} frames");
    Ok(())
}
