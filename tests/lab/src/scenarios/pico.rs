//! Faults of hosts and links under the built-in guest, with its key-value server under load.

use std::time::Duration;

use crate::error::{LabError, demand};
use crate::host::Ended;
use crate::lab::{HostName, Lab};
use crate::network::Card;
use crate::twins::{Judge, Kernel, Twins, VmFile};
use HostName::{A, B};

/// A protected guest on both hosts, under load, every write on its disk before it is answered.
pub(super) fn under_load(lab: &mut Lab) -> Result<(Twins, Judge), LabError> {
    let twins = Twins::prepare(lab, small())?;
    with_load(lab, twins)
}

/// The guest that all of these have.
pub(super) fn small() -> VmFile {
    VmFile {
        kernel: Kernel::Pico("workload=kv ip=10.77.0.2/24 log=vda".to_owned()),
        memory_mib: 64,
        vcpus: 1,
        data_mib: Some(16),
        vsock: false,
        second_path: false,
        protected: true,
        ha: false,
    }
}

/// Starts the twins and puts the guest under load.
pub(super) fn with_load(lab: &mut Lab, mut twins: Twins) -> Result<(Twins, Judge), LabError> {
    twins.start_protected(lab, "pico: ready")?;
    let judge = Judge::start(lab, 4)?;
    judge.await_more(100)?;
    Ok((twins, judge))
}

pub(super) fn power_off(lab: &mut Lab) -> Result<(), LabError> {
    let (twins, judge) = under_load(lab)?;
    lab.a.power_off();
    twins.on(B).await_event("promoted")?;
    judge.await_more(100)?;
    judge.demand_clean(lab).map(drop)
}

pub(super) fn crash_and_return(lab: &mut Lab) -> Result<(), LabError> {
    let (mut twins, judge) = under_load(lab)?;
    for (primary, survivor) in [(A, B), (B, A)].into_iter().cycle().take(5) {
        let before = twins.on(survivor).log().len();
        twins.crash(lab, primary)?;
        twins.on(survivor).await_event("promoted")?;
        judge.await_more(50)?;
        twins.start(lab, primary)?;
        twins.on(survivor).await_event_since(before, "protected")?;
        judge.await_more(50)?;
    }
    judge.demand_clean(lab).map(drop)
}

pub(super) fn freeze(lab: &mut Lab) -> Result<(), LabError> {
    let (twins, judge) = under_load(lab)?;
    freeze_under(lab, &twins, judge)
}

/// Cuts one path between the twins after the other, and demands that nobody notices more than a pause.
pub(super) fn second_path(lab: &mut Lab) -> Result<(), LabError> {
    let file = VmFile {
        second_path: true,
        ..small()
    };
    let twins = Twins::prepare(lab, file)?;
    let (twins, judge) = with_load(lab, twins)?;
    let before = twins.on(A).log().len();
    let cut = |lab: &Lab, network, ways: &[(HostName, HostName)]| {
        for &(from, to) in ways {
            lab.cut(network, from, to);
        }
    };
    cut(lab, Card::Replication, &[(A, B), (B, A)]);
    judge.await_more(200)?;
    lab.heal(Card::Replication);
    // Of a path that carries nothing in one direction both twins have had enough.
    cut(lab, Card::Management, &[(B, A)]);
    judge.await_more(200)?;
    lab.heal(Card::Management);
    demand!(
        twins.on(A).has_event_since(before, "resumed"),
        "the link never changed its path"
    );
    demand!(
        !twins.on(A).has_event_since(before, "solo") && !twins.on(B).has_event_since(0, "promoted"),
        "the pair was broken up although it had a path"
    );
    lose_the_primary(lab, &twins, judge)
}

/// Cuts the power of the primary's host, and demands that the client did not lose anything.
fn lose_the_primary(lab: &mut Lab, twins: &Twins, judge: Judge) -> Result<(), LabError> {
    lab.a.power_off();
    twins.on(B).await_event("promoted")?;
    judge.await_more(50)?;
    judge.demand_clean(lab).map(drop)
}

