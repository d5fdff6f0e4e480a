//! Debian's services under load while their hosts are lost.

use std::time::Duration;

use super::debian::{
    READY, demand_success, run_in_guest, start_in_guest, start_protected, verified_writes,
};
use crate::error::{LabError, demand};
use crate::host::{Ended, RemoteProcess};
use crate::lab::{HostName, Lab};
use crate::network::GUEST;
use crate::twins::{Judge, Twins};
use HostName::{A, B};

/// Cuts the primary's power and waits for the takeover.
pub(super) fn lose_primary(lab: &mut Lab, twins: &Twins) -> Result<(), LabError> {
    lab.a.power_off();
    twins.on(B).await_event("promoted").map(drop)
}

pub(super) fn redis(lab: &mut Lab) -> Result<(), LabError> {
    let twins = start_protected(lab, "redis", 1)?;
    let judge = Judge::start(lab, 4)?;
    judge.await_more(40)?;
    lose_primary(lab, &twins)?;
    judge.await_more(40)?;
    judge.demand_clean(lab).map(drop)
}

pub(super) fn freeze(lab: &mut Lab) -> Result<(), LabError> {
    let twins = start_protected(lab, "redis", 1)?;
    let judge = Judge::start(lab, 4)?;
    judge.await_more(40)?;
    super::pico::freeze_under(lab, &twins, judge)
}

/// Inserts numbered rows over one connection until it is told to end, and prints each number once it is committed.
pub(super) const INSERT: &str = "(n=0; until [ -e /tmp/enough ]; do n=$((n+1)); \
     echo \"INSERT INTO rows VALUES ($n) RETURNING n;\"; done) \
     | psql -qAt -v ON_ERROR_STOP=1 -h 10.77.0.2 -U postgres";

pub(super) fn postgresql(lab: &mut Lab) -> Result<(), LabError> {
    postgresql_when(lab, lose_primary)
}

/// The primary's disk fails under the database.
pub(super) fn postgresql_on_a_dying_disk(lab: &mut Lab) -> Result<(), LabError> {
    lab.host(A).make_disk_breakable()?;
    postgresql_when(lab, |lab, twins| {
        lab.host(A).break_disk()?;
        twins.on(B).await_event("promoted").map(drop)
    })
}

/// Asks the database.
pub(super) fn query(lab: &Lab, text: &str) -> Result<String, LabError> {
    let psql = ["psql", "-qAt", "-h", GUEST, "-U", "postgres", "-c", text];
    lab.client.tool(&psql)
}

/// Both machines lose their power at once. What was committed to clients is on the disk that the guest is booted from, and the
/// standby's is made the same again.
pub(super) fn postgresql_after_a_blackout(lab: &mut Lab) -> Result<(), LabError> {
    let mut twins = start_protected(lab, "postgresql", 1)?;
    query(lab, CREATE)?;
    let client = lab.client.start_tool("psql", &["bash", "-c", INSERT])?;
    await_lines(&client, 60)?;
    lab.a.power_off();
    lab.host_mut(B).power_off();
    let committed = client.console().len();
    for host in [A, B] {
        lab.host_mut(host).power_on()?;
    }
    for host in [A, B] {
        lab.host(host).await_boot()?;
        twins.place_files(lab, host)?;
        twins.start(lab, host)?;
    }
    twins.on(A).await_output(0, READY)?;
    let count = demand_rows(lab, committed)?;
    twins.on(A).await_event("protected")?;
    let copied = twins.on(A).log().lines();
    let delta = |line: &evertwin::lab::events::Line| {
        let copy = line.field("copy");
        copy.is_some_and(|copy| copy.as_str() == Some("delta"))
    };
    demand!(
        copied.iter().any(delta),
        "the standby's disk was not made the same by what differs"
    );
    lab.a.power_off();
    twins.on(B).await_event("promoted")?;
    let answer = query(lab, "SELECT count(*) FROM rows")?;
    demand!(
        answer.trim() == count.to_string(),
        "{answer} rows are there after the takeover, and {count} were before"
    );
    Ok(())
}

pub(super) const CREATE: &str = "CREATE TABLE rows (n bigint PRIMARY KEY)";

/// Demands that the database has all rows that were committed to a client, without a gap, and one more at most. Returns their number.
pub(super) fn demand_rows(lab: &Lab, committed: usize) -> Result<usize, LabError> {
    let answer = query(lab, "SELECT count(*), min(n), max(n) FROM rows")?;
    let count = answer.trim().split('|').next().unwrap_or_default();
    let expected = format!("{count}|1|{count}");
    demand!(
        answer.trim() == expected,
        "rows count|min|max are {} and not {expected}",
        answer.trim()
    );
    let count = count.parse().unwrap_or_default();
    demand!(
        (committed..=committed + 1).contains(&count),
        "{count} rows are there, and {committed} were committed"
    );
    Ok(count)
}

