//! A protected pair in a test's lab.

use std::process::Output;
use std::time::{Duration, Instant};

use evertwin::lab::client::{Load, LoadOptions, Verdict};
use evertwin::lab::pair::{Pair, PairConfig};
use evertwin::lab::process::Process;
use evertwin::lab::topology::{GUEST_KV, Node};

use crate::lab::{SLOW, STEP, TestLab, bounded_tool, evertwin_binary};

/// A pair and the lab it lives in.
#[derive(Debug)]
pub struct Stage {
    /// The pair; dropped, and with it the twins, before the lab's directory goes.
    pub pair: Pair,
    /// The lab.
    pub lab: TestLab,
}

impl Stage {
    /// Sets up a pair; starts nothing.
    ///
    /// # Panics
    /// If the files can't be written.
    #[must_use]
    pub fn new(config: &PairConfig) -> Self {
        Self::in_lab(TestLab::new(), config)
    }

    /// The same in a lab that is already there.
    ///
    /// # Panics
    /// If the files can't be written.
    #[must_use]
    pub fn in_lab(lab: TestLab, config: &PairConfig) -> Self {
        let pair = Pair::new(
            lab.topology.clone(),
            &evertwin_binary(),
            lab.directory(),
            &config.slowed(SLOW),
        );
        Self {
            pair: pair.unwrap_or_else(|error| panic!("{error}")),
            lab,
        }
    }

    /// Sets up a pair and waits until it is protected and its guest is ready.
    ///
    /// # Panics
    /// If it does not get there in time.
    #[must_use]
    pub fn protected(config: &PairConfig) -> Self {
        let mut stage = Self::new(config);
        stage.protect();
        stage
    }

    /// Starts both twins and waits until the pair is protected and its guest is ready.
    ///
    /// # Panics
    /// If it does not get there in time.
    pub fn protect(&mut self) {
        self.pair
            .start_protected(STEP)
            .unwrap_or_else(|error| panic!("{error}"));
        self.twin(Node::A)
            .wait_for_console("ready", STEP)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// A twin.
    pub fn twin(&mut self, node: Node) -> &mut Process {
        self.pair.twin(node)
    }

    /// Waits for a log event of a twin.
    ///
    /// # Panics
    /// If it does not come in time.
    pub fn wait_for(&mut self, node: Node, event: &str) {
        self.twin(node)
            .wait_for_event(event, STEP)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Runs an operator's command, such as `status`, on a twin.
    ///
    /// # Panics
    /// If the tool can't be run.
    #[must_use]
    pub fn operate(&self, node: Node, command: &[&str]) -> Output {
        let evertwin = evertwin_binary();
        let config = self.pair.directory().join("vm.toml");
        let target = [&config.to_string_lossy(), "--node", node.name()];
        let arguments = [command, &target].concat();
        bounded_tool(
            self.pair.topology.host(node),
            &evertwin.to_string_lossy(),
            &arguments,
        )
        .output()
        .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits until two images hold the same, block by block: once the guest is quiet, and the last epoch is applied.
    ///
    /// # Panics
    /// If they don't come to that in time.
    pub fn await_same_images(&self, images: [&str; 2]) {
        let until = Instant::now() + STEP;
        loop {
            let [a, b] = images.map(|image| {
                let path = self.lab.path(image);
                std::fs::read(path).unwrap_or_else(|error| panic!("{image}: {error}"))
            });
            let mut blocks = a.chunks(4096).zip(b.chunks(4096));
            let Some(block) = blocks.position(|(a, b)| a != b) else {
                assert_eq!(a.len(), b.len());
                return;
            };
            assert!(Instant::now() < until, "4 KiB block {block} differs");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What a twin says that it is doing, in one word; nothing if it does not answer.
    #[must_use]
    pub fn role(&self, node: Node) -> Option<String> {
        let output = self.operate(node, &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        status["role"].as_str().map(str::to_owned)
    }

    /// Waits until a twin does something.
    ///
    /// # Panics
    /// If it does not come to that in time.
    pub fn wait_for_role(&self, node: Node, role: &str) {
        let until = Instant::now() + STEP;
        loop {
            let now = self.role(node);
            if now.as_deref() == Some(role) {
                return;
            }
            assert!(Instant::now() < until, "{node:?} is {now:?}, not {role}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Frames that a host has received from its guest so far.
    ///
    /// # Panics
    /// If the host does not say.
    #[must_use]
    pub fn frames_from_guest(&self, node: Node) -> u64 {
        let host = self.pair.topology.host(node);
        let table = host
            .enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))
            .unwrap()
            .unwrap();
        let line = table
            .lines()
            .find_map(|line| line.trim_start().strip_prefix("tap0:"))
            .unwrap();
        // Fields of a device: received bytes, received packets, ...
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Starts a judging client on one connection.
    ///
    /// # Panics
    /// If the guest does not accept the connection.
    #[must_use]
    pub fn load(&self, options: LoadOptions) -> Load {
        let stream = self
            .pair
            .topology
            .client
            .connect(GUEST_KV, STEP)
            .unwrap_or_else(|error| panic!("{error}"));
        let options = LoadOptions {
            patience: options.patience * SLOW,
            ..options
        };
        Load::start(stream, options).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Waits until `more` further writes have been acknowledged.
///
/// # Panics
/// If the connection breaks or the answers don't come in time.
pub fn wait_for_more(load: &Load, more: u64) {
    let target = load.progress().acked + more;
    let came = load.wait_until(STEP, |seen| seen.acked >= target);
    assert!(
        came,
        "{more} more acknowledgements did not come within {STEP:?}: {:?}",
        load.progress()
    );
}

/// Lets the load run for a while.
///
/// # Panics
/// If the connection breaks meanwhile.
pub fn run_for(load: &Load, time: Duration) {
    assert!(
        !load.wait_until(time, |seen| seen.broken.is_some()),
        "{:?}",
        load.progress()
    );
}

/// Ends the load and demands a clean judgement.
///
/// # Panics
/// If anything was lost, repeated or answered wrongly, or the connection broke.
pub fn demand_clean(load: Load) -> Verdict {
    let verdict = load.finish();
    assert!(
        verdict.is_clean(),
        "{} {:?}",
        verdict.summary(),
        verdict.progress
    );
    verdict
}
