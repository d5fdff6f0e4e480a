//! What the tests of twins share.

mod checks;
pub(crate) mod keys;
pub(crate) mod machine;
pub(crate) mod proxy;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use evertwin_replicator::arbiter::{Arbiter, FileArbiter, Notes, Record};
use evertwin_replicator::control::{
    Command, Controller, Level, NotDone, Outcome, ScrubReport, TwinStatus, control,
};
use evertwin_replicator::tls::{Keys, Security};
use evertwin_replicator::{Config, Ended, Error, NodeId, Uplink};
use keys::Authority;
use machine::{FakeVm, Handle, World};
use rustix::event::{EventfdFlags, eventfd};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Silence after which a peer counts as dead in these tests.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(400);

/// A twin that runs on a thread of its own.
pub(crate) struct Running {
    pub vm: Handle,
    controller: Controller,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<Result<Ended, Error>>>,
}

impl Running {
    /// Asks the twin to stop.
    pub(crate) fn stop(&self) {
        rustix::io::write(&*self.stop, &1u64.to_ne_bytes()).expect("an eventfd takes a write");
    }

    /// Has an operator's command obeyed.
    pub(crate) fn command(&self, command: Command) -> Outcome {
        self.controller.command(command, PATIENCE)
    }

    /// Has the disks compared.
    pub(crate) fn scrub(&self) -> Result<u64, NotDone> {
        self.controller.scrub(false, PATIENCE)
    }

    /// Has the disks and all memory compared.
    pub(crate) fn scrub_all(&self) -> Result<u64, NotDone> {
        self.controller.scrub(true, PATIENCE)
    }

    /// Waits until its disk was to be compared.
    #[track_caller]
    pub(crate) fn wait_for_check(&self) {
        wait_for("the disk is to be compared", || self.vm.lock().checks.asked);
    }

    /// Number of the last comparison of disks that has ended.
    pub(crate) fn scrubs(&self) -> u64 {
        let status = self.controller.status(PATIENCE).ok();
        let last = status.and_then(|status| status.scrub?.last);
        last.map_or(0, |last| last.number)
    }

    /// How its last comparison of disks ended, once it has.
    #[track_caller]
    pub(crate) fn scrubbed(&self, number: u64) -> ScrubReport {
        wait_for("the pass is over", || self.scrubs() == number);
        let status = self.controller.status(PATIENCE).expect("it runs");
        let last = status.scrub.and_then(|scrub| scrub.last);
        last.expect("it was there")
    }

    /// What the twin says that it does.
    pub(crate) fn role(&self) -> String {
        let status = self.controller.status(PATIENCE);
        status.map_or_else(|_| "ended".to_owned(), |status| status.role)
    }

    /// Has its guest protected at another level.
    pub(crate) fn level(&self, level: Level) -> Outcome {
        self.controller.level(level, PATIENCE)
    }

    /// Why the peer wants no standby, if it wants none.
    pub(crate) fn kept_out(&self) -> Option<String> {
        self.controller.status(PATIENCE).ok()?.kept_out
    }

    /// The peer's address, while there is a link.
    pub(crate) fn link(&self) -> Option<String> {
        self.controller.status(PATIENCE).ok()?.link
    }

    /// Why the peer's disk fails, if it does.
    pub(crate) fn peer_disk_failure(&self) -> Option<String> {
        self.controller.status(PATIENCE).ok()?.peer_disk_failure
    }

    /// All that the twin says of itself.
    #[track_caller]
    pub(crate) fn status(&self) -> TwinStatus {
        self.controller.status(PATIENCE).expect("it runs")
    }

    /// Waits for the run's end.
    pub(crate) fn ended(&mut self) -> Result<Ended, Error> {
        let thread = self.thread.take().expect("it is waited for once");
        wait_for("the run ends", || thread.is_finished());
        thread.join().expect("the driver does not panic")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop();
            let _ = thread.join();
        }
    }
}

