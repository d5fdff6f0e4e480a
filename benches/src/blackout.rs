//! How long a client waits when the primary dies, or only stands still.

use std::time::{Duration, Instant};

use evertwin::lab::client::LoadOptions;
use evertwin::lab::namespace::NetNamespace;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::{Node, REPLICATION};
use evertwin_tests::lab::STEP;
use evertwin_tests::stage::Stage;

use crate::pin::{self, Pinned, Side};
use crate::plot::{Plot, Timeline};
use crate::report::{Demand, Row, Samples, Unit};

const KILLS: usize = 15;
const FREEZES: usize = 8;
/// A host that is gone is found so within this time.
const DETECTION_US: f64 = 100_000.0;
/// What a client may wait beyond the time that it takes to find out.
const BEYOND_DETECTION_US: f64 = 20_000.0;
const DETECTED: &str = "link down";
/// What the standby logs on its way, in order, and what the drawing calls it.
const EVENTS: [(&str, &str); 3] = [
    (DETECTED, "link found down"),
    ("the primary is gone: asking to take over", "arbiter asked"),
    ("promoted", "promoted"),
];

/// What is done to the primary.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill,
    Freeze,
    /// The host's networks carry nothing more of it, and its twin stands still.
    Vanish,
}

/// One fault.
struct Outage {
    /// The client's longest time without an answer.
    gap: Duration,
    /// The same in the second before.
    before: Duration,
    /// From the fault to each of [`EVENTS`].
    events: [Duration; EVENTS.len()],
    /// From the fault to the first answer of the twin.
    answer: Duration,
    /// Segments that the client's kernel had to send again.
    repeated: u64,
}

impl Outage {
    /// From the fault until the standby knew of it.
    fn detection(&self) -> Duration {
        self.events[0]
    }
}

/// Measures the death of the process.
#[must_use]
pub fn kill() -> Row {
    let outages: Vec<_> = (0..KILLS).map(|_| one(Fault::Kill)).collect();
    let gaps = samples(&outages, |outage| outage.gap);
    Row::new("blackout on kill -9", &gaps)
        .floor(
            "longest gap between answers in the second before",
            &samples(&outages, |outage| outage.before),
        )
        .p50_within(Duration::from_millis(30))
        .p99_within(Duration::from_millis(80))
        .part(
            "until the link was found down",
            &samples(&outages, Outage::detection),
        )
        .detail(lost(&outages))
        .plot(timeline("Blackout on kill -9", &outages))
        .commands(commands("kill -9 PID of node a"))
}

/// Measures a primary that stops answering.
#[must_use]
pub fn freeze() -> Row {
    let outages: Vec<_> = (0..FREEZES).map(|_| one(Fault::Freeze)).collect();
    let gaps = samples(&outages, |outage| outage.gap);
    let beyond = samples(&outages, |outage| {
        outage.gap.saturating_sub(outage.detection())
    });
    let timeout = PairConfig::default().timeout;
    Row::new("blackout on SIGSTOP", &gaps)
        .floor(
            "until the standby found the link down",
            &samples(&outages, Outage::detection),
        )
        .demand(Demand::at_most(
            "p50 beyond the detection",
            Unit::Microseconds,
            beyond.p50(),
            BEYOND_DETECTION_US,
        ))
        .part("beyond the detection", &beyond)
        .detail(format!(
            "`timeout` is {} ms: a peer that is silent for so long counts as dead",
            timeout.as_millis()
        ))
        .plot(timeline("Blackout on SIGSTOP", &outages))
        .commands(commands("kill -STOP PID of node a"))
}

/// Measures a host that is gone from one moment on, as without power.
#[must_use]
pub fn vanish() -> Row {
    let outages: Vec<_> = (0..FREEZES).map(|_| one(Fault::Vanish)).collect();
    let gaps = samples(&outages, |outage| outage.gap);
    let detection = samples(&outages, Outage::detection);
    Row::new("blackout when the primary's host is gone", &gaps)
        .floor("until the standby found the link down", &detection)
        .demand(Demand::at_most(
            "p50 of the detection",
            Unit::Microseconds,
            detection.p50(),
            DETECTION_US,
        ))
        .detail(lost(&outages))
        .plot(timeline("Blackout when the host is gone", &outages))
        .commands(commands(
            "tc qdisc replace dev DEVICE root blackhole (replication), ip link set DEVICE down (LAN), kill -STOP PID of node a",
        ))
}

fn samples(outages: &[Outage], of: impl Fn(&Outage) -> Duration) -> Samples {
    let mut samples = Samples::default();
    outages.iter().for_each(|outage| samples.add(of(outage)));
    samples
}

