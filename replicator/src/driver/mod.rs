//! One thread that joins the protocol core, the sockets and the machine.

mod actions;
mod behind;
mod copying;
mod disks;
mod failing;
mod frames;
mod growing;
mod idle;
mod inbound;
mod level;
mod missed;
mod operator;
mod report;
mod scrub;
mod suspect;
mod sync;
mod uplink;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use evertwin_protocol::{Config as CoreConfig, End, Input, Report, Role, Time, Twin};
use rustix::time::{ClockId, clock_gettime};
use tracing::{info, warn};

use crate::arbiter::{Arbiter, ArbiterThread};
use crate::config::{Config, Ended, Error};
use crate::control::SyncStatus;
use crate::crash::crash_point;
use crate::machine::{Capture, DiskSize, DiskWrite, Identity, Machine};
use crate::network::{Network, Place};
use crate::ring::{Completion, Op, Ring};
use crate::sent::Sent;
use crate::wire::{Assembly, PageList};
use behind::Behind;
use disks::Disks;
use failing::Fails;
use growing::Growth;
use idle::LastEpoch;
use inbound::Kept;
use level::Admission;
use missed::Missed;
use operator::Pending;
use scrub::Scrub;
use suspect::Suspicion;
use sync::SyncRound;
use uplink::Uplinks;

/// Longest sleep; nothing depends on it.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Where epochs follow each other that fast, a standby does not sleep between them. A guest without output has one every
/// 20 ms or so, and an idle one has none.
const POLL: Duration = Duration::from_micros(500);

/// Everything one twin needs while it runs.
pub(crate) struct Driver<'a> {
    config: Config,
    machine: &'a mut dyn Machine,
    identity: Identity,
    twin: Twin,
    inputs: VecDeque<Input>,
    ring: Ring,
    network: Network,
    arbiter: Option<ArbiterThread>,
    output: RawFd,
    inbound: RawFd,
    tracking: RawFd,
    disks_changed: RawFd,
    /// The machine begins to track: nothing may be read before that is done.
    starts_tracking: bool,
    /// Epochs captured and not committed, oldest first.
    shipments: VecDeque<Shipment>,
    /// What the standby has of them; none if epochs always travel whole.
    sent: Option<Sent>,
    /// Captures whose buffers can be used again.
    spare: Vec<Arc<Capture>>,
    harvest: Vec<u64>,
    sync: Option<SyncRound>,
    /// Standby: how far the sync that fills it has come.
    followed_sync: Option<SyncStatus>,
    /// When the lease of the guest ends: of this twin's, or of the other's that is waited for.
    lease_end: Option<Time>,
    /// What is taken of the guest's time, in percent.
    slowed: u8,
    /// What epochs need is given back some time after it.
    last_epoch_was: LastEpoch,
    /// A copy is over, or the pair is idle: the link's buffers are larger than what comes needs.
    link_gives_back: bool,
    /// More of the sync can be read without waiting for anything.
    eager: bool,
    assembly: Assembly,
    pages: PageList,
    disks: Disks,
    scrub: Scrub,
    /// A disk has failed here, and the guest was not told of it.
    disk_fails: Option<Fails>,
    /// Why the peer can be no standby, in its words.
    peer_disk_failure: Option<String>,
    /// Nothing is taken from the link until the disks here have caught up.
    behind: Option<Behind>,
    uplinks: Uplinks,
    /// Disk contents that were received as part of a sync.
    disk_part: Option<DiskWrite>,
    /// What the guest got at the primary and is in no epoch held here.
    kept: Kept,
    /// Standby: when the last epoch came.
    applied: Option<Instant>,
    /// The last epoch of the generation that both twins have.
    last_epoch: u64,
    /// The newest version of the protocol that the peer speaks.
    peer_version: u16,
    /// How large the peer's disks are, as it said when it greeted; empty if they are as large as here.
    peer_sizes: Vec<DiskSize>,
    /// Primary: a disk that is about to grow.
    growth: Option<Growth>,
    admission: Admission,
    missed: Missed,
    suspicion: Suspicion,
    /// Until when frames for a guest that was handed over are passed on.
    forward_until: Option<Instant>,
    pending: Option<Pending>,
    reported: Option<Report>,
    ended: Option<End>,
    /// A failure found where it could not be returned.
    failure: Option<Error>,
}

