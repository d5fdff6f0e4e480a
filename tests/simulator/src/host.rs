//! A host: its disk, its clock, and the process of a twin while it lives.

use std::collections::VecDeque;

use evertwin_protocol::{Input, Record, Time, Twin};

use crate::disk::Disk;
use crate::machine::Machine;
use crate::network::{Frame, Link};
use crate::queue::Event;
use crate::random::Random;

/// What outlives a process.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) disk: Disk,
    /// Without an arbiter: who has the right, as this host knows it.
    pub(crate) noted: Option<Record>,
    pub(crate) process: Option<Process>,
    /// The guest's own choices.
    pub(crate) random: Random,
    /// How much faster than the world's this host's clock is, in millionths.
    pub(crate) drift: i64,
    pub(crate) lives: u32,
    pub(crate) paused_until: u64,
    pub(crate) guest_paused_until: u64,
    /// What happened during a pause, for later.
    pub(crate) backlog: Vec<Event>,
    pub(crate) armed: Option<Armed>,
    pub(crate) damage_next: bool,
    pub(crate) lose_epoch: bool,
    pub(crate) capture_fails: u64,
    pub(crate) tracking_fails: bool,
}

/// A crash that is to come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Armed {
    pub(crate) serial: u32,
    /// Actions that are still done.
    pub(crate) after: u64,
    pub(crate) power: bool,
    pub(crate) silently: bool,
    /// When the twin is started again.
    pub(crate) back: Option<u64>,
}

/// One process, alive until it ends or is killed.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) twin: Twin,
    pub(crate) machine: Machine,
    pub(crate) life: u32,
    pub(crate) started: u64,
    pub(crate) link: Option<Link>,
    /// Connections that have not said yet who they are.
    pub(crate) strangers: Vec<u32>,
    /// Messages queued on the link.
    pub(crate) outbox: Vec<Frame>,
    pub(crate) inputs: VecDeque<Input>,
    /// Actions are being done.
    pub(crate) busy: bool,
    /// The load of the message just received.
    pub(crate) received: u32,
    /// The generation and number of the last epoch received.
    pub(crate) whole: Option<(u64, u64)>,
    /// The last epoch that it acknowledged, or made as its guest's last here, and its generation.
    pub(crate) promised: Option<(u64, u64)>,
    /// The last epoch shipped.
    pub(crate) shipped: u64,
    /// The standby has acknowledged an epoch since the sync began.
    pub(crate) acknowledged: bool,
    /// The sync round under way.
    pub(crate) round: Round,
    pub(crate) next_tick: u64,
    /// It looks whether its peer lives.
    pub(crate) probing: bool,
    pub(crate) arbiter_free_at: u64,
}

/// What a sync round has yet to send.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Round {
    /// Tells rounds apart.
    pub(crate) number: u32,
    pub(crate) generation: u64,
    /// Pages, one bit each.
    pub(crate) pages: u16,
    /// Blocks, one bit each.
    pub(crate) blocks: u8,
}

impl Host {
    pub(crate) fn new(seed: u64, host: usize) -> Self {
        let mut random = Random::new(seed, 4 + host as u64);
        Self {
            disk: Disk::default(),
            noted: None,
            process: None,
            drift: random.between(0, 20_000) as i64 - 10_000,
            random,
            lives: 0,
            paused_until: 0,
            guest_paused_until: 0,
            backlog: Vec::new(),
            armed: None,
            damage_next: false,
            lose_epoch: false,
            capture_fails: 0,
            tracking_fails: false,
        }
    }

    /// A span of the world's time on this host's clock.
    fn here(&self, span: u64) -> u64 {
        let more = i128::from(span) * i128::from(self.drift) / 1_000_000;
        span.saturating_add_signed(more as i64)
    }

    /// This host's clock in microseconds.
    pub(crate) fn clock_us(&self, now: u64) -> u64 {
        self.here(now) / 1000
    }

    /// The time that the twin is told.
    pub(crate) fn time(&self, now: u64) -> Time {
        let started = self.process.as_ref().map_or(now, |process| process.started);
        Time::from_nanos(self.here(now - started))
    }

    /// How long the world waits until the twin's clock says this.
    pub(crate) fn until(&self, time: Time, now: u64) -> u64 {
        let span = time.as_nanos().saturating_sub(self.time(now).as_nanos());
        // A little late rather than early.
        let less = i128::from(span) * i128::from(self.drift) / 1_000_000;
        let spare = span / 5_000 + 1;
        span.saturating_add_signed(-less as i64) + spare
    }

    /// Is this the process that was meant?
    pub(crate) fn lives(&self, life: u32) -> bool {
        self.process
            .as_ref()
            .is_some_and(|process| process.life == life)
    }
}

impl Process {
    /// All connections that this process holds.
    pub(crate) fn connections(&self) -> impl Iterator<Item = u32> {
        let link = self.link.map(|link| link.connection);
        link.into_iter().chain(self.strangers.iter().copied())
    }
}