/// How often the client's request had gone to a host that could not take it any more, and what the others waited.
fn lost(outages: &[Outage]) -> String {
    let kept: Vec<_> = outages.iter().filter(|one| one.repeated == 0).collect();
    let lost = outages.len() - kept.len();
    let longest = kept.iter().map(|one| one.gap).max().unwrap_or_default();
    format!(
        "in {lost} of {} a request got lost on its way to the dead host, and the client's kernel sent it again, after 200 ms at the earliest; \
         in the others the longest gap is {:.1} ms",
        outages.len(),
        longest.as_secs_f64() * 1e3
    )
}

/// Segments that all of a host's connections have sent again so far (RFC 4022, tcpRetransSegs).
fn repeated(host: &NetNamespace) -> u64 {
    let table = host.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"));
    let table = table.unwrap_or_else(|error| panic!("{error}"));
    let table = table.unwrap_or_else(|error| panic!("/proc/thread-self/net/snmp: {error}"));
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
        panic!("/proc/thread-self/net/snmp says nothing of TCP");
    };
    let mut fields = names.split_whitespace().zip(values.split_whitespace());
    let found = fields.find(|(name, _)| *name == "RetransSegs");
    let value = found.and_then(|(_, value)| value.parse().ok());
    value.unwrap_or_else(|| panic!("/proc/thread-self/net/snmp has no RetransSegs"))
}

fn timeline(title: &str, outages: &[Outage]) -> Plot {
    let ms = |of: &dyn Fn(&Outage) -> Duration| -> Vec<f64> {
        let times = outages.iter().map(of);
        times.map(|time| time.as_secs_f64() * 1e3).collect()
    };
    let named = EVENTS.iter().enumerate();
    let mut events: Vec<_> = named
        .map(|(number, (_, name))| (String::from(*name), ms(&|outage| outage.events[number])))
        .collect();
    events.push(("client's first answer".into(), ms(&|outage| outage.answer)));
    Plot::Timeline(Timeline {
        title: format!("{title}: milliseconds after the fault"),
        events,
    })
}

fn commands(fault: &str) -> Vec<String> {
    let run = |node| format!("evertwin run vm.toml --node {node} --log-format json");
    let config = PairConfig::default().to_toml();
    vec![
        run("a"),
        run("b"),
        fault.into(),
        format!("# vm.toml:\n{config}"),
    ]
}

fn one(fault: Fault) -> Outage {
    let mut stage = Stage::protected(&PairConfig::default());
    for (node, side) in [(Node::A, Side::Guest), (Node::B, Side::Other)] {
        pin::process(stage.twin(node).id(), side);
    }
    let _pinned = Pinned::to(Side::Other);
    let load = stage.load(LoadOptions::default());
    let until = Instant::now() + Duration::from_secs(1);
    load.wait_until(Duration::from_secs(1), |_| Instant::now() >= until);
    let before = load.measure_anew();
    let from = stage.twin(Node::B).log().len();
    let client = stage.pair.topology.client.clone();
    let repeated_before = repeated(&client);
    let fell = Instant::now();
    match fault {
        Fault::Kill => stage
            .twin(Node::A)
            .handle()
            .signal(rustix::process::Signal::KILL),
        Fault::Freeze => stage.twin(Node::A).freeze(),
        Fault::Vanish => {
            let network = &stage.pair.topology;
            let cut = network.host(Node::A).cut_outbound(REPLICATION);
            let cut = cut.and_then(|()| network.set_uplink(Node::A, false));
            cut.unwrap_or_else(|error| panic!("{error}"));
            stage.twin(Node::A).freeze();
        }
    }
    let events = EVENTS.map(|(event, _)| {
        let log = stage.twin(Node::B).log();
        let line = log.wait(from, STEP, |line| line.message().as_deref() == Some(event));
        let line = line.unwrap_or_else(|why| panic!("`{event}` did not come: {why:?}"));
        line.at.saturating_duration_since(fell)
    });
    let acked = before.acked;
    let goes_on = load.wait_until(STEP, |now| now.acked > acked + 500);
    let repeated = repeated(&client) - repeated_before;
    assert!(goes_on, "the twin did not go on: {:?}", load.progress());
    let verdict = load.finish();
    assert!(verdict.is_clean(), "{}", verdict.summary());
    let gap = verdict.progress.longest_gap;
    Outage {
        gap,
        before: before.longest_gap,
        events,
        answer: gap
            .saturating_sub(fell.saturating_duration_since(before.last_answer.unwrap_or(fell))),
        repeated,
    }
}
