//! `evertwin demo`: a virtual machine whose client keeps its TCP connection while the process that runs it is
//! killed with -9.
//!
//! Two twins are started as a user would start them, on two hosts made of network namespaces. A client streams
//! numbered writes over one connection and judges every answer. In the middle the primary is killed.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::lab::client::{Load, LoadOptions, Verdict};
use crate::lab::interrupt::Cleaner;
use crate::lab::pair::{Pair, PairConfig};
use crate::lab::topology::{CLIENT, GUEST, GUEST_KV, Node, Topology};
use crate::lab::{LabError, own_binary, preflight};
use crate::narrate::{Narrator, grouped};

/// How long the load runs before the kill, and again after it.
const LOAD: Duration = Duration::from_secs(4);
/// The longest wait for any single step, on a machine that is not slow.
const STEP: Duration = Duration::from_secs(15);

/// Runs the demo, tells its story on the standard output and ends with one line of verdict.
/// Returns the process's exit code: 0 for PASS, 1 for FAIL. Epochs, timeouts and waits last `slow` times as long as usual.
///
/// To be called while the process still has only one thread: without root it enters a user namespace first.
#[must_use]
pub fn run(slow: u32) -> u8 {
    let story = Narrator::on_stdout();
    let directory = match preflight::prepare("evertwin-demo-") {
        Ok(directory) => directory,
        Err(error) => {
            story.verdict(&format!("demo: FAIL {error}"));
            return 1;
        }
    };
    let outcome = tell(&story, directory.path(), slow);
    let fault = match &outcome {
        Ok(verdict) if verdict.is_clean() => None,
        Ok(verdict) => {
            verdict
                .progress
                .complaints
                .iter()
                .chain(&verdict.progress.broken)
                .for_each(|text| story.detail(text));
            Some(verdict.summary())
        }
        Err(error) => Some(error.to_string()),
    };
    match (fault, outcome) {
        (None, Ok(verdict)) => {
            drop(directory);
            story.verdict(&format!("demo: PASS {}", verdict.summary()));
            0
        }
        (fault, _) => {
            let kept = directory.keep();
            let fault = fault.unwrap_or_default();
            story.verdict(&format!(
                "demo: FAIL {fault} (config, disks and logs kept in {})",
                kept.display()
            ));
            1
        }
    }
}

/// The story itself. Everything it starts has ended when it returns.
fn tell(story: &Narrator, directory: &Path, slow: u32) -> Result<Verdict, LabError> {
    story.title("evertwin demo: a virtual machine that survives the death of its host");
    let cleaner = Cleaner::install("demo", directory)?;
    let config = PairConfig::default().slowed(slow);
    let step = STEP * slow;
    let topology = Topology::new()?;
    describe_network(story, &topology);
    let mut pair = Pair::new(topology, &own_binary()?, directory, &config)?;

    story.step("One config file serves both twins (vm.toml):");
    config
        .to_toml()
        .lines()
        .filter(|line| !line.is_empty())
        .for_each(|line| story.detail(line));
    story.step("The twins know each other by keys made for them; what they send is encrypted:");
    story.command("evertwin keys keys --node a --node b");
    story.step("Starting both twins, each on its own host:");
    for node in [Node::A, Node::B] {
        story.command(&format!(
            "ip netns exec host-{0} evertwin run vm.toml --node {0}",
            node.name()
        ));
        let twin = pair.start(node)?;
        cleaner.watch(twin.handle());
    }
    pair.twin(Node::A).wait_for_event("protected", step)?;
    story.step(
        "Protected. Host b holds a verified copy of the running VM, renewed many times a second;",
    );
    story.detail(
        "what the guest sends leaves host a only when host b has the state that produced it.",
    );

    let console = pair.twin(Node::A).wait_for_console("ready", step)?;
    story.step(&format!("The guest's console says: {}", console.text));
    let stream = pair.topology.client.connect(GUEST_KV, step)?;
    let usual = LoadOptions::default();
    let options = LoadOptions {
        patience: usual.patience * slow,
        ..usual
    };
    story.step(&format!(
        "The client opens one TCP connection to {GUEST_KV} and streams numbered writes, {} at a time:",
        options.depth
    ));
    story.command(
        "redis-cli -h 10.77.0.2   # INCR counter, SET key:1 1, INCR counter, SET key:2 2, ...",
    );
    let load = Load::start(stream, options)?;
    load_for(&load, LOAD);

    let before = load.progress();
    story.step(&format!(
        "{} writes acknowledged so far. Now the primary dies, with no chance to say goodbye:",
        grouped(before.acked)
    ));
    story.command(&format!("kill -9 {}", pair.twin(Node::A).id()));
    let killed = Instant::now();
    pair.twin(Node::A).kill();
    let promoted = pair.twin(Node::B).wait_for_event("promoted", step)?;
    let after = promoted.at.saturating_duration_since(killed);
    story.step(&format!(
        "Host b was promoted {} ms after the kill: same memory, same disk, same connections.",
        after.as_millis()
    ));
    load.wait_until(step, |seen| seen.last_answer > Some(promoted.at));
    load_for(&load, LOAD);

    let finished = load.progress();
    story.step(&format!(
        "{} more writes acknowledged over the same connection. Reading every key back ...",
        grouped(finished.acked - before.acked)
    ));
    let verdict = load.finish();
    story.step(&format!(
        "The client's longest wait between two answers was {} ms.",
        verdict.progress.longest_gap.as_millis()
    ));
    story.step("Stopping host b and removing everything.");
    Ok(verdict)
}

fn describe_network(story: &Narrator, topology: &Topology) {
    story.step(
        "Three hosts, each a network namespace of its own (look inside while the demo runs):",
    );
    let hosts = [
        (
            &topology.a,
            format!("replication link {}", Node::A.address().ip()),
        ),
        (
            &topology.b,
            format!("replication link {}", Node::B.address().ip()),
        ),
        (
            &topology.client,
            format!("{CLIENT}, on one LAN with the guest {GUEST}"),
        ),
    ];
    for (host, what) in hosts {
        story.detail(&format!(
            "{:7} {what:46} nsenter --net={} ip addr",
            host.name(),
            host.path().display()
        ));
    }
}

/// Lets the load run for a while, or until it ends by itself.
fn load_for(load: &Load, time: Duration) {
    load.wait_until(time, |seen| seen.broken.is_some());
}