struct Shipment {
    epoch: u64,
    capture: Arc<Capture>,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(
        mut config: Config,
        machine: &'a mut dyn Machine,
        arbiter: Option<Box<dyn Arbiter>>,
    ) -> Result<Self, Error> {
        config.validate()?;
        let mut ring = Ring::new().map_err(Error::Ring)?;
        let security = config.security.clone();
        let network = if config.node < config.peer {
            Network::listen(&config.addresses, security, &mut ring)?
        } else {
            Network::dial(&config.addresses, security)
        };
        let arbiter = arbiter.map(ArbiterThread::start).transpose()?;
        let mut core = CoreConfig::new(config.node, config.peer, arbiter.is_some());
        core.lease = config.lease;
        core.epoch = config.epoch;
        core.heartbeat = config.heartbeat;
        core.timeout = config.timeout;
        core.reconnect = config.patience();
        if let Some(notes) = &mut config.notes {
            core.noted = notes.read().map_err(Error::Note)?;
        }
        let output = machine.output_waiting();
        let inbound = machine.inbound_waiting();
        let tracking = machine.tracking_switched();
        let disks_changed = machine.disks_changed();
        let mut driver = Self {
            identity: Identity {
                lease: config.lease,
                ..machine.identity()
            },
            twin: Twin::new(core),
            inputs: VecDeque::from([Input::Start]),
            ring,
            network,
            arbiter,
            output,
            inbound,
            tracking,
            disks_changed,
            starts_tracking: false,
            shipments: VecDeque::new(),
            sent: config.delta_cache.map(Sent::new),
            spare: Vec::new(),
            harvest: Vec::new(),
            sync: None,
            followed_sync: None,
            lease_end: None,
            slowed: 0,
            last_epoch_was: LastEpoch::default(),
            link_gives_back: false,
            eager: false,
            assembly: Assembly::default(),
            pages: PageList::default(),
            disks: Disks::new(),
            scrub: Scrub::default(),
            disk_fails: None,
            peer_disk_failure: None,
            behind: None,
            uplinks: Uplinks::new(std::mem::take(&mut config.uplinks)),
            disk_part: None,
            kept: Kept::default(),
            applied: None,
            last_epoch: 0,
            peer_version: 0,
            peer_sizes: Vec::new(),
            growth: None,
            admission: Admission::default(),
            missed: Missed::new(),
            suspicion: Suspicion::new(),
            forward_until: None,
            pending: None,
            reported: None,
            ended: None,
            failure: None,
            config,
            machine,
        };
        driver.arm().map_err(Error::Ring)?;
        Ok(driver)
    }

    /// Runs until the guest ends, is fenced, or the run is asked to stop.
    pub(crate) fn run(mut self) -> Result<Ended, Error> {
        let result = self.serve();
        if result.is_err() && self.runs_guest() {
            // Nobody replicates this guest any more, so nothing of it may get out.
            self.machine.fence();
        }
        result.map_err(|error| self.name_disk_failure(error))
    }

    fn serve(&mut self) -> Result<Ended, Error> {
        let mut completions = Vec::with_capacity(64);
        self.drain()?;
        while self.ended.is_none() {
            self.pump_sync();
            self.pump_scrub();
            self.watch_uplinks();
            self.give_back_when_idle();
            self.look_for_peer()?;
            self.watch_peer()?;
            self.drain()?;
            self.turn()?;
            let wait = self.wait();
            self.ring
                .poll(self.poll_time().min(wait))
                .map_err(Error::Ring)?;
            self.ring
                .wait(wait, &mut completions)
                .map_err(Error::Ring)?;
            // What has arrived is taken in before the clock is looked at: a loop that was late
            // by itself must not take that for its peer's silence.
            for completion in &completions {
                self.complete(completion)?;
                self.drain()?;
            }
            self.listen_later()?;
            self.leave_silent_path();
            if self.twin.poll_timeout().is_some_and(|at| at <= self.now()) {
                self.inputs.push_back(Input::Tick);
                self.drain()?;
            }
        }
        self.say_goodbye(&mut completions)?;
        Ok(match self.ended {
            Some(End::GuestExited) => Ended::GuestExited,
            Some(End::PeerGuestExited) => Ended::PeerGuestExited,
            Some(End::Fenced) => Ended::Fenced,
            Some(End::Left) => Ended::Left,
            Some(End::Stopped) | None => Ended::Stopped,
        })
    }

    /// Gives the core its inputs and does what it says, until both are done.
    fn drain(&mut self) -> Result<(), Error> {
        self.drain_with(&[])
    }

    /// The same, with the page bytes that the input speaks of.
    fn drain_with(&mut self, bytes: &[u8]) -> Result<(), Error> {
        while let Some(input) = self.inputs.pop_front() {
            let now = self.now();
            self.twin.handle(now, input);
            while let Some(action) = self.twin.poll_action() {
                self.act(action, bytes)?;
            }
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
        }
        Ok(())
    }

