//! What operators do with twins, and what happens when the arbiter is away.

use std::time::Duration;

use rustix::process::Signal;

use super::pico::{small, under_load, with_load};
use crate::error::{LabError, demand};
use crate::host::Ended;
use crate::lab::{HostName, Lab};
use crate::network::Card;
use crate::twins::Twins;
use HostName::{A, B, Client};

/// Exchanges the roles, and demands that no sync was needed.
pub(super) fn switch_over(
    lab: &Lab,
    twins: &Twins,
    from: HostName,
    to: HostName,
) -> Result<(), LabError> {
    let (before, after) = (twins.on(from).log().len(), twins.on(to).log().len());
    twins.operate(lab, from, &["switchover"])?;
    twins
        .on(from)
        .await_event_since(before, "handed over: this twin is the standby")?;
    twins.on(to).await_event_since(after, "promoted")?;
    demand!(
        !twins.on(to).has_event_since(after, "sync begins"),
        "the former primary had to be filled"
    );
    Ok(())
}

pub(super) fn switchover(lab: &mut Lab) -> Result<(), LabError> {
    let (twins, judge) = under_load(lab)?;
    for (from, to) in [(A, B), (B, A), (A, B)] {
        switch_over(lab, &twins, from, to)?;
        judge.await_more(50)?;
    }
    let before = twins.on(A).log().len();
    lab.host_mut(B).power_off();
    twins.on(A).await_event_since(before, "promoted")?;
    judge.await_more(50)?;
    judge.demand_clean(lab).map(drop)
}

pub(super) fn maintenance(lab: &mut Lab) -> Result<(), LabError> {
    let (mut twins, judge) = under_load(lab)?;
    for (host, other) in [(A, B), (B, A)] {
        let before = twins.on(other).log().len();
        twins.operate(lab, host, &["leave"])?;
        let ended = twins.on(host).await_end()?;
        demand!(ended == Ended::Code(0), "leaving ended with {ended:?}");
        twins.on(other).await_event_since(before, "solo")?;
        judge.await_more(50)?;
        let before = twins.on(other).log().len();
        twins.start(lab, host)?;
        twins.on(other).await_event_since(before, "protected")?;
        judge.await_more(50)?;
    }
    judge.demand_clean(lab).map(drop)
}

pub(super) fn far_apart(lab: &mut Lab) -> Result<(), LabError> {
    let (twins, judge) = under_load(lab)?;
    for host in [A, B] {
        lab.host(host).netem(Card::Replication, &["delay", "5ms"])?;
    }
    judge.await_more(100)?;
    switch_over(lab, &twins, A, B)?;
    judge.await_more(100)?;
    let before = twins.on(A).log().len();
    lab.host_mut(B).power_off();
    twins.on(A).await_event_since(before, "promoted")?;
    judge.await_more(50)?;
    judge.demand_clean(lab).map(drop)
}

pub(super) fn upgrade(lab: &mut Lab) -> Result<(), LabError> {
    let mut twins = Twins::prepare(lab, small())?;
    twins.use_previous(true);
    let (mut twins, judge) = with_load(lab, twins)?;
    twins.use_previous(false);
    // The standby first.
    let before = twins.on(A).log().len();
    twins.crash(lab, B)?;
    twins.start(lab, B)?;
    twins.on(A).await_event_since(before, "protected")?;
    judge.await_more(100)?;
    switch_over(lab, &twins, A, B)?;
    judge.await_more(100)?;
    // Then the other.
    let before = twins.on(B).log().len();
    twins.crash(lab, A)?;
    twins.start(lab, A)?;
    twins.on(B).await_event_since(before, "protected")?;
    judge.await_more(100)?;
    switch_over(lab, &twins, B, A)?;
    judge.await_more(100)?;
    judge.demand_clean(lab).map(drop)
}

/// What is asked while the arbiter is away waits for it, and is then done.
pub(super) fn arbiter_lost(lab: &mut Lab) -> Result<(), LabError> {
    let (twins, judge) = under_load(lab)?;
    let before = twins.on(B).log().len();
    lab.client.signal("etcd", Signal::STOP)?;
    // Two healthy twins need nobody.
    judge.await_more(100)?;
    twins.crash(lab, A)?;
    twins
        .on(B)
        .await_event_since(before, "the primary is gone: asking to take over")?;
    let answered = judge.acked();
    std::thread::sleep(Duration::from_secs(8));
    demand!(
        !twins.on(B).has_event_since(before, "promoted") && judge.acked() == answered,
        "a twin went on without the arbiter"
    );
    lab.client.signal("etcd", Signal::CONT)?;
    twins.on(B).await_event_since(before, "promoted")?;
    judge.await_more(100)?;
    judge.demand_clean(lab).map(drop)
}

/// The primary alone can't reach the arbiter when the link is cut: the standby goes on.
pub(super) fn arbiter_cut(lab: &mut Lab) -> Result<(), LabError> {
    let (twins, judge) = under_load(lab)?;
    lab.cut(Card::Management, A, Client);
    judge.await_more(50)?;
    lab.cut(Card::Replication, A, B);
    twins.on(B).await_event("promoted")?;
    judge.await_more(100)?;
    demand!(
        !twins.on(A).has_event_since(0, "fenced"),
        "the old primary can't know yet"
    );
    lab.heal(Card::Management);
    let ended = twins.on(A).await_end()?;
    demand!(
        ended == Ended::Code(3),
        "the loser ended with {ended:?} and not with code 3"
    );
    judge.demand_clean(lab).map(drop)
}