/// Two nodes, an address between them, keys and perhaps an arbiter.
pub(crate) struct Pair {
    pub directory: tempfile::TempDir,
    pub listen: SocketAddr,
    pub dial: SocketAddr,
    /// A second path: where a listens, and what b dials.
    pub second: Option<(SocketAddr, SocketAddr)>,
    pub arbiter: bool,
    /// How long twins wait for each other after their link broke.
    pub reconnect: Option<Duration>,
    pub timeout: Duration,
    /// How often disks are compared by themselves.
    pub scrub_every: Option<Duration>,
    /// Whether the uplinks of nodes have carrier.
    pub carriers: Vec<(&'static str, Arc<AtomicBool>)>,
    /// Nodes without TLS.
    pub plaintext: Vec<&'static str>,
    /// Nodes that show the keys of others.
    pub posing: Vec<(&'static str, &'static str)>,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let listen = free_address();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let authority = Authority::new();
        for node in ["a", "b", "c"] {
            authority.certify(node, &keys_of(directory.path(), node));
        }
        Self {
            directory,
            listen,
            dial: listen,
            second: None,
            arbiter: true,
            reconnect: None,
            timeout: TIMEOUT,
            scrub_every: None,
            carriers: Vec::new(),
            plaintext: Vec::new(),
            posing: Vec::new(),
        }
    }

    /// A pair without TLS.
    pub(crate) fn plain() -> Self {
        Self {
            plaintext: vec!["a", "b"],
            ..Self::new()
        }
    }

    fn paths(&self, name: &str) -> Vec<SocketAddr> {
        let (first, second) = match name {
            "a" => (self.listen, self.second.map(|second| second.0)),
            _ => (self.dial, self.second.map(|second| second.1)),
        };
        [first].into_iter().chain(second).collect()
    }

    /// Gives a node an uplink with carrier, which the test can take away.
    pub(crate) fn give_uplink(&mut self, name: &'static str) -> Arc<AtomicBool> {
        let carrier = Arc::new(AtomicBool::new(true));
        self.carriers.push((name, Arc::clone(&carrier)));
        carrier
    }

    fn uplinks(&self, name: &str) -> Vec<Uplink> {
        let own = self.carriers.iter().filter(|(node, _)| *node == name);
        let uplink = |(_, carrier): &(&str, Arc<AtomicBool>)| {
            let carrier = Arc::clone(carrier);
            Uplink {
                name: format!("eth-{name}"),
                hands_over: true,
                has_carrier: Box::new(move || carrier.load(Ordering::Relaxed)),
            }
        };
        own.map(uplink).collect()
    }

    /// Where the keys of a node are.
    pub(crate) fn keys(&self, node: &str) -> PathBuf {
        keys_of(self.directory.path(), node)
    }

    pub(crate) fn record(&self) -> Option<Record> {
        file(self.directory.path())
            .read()
            .expect("the arbiter's file is sound")
    }

    pub(crate) fn start(&self, name: &str, vm: FakeVm) -> Running {
        show_log();
        break_on_purpose();
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"));
        let node: NodeId = name.parse().expect("a valid name");
        let peer = if name == "a" { "b" } else { "a" };
        let (controller, control) = control().expect("a descriptor to spare");
        let peer: NodeId = peer.parse().expect("a valid name");
        let security = if self.plaintext.contains(&name) {
            Security::Plaintext
        } else {
            let posing = self.posing.iter().find(|entry| entry.0 == name);
            let shown = posing.map_or(name, |entry| entry.1);
            let as_whom = shown.parse().expect("a valid name");
            let (keys, _) = Keys::load(&self.keys(shown), as_whom, peer).expect("good keys");
            Security::Tls(keys)
        };
        let config = Config {
            lease: None,
            node,
            peer,
            addresses: self.paths(name),
            security,
            epoch: Duration::from_millis(5),
            heartbeat: Duration::from_millis(20),
            timeout: self.timeout,
            reconnect: self.reconnect,
            resync_rate: None,
            poll: true,
            delta_cache: Some(1 << 20),
            pack: true,
            suspect: Some(Duration::from_millis(30)),
            scrub_every: self.scrub_every,
            scrub_rate: 1 << 30,
            disk_failure: None,
            uplinks: self.uplinks(name),
            stop: stop.try_clone().expect("a descriptor to spare"),
            control: Some(control),
            notes: (!self.arbiter).then(|| Notes::new(self.directory.path().join(name))),
        };
        let arbiter = self
            .arbiter
            .then(|| Box::new(file(self.directory.path())) as Box<dyn Arbiter>);
        let handle = vm.handle();
        let thread = std::thread::Builder::new()
            .name(format!("twin-{name}"))
            .spawn(move || {
                let mut vm = vm;
                evertwin_replicator::run(config, &mut vm, arbiter)
            })
            .expect("a thread");
        Running {
            vm: handle,
            stop,
            controller,
            thread: Some(thread),
        }
    }