/// Rows are inserted over one connection, before and after something happens to the primary. None may be missing, and the
/// database may not complain.
fn postgresql_when(
    lab: &mut Lab,
    happens: fn(&mut Lab, &Twins) -> Result<(), LabError>,
) -> Result<(), LabError> {
    let twins = start_protected(lab, "postgresql", 1)?;
    query(lab, CREATE)?;
    let client = lab.client.start_tool("psql", &["bash", "-c", INSERT])?;
    await_lines(&client, 30)?;
    happens(lab, &twins)?;
    await_lines(&client, 30)?;
    lab.client.write("/debian/tmp/enough", "", 0o644)?;
    demand_success(&client)?;
    let committed: Vec<String> = client
        .console()
        .lines()
        .into_iter()
        .map(|line| line.text)
        .collect();
    let counted: Vec<String> = (1..=committed.len()).map(|n| n.to_string()).collect();
    demand!(
        committed == counted,
        "the client was told of rows out of order: {committed:?}"
    );
    let there = query(lab, "SELECT count(*), min(n), max(n) FROM rows")?;
    let expected = format!("{0}|1|{0}", committed.len());
    demand!(
        there.trim() == expected,
        "rows count|min|max are {} and not {expected}",
        there.trim()
    );
    Ok(())
}

/// Waits until a client has printed so many lines more.
pub(super) fn await_lines(client: &RemoteProcess, more: usize) -> Result<(), LabError> {
    let goal = client.console().len() + more;
    let what = format!("{more} lines more");
    client.await_line(goal - 1, &what, |_| true).map(drop)
}

pub(super) fn fio(lab: &mut Lab) -> Result<(), LabError> {
    let twins = start_protected(lab, "sshd", 1)?;
    let fio = start_in_guest(lab, "fio", &verified_writes(16))?;
    fio.await_output(0, "begins")?;
    std::thread::sleep(Duration::from_secs(15));
    demand!(fio.ended().is_none(), "fio was done before the power cut");
    lose_primary(lab, &twins)?;
    demand!(fio.ended().is_none(), "fio was done before the takeover");
    demand_success(&fio)?;
    let report = fio.console().lines();
    demand!(
        report.iter().any(|line| line.text.contains("err= 0")),
        "fio says nothing of its errors"
    );
    Ok(())
}

/// How long the connections of [`connections`] are to live.
const SECONDS: u32 = 60;

pub(super) fn connections(lab: &mut Lab) -> Result<(), LabError> {
    let twins = start_protected(lab, "sshd,iperf3", 1)?;
    let ticks = format!("for n in $(seq {SECONDS}); do echo tick $n; sleep 1; done");
    let session = start_in_guest(lab, "session", &ticks)?;
    session.await_output(0, "tick 1")?;
    let seconds = SECONDS.to_string();
    let iperf = [
        "iperf3",
        "-c",
        GUEST,
        "-t",
        &seconds,
        "-b",
        "1M",
        "--forceflush",
    ];
    let iperf = lab.client.start_tool("iperf3", &iperf)?;
    iperf.await_output(0, "sec")?;
    std::thread::sleep(Duration::from_secs(8));
    lose_primary(lab, &twins)?;
    demand!(
        session.ended().is_none() && iperf.ended().is_none(),
        "a connection ended before the takeover"
    );
    demand_success(&iperf)?;
    demand_success(&session)?;
    let lines: Vec<String> = session
        .console()
        .lines()
        .into_iter()
        .map(|line| line.text)
        .collect();
    let expected: Vec<String> = (1..=SECONDS).map(|n| format!("tick {n}")).collect();
    demand!(
        lines == expected,
        "the ssh session's output has gaps: {lines:?}"
    );
    Ok(())
}

pub(super) fn stress(lab: &mut Lab) -> Result<(), LabError> {
    let twins = start_protected(lab, "sshd", 4)?;
    let stress = start_in_guest(
        lab,
        "stress-ng",
        "echo begins; stress-ng --cpu 4 --vm 2 --vm-bytes 16m --switch 2 --verify --timeout 40s 2>&1",
    )?;
    stress.await_output(0, "begins")?;
    std::thread::sleep(Duration::from_secs(12));
    demand!(
        stress.ended().is_none(),
        "stress-ng was done before the power cut"
    );
    lose_primary(lab, &twins)?;
    demand!(
        stress.ended().is_none(),
        "stress-ng was done before the takeover"
    );
    // Its exit code is not 0 if a result was wrong.
    demand_success(&stress)?;
    let online = run_in_guest(lab, "nproc")?;
    demand!(
        online == "4",
        "{online} processors are online after the takeover, not 4"
    );
    Ok(())
}

pub(super) fn standby_killed(lab: &mut Lab) -> Result<(), LabError> {
    let twins = start_protected(lab, "redis", 2)?;
    let judge = Judge::start(lab, 4)?;
    judge.await_more(40)?;
    let before = twins.on(A).log().len();
    twins.crash(lab, B)?;
    judge.await_more(40)?;
    twins.on(A).await_event_since(before, "solo")?;
    demand!(
        twins.on(A).ended() != Some(Ended::Code(3)),
        "the primary was fenced"
    );
    judge.demand_clean(lab).map(drop)
}