    fn arm(&mut self) -> io::Result<()> {
        self.ring.poll_readable(self.output, Op::Output)?;
        self.ring.poll_readable(self.inbound, Op::Inbound)?;
        self.ring.poll_readable(self.tracking, Op::Tracking)?;
        self.ring.poll_readable(self.disks_changed, Op::Disks)?;
        self.ring.poll_readable(self.machine.exited(), Op::Exited)?;
        self.ring
            .poll_readable(self.config.stop.as_raw_fd(), Op::Stop)?;
        self.arm_control()?;
        self.arm_arbiter()
    }

    fn arm_arbiter(&mut self) -> io::Result<()> {
        match &self.arbiter {
            Some(arbiter) => self.ring.poll_readable(arbiter.answered(), Op::Arbiter),
            None => Ok(()),
        }
    }

    fn complete(&mut self, completion: &Completion) -> Result<(), Error> {
        match completion.op {
            Op::Receive | Op::Send => return self.transferred(completion),
            Op::Accept => {
                self.network
                    .accept(&mut self.ring, completion.id, Instant::now())
                    .map_err(Error::Ring)?;
            }
            Op::Dial => {
                if self
                    .network
                    .dialed(completion, &mut self.ring, Instant::now())
                    .map_err(Error::Ring)?
                {
                    self.inputs.push_back(Input::LinkUp);
                }
            }
            Op::Probe => self.looked_for_peer(completion),
            Op::Look => self.looked(completion),
            Op::Output => {
                self.drain_and_poll(self.output, Op::Output)?;
                self.inputs.push_back(Input::OutputWaiting);
            }
            Op::Inbound => {
                self.drain_and_poll(self.inbound, Op::Inbound)?;
                self.pass_inbound();
            }
            Op::Tracking => {
                self.drain_and_poll(self.tracking, Op::Tracking)?;
                self.tracking_started();
            }
            Op::Disks => {
                self.drain_and_poll(self.disks_changed, Op::Disks)?;
                self.machine.check_repeated()?;
                self.catch_up()?;
                self.tell_begun()?;
                self.tell_reached();
                self.look_for_failure();
                self.look_for_room();
                self.go_on_scrubbing();
            }
            Op::Exited => self.guest_exited()?,
            Op::Stop => self.inputs.push_back(Input::Stop),
            Op::Control => self.asked()?,
            Op::Arbiter => {
                while let Some(answer) = self.arbiter.as_ref().and_then(ArbiterThread::answer) {
                    self.inputs.push_back(Input::Arbiter(answer));
                }
                self.arm_arbiter().map_err(Error::Ring)?;
            }
            Op::Cancel => {}
        }
        Ok(())
    }

    /// What the eventfd said is taken in; the next word is waited for.
    fn drain_and_poll(&mut self, fd: RawFd, op: Op) -> Result<(), Error> {
        drain_eventfd(fd);
        self.ring.poll_readable(fd, op).map_err(Error::Ring)
    }

    fn guest_exited(&mut self) -> Result<(), Error> {
        if let Some(failure) = self.machine.failure() {
            // The link breaks with this run, and the standby takes over.
            return Err(failure.into());
        }
        // The guest may have ended as it was handed over: its new host has that in its state.
        if !self.runs_guest() || self.machine.after_guest_exit()? {
            return self
                .ring
                .poll_readable(self.machine.exited(), Op::Exited)
                .map_err(Error::Ring);
        }
        self.inputs.push_back(Input::GuestExited);
        Ok(())
    }