    /// Waits until the arbiter's record names a standby.
    pub(crate) fn wait_named(&self, releaser: &str) -> Record {
        wait_for("a standby is named", || {
            self.record().is_some_and(|record| {
                record.releaser.as_str() == releaser && record.standby.is_some()
            })
        });
        self.record().expect("it was there")
    }
}

/// The log goes to the test's output; EVERTWIN_TEST_LOG says which part of it.
fn show_log() {
    let wanted = std::env::var("EVERTWIN_TEST_LOG");
    let filter: Targets = wanted.as_deref().unwrap_or("error").parse().unwrap();
    let lines = tracing_subscriber::fmt::layer().with_thread_names(true);
    // Fails when another test of this process has done it.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init();
}

/// Sets the failpoints named in the environment: these tests must fail then.
fn break_on_purpose() {
    #[cfg(feature = "failpoints")]
    {
        static SCENARIO: std::sync::Once = std::sync::Once::new();
        SCENARIO.call_once(|| std::mem::forget(fail::FailScenario::setup()));
    }
}

fn keys_of(directory: &Path, node: &str) -> PathBuf {
    directory.join(format!("keys-{node}"))
}

fn file(directory: &Path) -> FileArbiter {
    FileArbiter::new(directory.join("arbiter"))
}

/// An address on the loopback that nobody uses just now. Each is of a host of its own, where no connection that another test
/// begins meanwhile is given the same port.
pub(crate) fn free_address() -> SocketAddr {
    static HOSTS: AtomicU8 = AtomicU8::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let host = HOSTS.fetch_add(1, Ordering::Relaxed);
    let host = Ipv4Addr::new(127, 64 + high % 64, low, host);
    let listener = TcpListener::bind((host, 0)).expect("a free port");
    listener.local_addr().expect("a bound listener")
}

/// Waits for something that must come true.
#[track_caller]
pub(crate) fn wait_for(what: &str, holds: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, holds);
}

/// The same within a time.
pub(crate) fn wait_within(time: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + time;
    while !holds() {
        assert!(Instant::now() < until, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Size of a guest.
pub(crate) const PAGES: u64 = 600;

/// A world that has seen nothing yet.
pub(crate) fn world() -> World {
    World::default()
}

/// All that the world has seen.
pub(crate) fn seen(world: &World) -> Vec<u64> {
    world.lock().expect("unpoisoned").clone()
}

/// Steps the guest until the world has seen `count` numbers more.
#[track_caller]
pub(crate) fn run_until_seen(vm: &Handle, world: &World, count: usize) {
    let len = || world.lock().expect("unpoisoned").len();
    let target = len() + count;
    wait_for("the guest's output leaves", || {
        for _ in 0..5 {
            vm.step();
        }
        len() >= target
    });
}

/// Each number once and in order: nothing of an uncommitted epoch was ever seen (I1, I3).
#[track_caller]
pub(crate) fn assert_ascending(world: &World) {
    let seen = seen(world);
    let wrong = seen.windows(2).find(|pair| pair[0] >= pair[1]);
    assert_eq!(wrong, None, "the world saw a number twice or out of order");
}
