//! The pair, its files, and what its twins say.

use std::iter::Cycle;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, vec};

use evertwin::control::{self, Reply, Request};
use evertwin::lab::events::Line;
use evertwin::lab::pair::{Pair, PairConfig};
use evertwin::lab::process::Process;
use evertwin::lab::topology::{Node, Topology};
use evertwin_devices::virtio::block::{CacheMode, DiskImage};
use evertwin_replicator::control::ScrubReport;

use crate::copies::Copies;
use crate::error::TortureError;
use crate::guest::Guest;
use crate::images;
use crate::pattern::{BLOCKS, DISK, WRITES};
use crate::rot::Rot;

/// Both nodes.
pub(crate) const NODES: [Node; 2] = [Node::A, Node::B];

/// Silence after which a twin counts as dead: longer than usual, for the machine may have other work to do.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);

/// How long the guest writes before a pause.
pub(crate) const BUSY: Duration = Duration::from_millis(500);

/// How long it then does not.
pub(crate) const PAUSE: Duration = Duration::from_millis(1500);

/// The longest that a process may take to end.
const END: Duration = Duration::from_secs(10);

/// What a standby says once it is named.
const READY: &str = "standby ready";

/// What a twin says when it changes its role.
const NEWS: [&str; 4] = [READY, "link down", "promoted", "solo"];

/// The exit code of a twin whose guest the other one runs now.
const FENCED: i32 = 3;

/// A pair and where it lives.
pub(crate) struct Site {
    pair: Pair,
    directory: PathBuf,
    config: PairConfig,
    /// Ways for requests to reach the disks, in turns: each twin that starts takes the next.
    caches: Cycle<vec::IntoIter<&'static str>>,
    began: Instant,
    twins: [Twin; 2],
    pub guest: Guest,
    pub copies: Copies,
    pub rot: Rot,
}

/// What there is to know of a twin's process.
#[derive(Default)]
struct Twin {
    started: bool,
    /// It was killed, or asked to end.
    doomed: bool,
    console: usize,
    log: usize,
}

/// The ways for requests to reach disks in this directory.
fn caches(directory: &Path) -> Result<Vec<&'static str>, TortureError> {
    let image = directory.join("disk-a.img");
    let opened = DiskImage::open(&image, false).map_err(io::Error::other);
    let mut image = opened.map_err(TortureError::io("opening a disk"))?;
    match image.set_cache(CacheMode::None) {
        Ok(()) => Ok(vec!["host", "none"]),
        Err(error) => {
            println!("disks: only through the page cache: {error}");
            Ok(vec!["host"])
        }
    }
}

impl Site {
    /// Sets up hosts and files; starts nothing. The disk of `a` has what the guest starts from.
    pub(crate) fn new(evertwin: &Path, directory: &Path) -> Result<Self, TortureError> {
        let config = PairConfig {
            memory: "64M".to_owned(),
            disk: Some(DISK),
            timeout: SILENCE,
            scrub_rate: Some("1G".to_owned()),
            // Slow enough for a second blow to come in the middle of a full copy.
            resync_rate: Some("48M".to_owned()),
            ..PairConfig::default()
        };
        let site = Self {
            pair: Pair::new(Topology::new()?, evertwin, directory, &config)?,
            directory: directory.to_owned(),
            config,
            caches: caches(directory)?.into_iter().cycle(),
            began: Instant::now(),
            twins: Default::default(),
            guest: Guest::new(),
            copies: Copies::default(),
            rot: Rot::default(),
        };
        images::write_first(&site.image(Node::A))
            .and_then(|()| images::write_others(&site.image(Node::B)))
            .map_err(TortureError::io("writing the disks"))?;
        Ok(site)
    }

    /// A node's disk.
    pub(crate) fn image(&self, node: Node) -> PathBuf {
        self.directory.join(format!("disk-{}.img", node.name()))
    }

    /// Starts a twin that does not run.
    pub(crate) fn start(&mut self, node: Node) -> Result<(), TortureError> {
        self.config.cmdline = format!(
            "workload=bursts blocks={BLOCKS} writes={WRITES} busy_ms={} pause_ms={} first={}",
            BUSY.as_millis(),
            PAUSE.as_millis(),
            // A guest that is booted anew numbers its rounds on from here, above all that were before.
            self.began.elapsed().as_micros() + 1,
        );
        self.config.cache = self.caches.next().map(str::to_owned);
        let file = self.directory.join("vm.toml");
        // In one step: the other twin may be reading it.
        let new = file.with_extension("new");
        fs::write(&new, self.config.to_toml())
            .and_then(|()| fs::rename(&new, &file))
            .map_err(TortureError::io(format!("writing {}", file.display())))?;
        self.pair.start(node)?;
        self.twins[node as usize] = Twin {
            started: true,
            ..Twin::default()
        };
        Ok(())
    }

    /// The process of a twin that was started.
    fn process(&mut self, node: Node) -> &mut Process {
        self.pair.twin(node)
    }

