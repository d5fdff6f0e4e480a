//! A machine: what the driver has under its hands, with a guest that is one number.

use std::collections::VecDeque;

use evertwin_protocol::Time;

use crate::disk::Disk;
use crate::story::{BLOCKS, Blocks, Memory, Moment, PAGES};

/// What travels with an epoch or with a part of a sync.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// The state of the vCPUs and devices: the guest's moment and its clock.
    pub(crate) moment: Moment,
    pub(crate) clock: u64,
    /// The pages in it, one bit each.
    pub(crate) pages: u16,
    pub(crate) memory: Memory,
    /// The blocks in it, one bit each.
    pub(crate) blocks: u8,
    pub(crate) disk: Blocks,
}

/// A state that a promotion would run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) moment: Moment,
    pub(crate) clock: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Machine {
    pub(crate) running: bool,
    pub(crate) open: bool,
    /// Only its disks are replicated.
    pub(crate) ha: bool,
    /// Until when it may speak, on the clock of the twin; none: as long as it likes.
    pub(crate) lease: Option<Time>,
    pub(crate) stopped: bool,
    /// What it would have said if it had been allowed to.
    unsaid: Vec<Moment>,
    pub(crate) tracking: bool,
    pub(crate) moment: Moment,
    pub(crate) memory: Memory,
    pub(crate) standing: Option<Standing>,
    /// What is taken of the guest's time, in percent.
    pub(crate) slowed: u8,
    /// Added to the host's clock for the guest's.
    offset: i64,
    dirty: u16,
    /// The driver's: pages of the last harvest.
    pub(crate) harvest: u16,
    /// Blocks written since they were last taken.
    written: u8,
    /// Output that is held: its epoch once sealed, and the moment behind it.
    held: VecDeque<(Option<u64>, Moment)>,
    /// Epochs captured and not committed.
    shipments: VecDeque<(u64, Load)>,
}

impl Machine {
    pub(crate) fn new(ha: bool) -> Self {
        Self {
            ha,
            ..Self::default()
        }
    }

    /// The guest's clock, which goes with the host's.
    pub(crate) fn clock(&self, host_us: u64) -> u64 {
        host_us.saturating_add_signed(self.offset)
    }

    pub(crate) fn boot(&mut self, moment: Moment, host_us: u64) {
        self.running = true;
        self.moment = moment;
        self.memory = [moment; PAGES];
        self.offset = -(host_us as i64);
        self.dirty = if self.tracking && !self.ha {
            u16::MAX
        } else {
            0
        };
    }

    pub(crate) fn promote(&mut self, standing: Standing, host_us: u64) {
        self.running = true;
        self.moment = standing.moment;
        self.offset = standing.clock as i64 - host_us as i64;
    }

    /// The guest went on and wrote these pages, and perhaps a block.
    pub(crate) fn went_on(&mut self, moment: Moment, pages: u16, block: Option<u8>) {
        self.moment = moment;
        for page in 0..PAGES {
            if pages & (1 << page) != 0 {
                self.memory[page] = moment;
            }
        }
        if self.tracking {
            self.dirty |= if self.ha { 0 } else { pages };
            self.written |= block.map_or(0, |block| 1 << block);
        }
    }

    /// Holds output. True when it is the first to wait for the epoch's end.
    pub(crate) fn hold(&mut self, moment: Moment) -> bool {
        let first = self.held.back().is_none_or(|(epoch, _)| epoch.is_some());
        self.held.push_back((None, moment));
        first
    }

    /// The next output that may leave under this right.
    pub(crate) fn let_go(&mut self, through: Option<u64>) -> Option<Moment> {
        let may = |epoch: &Option<u64>| match through {
            None => true,
            Some(through) => epoch.is_some_and(|epoch| epoch <= through),
        };
        self.held
            .pop_front_if(|(epoch, _)| may(epoch))
            .map(|(_, moment)| moment)
    }

    pub(crate) fn start_tracking(&mut self) {
        self.tracking = true;
        self.dirty = 0;
        self.written = 0;
    }

    pub(crate) fn stop_tracking(&mut self) {
        self.tracking = false;
        self.dirty = 0;
        self.written = 0;
        self.shipments.clear();
    }

    pub(crate) fn harvest(&mut self) -> u64 {
        self.harvest = std::mem::take(&mut self.dirty);
        self.harvest.count_ones().into()
    }

    pub(crate) fn redirty(&mut self) {
        self.dirty |= self.harvest;
    }

    /// These pages as they are now, and the blocks written since they were last taken.
    pub(crate) fn read(&mut self, pages: u16, blocks: u8, disk: &Disk) -> Load {
        Load {
            moment: 0,
            clock: 0,
            pages,
            memory: self.memory,
            blocks: blocks | std::mem::take(&mut self.written),
            disk: disk.contents(),
        }
    }

    /// Captures an epoch. True if there is nothing in it.
    pub(crate) fn capture(&mut self, epoch: u64, disk: &Disk, host_us: u64) -> bool {
        for entry in &mut self.held {
            entry.0.get_or_insert(epoch);
        }
        let pages = std::mem::take(&mut self.dirty);
        let mut load = self.read(pages, 0, disk);
        load.moment = self.moment;
        load.clock = self.clock(host_us);
        self.shipments.push_back((epoch, load));
        load.pages == 0 && load.blocks == 0
    }

    /// The guest stays where it is, as an epoch that is held.
    pub(crate) fn stay(&mut self, host_us: u64) {
        self.running = false;
        self.standing = Some(Standing {
            moment: self.moment,
            clock: self.clock(host_us),
        });
    }

    /// May anything of the guest get out at this time?
    pub(crate) fn may_speak(&self, now: Time) -> bool {
        !self.stopped && self.lease.is_none_or(|until| now < until)
    }

    /// The guest would say this if it were allowed to.
    pub(crate) fn keep(&mut self, moment: Moment) {
        self.unsaid.push(moment);
    }

    pub(crate) fn take_unsaid(&mut self) -> Vec<Moment> {
        std::mem::take(&mut self.unsaid)
    }

    pub(crate) fn drop_output(&mut self) {
        self.held.clear();
    }

    pub(crate) fn shipment(&self, epoch: u64) -> Option<Load> {
        let found = self.shipments.iter().find(|entry| entry.0 == epoch);
        found.map(|entry| entry.1)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.shipments.len()
    }

    pub(crate) fn committed(&mut self, through: u64) {
        while self
            .shipments
            .pop_front_if(|entry| entry.0 <= through)
            .is_some()
        {}
    }

    pub(crate) fn store(&mut self, load: &Load) {
        for page in 0..PAGES {
            if load.pages & (1 << page) != 0 {
                self.memory[page] = load.memory[page];
            }
        }
    }

    /// Stops the guest for good and discards its output.
    pub(crate) fn fence(&mut self) {
        self.running = false;
        self.held.clear();
        self.unsaid.clear();
    }
}

/// All blocks of a disk.
pub(crate) const ALL_BLOCKS: u8 = (1 << BLOCKS) - 1;