/// Freezes the primary's host while its guest has nothing to say, and has it asked for something then. Returns how many frames had come
/// from it. Answers that have left the monitor, but not yet the machine, would leave it when it thaws: that is no harm, but this is about
/// answers that it gives afterwards.
pub(super) fn freeze_at_rest(lab: &mut Lab, judge: &Judge) -> Result<usize, LabError> {
    judge.pause(lab)?;
    std::thread::sleep(Duration::from_secs(2));
    lab.a.freeze();
    let spoken = lab.frames_from(A);
    judge.resume(lab)?;
    Ok(spoken)
}

/// Freezes the primary's host, and demands that it says nothing more when it thaws.
pub(super) fn freeze_under(lab: &mut Lab, twins: &Twins, judge: Judge) -> Result<(), LabError> {
    let spoken = freeze_at_rest(lab, &judge)?;
    twins.on(B).await_event("promoted")?;
    judge.await_more(100)?;
    lab.a.thaw();
    let ended = twins.on(A).await_end()?;
    demand!(
        ended == Ended::Code(3),
        "the thawed primary ended with {ended:?} and not with code 3"
    );
    judge.await_more(50)?;
    let more = lab.frames_from(A) - spoken;
    demand!(more == 0, "the thawed primary sent {more} frames");
    judge.demand_clean(lab).map(drop)
}

pub(super) fn standby_lost(lab: &mut Lab) -> Result<(), LabError> {
    let (twins, judge) = under_load(lab)?;
    let before = twins.on(A).log().len();
    lab.host_mut(B).power_off();
    judge.await_more(100)?;
    twins.on(A).await_event_since(before, "solo")?;
    judge.demand_clean(lab).map(drop)
}

pub(super) fn link_cut(lab: &mut Lab) -> Result<(), LabError> {
    lose_link(lab, &[(A, B), (B, A)])
}

pub(super) fn link_cut_one_way(lab: &mut Lab) -> Result<(), LabError> {
    lose_link(lab, &[(A, B)])
}

pub(super) fn link_cut_other_way(lab: &mut Lab) -> Result<(), LabError> {
    lose_link(lab, &[(B, A)])
}

/// Cuts these ways between the twins, and demands that exactly one goes on.
fn lose_link(lab: &mut Lab, ways: &[(HostName, HostName)]) -> Result<(), LabError> {
    let (twins, judge) = under_load(lab)?;
    let before = twins.on(A).log().len();
    for &(from, to) in ways {
        lab.cut(Card::Replication, from, to);
    }
    // On one of the two, whoever wins; only then is it clear whose answers are counted.
    let decided = twins
        .on(A)
        .await_one_of_since(before, &["solo", "fenced"])?;
    let alone = decided.message().as_deref() == Some("solo");
    judge.await_more(200)?;
    let promoted = twins.on(B).has_event_since(0, "promoted");
    demand!(
        alone != promoted,
        "solo on a: {alone}, promoted on b: {promoted}"
    );
    if promoted {
        let ended = twins.on(A).await_end()?;
        demand!(
            ended == Ended::Code(3),
            "the loser ended with {ended:?} and not with code 3"
        );
    }
    judge.demand_clean(lab).map(drop)
}

pub(super) fn bad_link(lab: &mut Lab) -> Result<(), LabError> {
    let (twins, judge) = under_load(lab)?;
    let before = twins.on(A).log().len();
    for host in [A, B] {
        lab.host(host)
            .netem(Card::Replication, &["delay", "30ms", "10ms", "loss", "2%"])?;
    }
    judge.await_more(150)?;
    demand!(
        !twins.on(A).has_event_since(before, "solo"),
        "the standby was given up although its link was only slow"
    );
    lose_the_primary(lab, &twins, judge)
}

pub(super) fn clock_jump(lab: &mut Lab) -> Result<(), LabError> {
    let (twins, judge) = under_load(lab)?;
    let before = twins.on(A).log().len();
    lab.host(A).jump_clock(3600)?;
    lab.host(B).jump_clock(-3600)?;
    judge.await_more(50)?;
    lab.host(A).jump_clock(-7200)?;
    lab.host(B).jump_clock(7200)?;
    judge.await_more(50)?;
    demand!(
        !twins.on(A).has_event_since(before, "solo") && !twins.on(B).has_event_since(0, "promoted"),
        "a clock jump was taken for the peer's death"
    );
    lose_the_primary(lab, &twins, judge)
}