    /// Kills a twin, as a power cut would. One that has ended does not mind.
    pub(crate) fn kill(&mut self, node: Node) {
        self.twins[node as usize].doomed = true;
        self.process(node).kill();
    }

    /// Waits until the twin prints that a round is on the guest's disk. True at that very moment, false if it never comes.
    pub(crate) fn wait_for_round(&mut self, node: Node, timeout: Duration) -> bool {
        let console = self.process(node).console();
        let announced = |line: &Line| line.text.trim_end().ends_with(" busy");
        console.wait(console.len(), timeout, announced).is_ok()
    }

    /// Freezes a twin for a while.
    pub(crate) fn freeze(&mut self, node: Node, time: Duration) {
        self.process(node).freeze();
        std::thread::sleep(time);
        self.process(node).thaw();
    }

    /// Pulls the replication link's cable for a while.
    pub(crate) fn cut_link(&mut self, time: Duration) -> Result<(), TortureError> {
        self.pair.topology.set_replication_link(false)?;
        std::thread::sleep(time);
        Ok(self.pair.topology.set_replication_link(true)?)
    }

    /// Has a primary exchange the roles.
    pub(crate) fn switch_over(&self, primary: Node) -> Result<(), TortureError> {
        match control::ask(&self.socket(primary), Request::Switchover)? {
            Reply::Done { .. } => Ok(()),
            other => Err(TortureError::Switchover(format!("{other:?}"))),
        }
    }

    /// Has a primary compare both disks. The number of the pass.
    pub(crate) fn scrub(&self, primary: Node) -> Result<u64, TortureError> {
        match control::ask(&self.socket(primary), Request::Scrub { memory: false })? {
            Reply::Scrubbing { number } => Ok(number),
            other => Err(TortureError::Scrub(format!("{other:?}"))),
        }
    }

    /// How the last pass of a primary has ended.
    pub(crate) fn scrubbed(&self, primary: Node) -> Option<ScrubReport> {
        match control::ask(&self.socket(primary), Request::Status) {
            Ok(Reply::Status(status)) => status.twin.scrub?.last,
            _ => None,
        }
    }

    /// Has a twin end, as before the maintenance of its host.
    pub(crate) fn leave(&mut self, node: Node) -> Result<(), TortureError> {
        self.twins[node as usize].doomed = true;
        // It may be gone before its answer was read: its end is what counts.
        let _ = control::ask(&self.socket(node), Request::Leave);
        self.process(node).wait_for_exit(END)?;
        Ok(())
    }

    /// Whether a twin runs. One that has ended for no good reason is an error.
    pub(crate) fn is_running(&mut self, node: Node) -> Result<bool, TortureError> {
        let Twin {
            started, doomed, ..
        } = self.twins[node as usize];
        if !started {
            return Ok(false);
        }
        if self.process(node).is_running() {
            return Ok(true);
        }
        // The rest of what it said comes with this.
        let status = self.process(node).wait_for_exit(END)?;
        self.listen();
        if doomed || status.code() == Some(FENCED) {
            return Ok(false);
        }
        let last = self.process(node).log().lines().pop();
        let last = last.map(|line| line.text).unwrap_or_default();
        Err(TortureError::Ended { node, status, last })
    }

    /// What both twins do, `gone` for one that says nothing.
    pub(crate) fn roles(&self) -> [String; 2] {
        NODES.map(
            |node| match control::ask(&self.socket(node), Request::Status) {
                Ok(Reply::Status(status)) => status.twin.role,
                _ => "gone".to_owned(),
            },
        )
    }

    /// The primary of a protected pair: one twin protects the guest and the other follows it, is named, and knows it.
    pub(crate) fn protected_by(&mut self, roles: &[String; 2]) -> Option<Node> {
        let primary = match roles.each_ref().map(String::as_str) {
            ["protected", "standby"] => Node::A,
            ["standby", "protected"] => Node::B,
            _ => return None,
        };
        let lines = self.process(primary.peer()).log().lines();
        let mut said = lines.iter().rev().filter_map(Line::message);
        let news = said.find(|said| NEWS.contains(&said.as_str()));
        (news.as_deref() == Some(READY)).then_some(primary)
    }

    /// Takes what the twins have said since this was last done.
    pub(crate) fn listen(&mut self) {
        for node in NODES {
            if !self.twins[node as usize].started {
                continue;
            }
            let process = self.pair.twin(node);
            let (console, log) = (process.console().lines(), process.log().lines());
            let twin = &mut self.twins[node as usize];
            for line in &console[twin.console..] {
                self.guest.hear(node, line);
            }
            for line in &log[twin.log..] {
                self.copies.hear(node, line);
            }
            (twin.console, twin.log) = (console.len(), log.len());
        }
    }

    fn socket(&self, node: Node) -> PathBuf {
        self.directory.join(format!("{}.sock", node.name()))
    }
}