    fn transferred(&mut self, completion: &Completion) -> Result<(), Error> {
        let place = self.network.place(completion.id);
        let Some(connection) = self.network.get(completion.id) else {
            return Ok(());
        };
        if completion.op == Op::Send {
            let sent = connection.sent(completion);
            if let (Some(Place::Link), Err(error)) = (place, sent) {
                self.lose_link(&error.to_string());
            }
            return Ok(());
        }
        let received = connection.received(completion.result);
        match (place, received) {
            (Some(Place::Link | Place::Stranger), Ok(1..)) => self.take_frames(completion.id),
            (Some(Place::Leaving), Ok(1..)) => self.receive_more(completion.id),
            (Some(Place::Link), Ok(_)) => {
                let how = if connection.torn() {
                    warn!(peer = %connection.address, "unfinished frame discarded");
                    "the connection ended within a frame"
                } else {
                    "the peer closed the connection"
                };
                self.lose_link(how);
                Ok(())
            }
            (Some(Place::Link), Err(error)) => {
                self.lose_link(&error.to_string());
                Ok(())
            }
            (Some(_), _) => {
                self.network.cut_off(completion.id);
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    /// Sends what waits, and looks after connections.
    fn turn(&mut self) -> Result<(), Error> {
        self.forward_no_longer();
        let wanted = self.twin.wants_link();
        self.network
            .turn(&mut self.ring, Instant::now(), wanted)
            .map_err(Error::Ring)
    }

    fn wait(&self) -> Duration {
        if self.eager {
            return Duration::ZERO;
        }
        let core = self.twin.poll_timeout().map(|at| at - self.now());
        let network = self.network.deadline(self.twin.wants_link());
        let sync = self.sync.as_ref().and_then(SyncRound::due);
        let sync = sync.filter(|_| !self.disks.awaits_standby());
        let scrub = self.scrub.due(self.twin.role());
        let looks = [
            self.next_look(),
            self.next_look_at_host(),
            self.next_look_at_uplinks(),
            self.next_give_back(),
        ];
        let moments = [network, self.forward_until, sync, scrub];
        let now = Instant::now();
        let moments = moments.into_iter().chain(looks).flatten();
        core.into_iter()
            .chain(moments.map(|at| at.saturating_duration_since(now)))
            .chain(self.path_silent_in())
            .fold(LONGEST_WAIT, Duration::min)
    }

    /// How long to look for the next epoch without sleeping: its output waits while a sleeping processor wakes up.
    fn poll_time(&self) -> Duration {
        let applied = self.applied.filter(|_| self.config.poll);
        applied.map_or(Duration::ZERO, |at| POLL.saturating_sub(at.elapsed()))
    }

    /// Time until the path of the link counts as silent. A healthy one has a heartbeat before that.
    fn path_silent_in(&self) -> Option<Duration> {
        let link = self.network.link.as_ref()?;
        let left = (self.config.timeout / 2).saturating_sub(link.quiet());
        let listens = self.behind.is_none();
        (listens && self.config.has_paths()).then_some(left)
    }

    /// Leaves a silent path while there is time to go on over another. Later the peer itself is
    /// taken for silent.
    fn leave_silent_path(&mut self) {
        let silent = self.path_silent_in().is_some_and(|left| left.is_zero());
        let link = self.network.link.as_ref();
        if silent && link.is_some_and(|link| link.quiet() < self.config.timeout) {
            self.lose_link("nothing comes on this path");
        }
    }

    /// Lets the peer read the last words before the connection goes.
    fn say_goodbye(&mut self, completions: &mut Vec<Completion>) -> Result<(), Error> {
        if self.ended == Some(End::Stopped) {
            return Ok(());
        }
        self.network.leave(Instant::now());
        while !self.network.left() {
            self.network
                .turn(&mut self.ring, Instant::now(), false)
                .map_err(Error::Ring)?;
            let until = self.network.deadline(false);
            let wait = until.map_or(Duration::ZERO, |at| {
                at.saturating_duration_since(Instant::now())
            });
            self.ring.wait(wait, completions).map_err(Error::Ring)?;
            for completion in completions.iter() {
                if matches!(completion.op, Op::Receive | Op::Send) {
                    self.transferred(completion)?;
                }
            }
        }
        Ok(())
    }

    /// The link is gone, and with it what was received of an unfinished epoch (I3).
    fn lose_link(&mut self, how: &str) {
        if let Some(link) = &self.network.link {
            info!(peer = %link.address, reason = how, "link down");
            self.network.cut_link();
            self.forget_received();
            self.inputs.push_back(Input::LinkDown);
            crash_point("link::lost");
        }
    }

    fn forget_received(&mut self) {
        self.behind = None;
        self.disk_part = None;
        self.followed_sync = None;
        self.disks.forget();
        self.scrub.link_lost();
        if let Some(epoch) = self.assembly.discard() {
            warn!(epoch, "unfinished epoch discarded");
        }
    }

    fn runs_guest(&self) -> bool {
        matches!(
            self.twin.role(),
            Role::Solo
                | Role::Syncing
                | Role::Naming
                | Role::Protected
                | Role::Interrupted
                | Role::Holding
        )
    }

    fn now(&self) -> Time {
        let nanos = since_boot().as_nanos();
        Time::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        self.network.close(&mut self.ring);
    }
}

/// The time since this host was started, also while it was suspended: a peer did not wait meanwhile.
fn since_boot() -> Duration {
    // Neither part of the clock's reading is ever negative.
    clock_gettime(ClockId::Boottime)
        .try_into()
        .unwrap_or_default()
}

fn drain_eventfd(fd: RawFd) {
    // SAFETY: the machine keeps its descriptor open while the driver borrows the machine.
    #[allow(unsafe_code)]
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    // It was readable; if somebody else was faster there is nothing left to do.
    let _ = rustix::io::read(fd, &mut [0; 8]);
}
