//! What a device's back-end uses of its transport: queues, interrupt, features.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::chain::Chain;
use super::queue::VirtQueue;
use super::{Broken, RestoreError, TransportState, feature};
use crate::GuestMemory;

/// Device status bits (virtio 1.2, 2.1).
pub(crate) mod status {
    pub(crate) const ACKNOWLEDGE: u32 = 1;
    pub(crate) const DRIVER: u32 = 2;
    pub(crate) const DRIVER_OK: u32 = 4;
    pub(crate) const FEATURES_OK: u32 = 8;
    pub(crate) const NEEDS_RESET: u32 = 64;
    pub(crate) const FAILED: u32 = 128;
    pub(crate) const ALL: u32 =
        ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | NEEDS_RESET | FAILED;
}

/// Interrupt status bits (virtio 1.2, 4.2.2).
pub(crate) mod interrupt {
    pub(crate) const USED_BUFFER: u32 = 1;
    pub(crate) const CONFIG_CHANGE: u32 = 2;
}

/// What a device did with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// It is done, with so many bytes in its writable part.
    Done(u32),
    /// It has to wait in its queue, and those behind it as well. The device knows when to look again.
    Later,
}

/// Registers and queues of one device.
pub struct Transport {
    mem: Arc<GuestMemory>,
    offered: u64,
    irq: EventFd,
    queue_events: Vec<EventFd>,
    /// False between restore and resume: nothing may move.
    pub(crate) running: bool,
    pub(crate) driver_features: u64,
    pub(crate) device_features_sel: u32,
    pub(crate) driver_features_sel: u32,
    pub(crate) queue_sel: u32,
    pub(crate) status: u32,
    pub(crate) interrupt_status: u32,
    pub(crate) config_generation: u32,
    pub(crate) queues: Vec<VirtQueue>,
}

impl Transport {
    pub(crate) fn new(
        mem: Arc<GuestMemory>,
        features: u64,
        queue_max_sizes: &[u16],
    ) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Self {
            mem,
            offered: features | feature::TRANSPORT,
            irq: event()?,
            queue_events: queue_max_sizes
                .iter()
                .map(|_| event())
                .collect::<io::Result<_>>()?,
            running: true,
            driver_features: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            status: 0,
            interrupt_status: 0,
            config_generation: 0,
            queues: queue_max_sizes
                .iter()
                .enumerate()
                .map(|(index, &max_size)| VirtQueue::new(index, max_size))
                .collect(),
        })
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.mem
    }

    /// Features offered to the guest.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// True when the driver accepted all of `features`.
    pub fn has(&self, features: u64) -> bool {
        self.driver_features & features == features
    }

    /// True when the driver is up and requests may be served.
    pub fn is_active(&self) -> bool {
        self.running
            && self.status & status::DRIVER_OK != 0
            && self.status & status::NEEDS_RESET == 0
    }

    /// One event fd per queue.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// The interrupt's event fd.
    pub fn irq(&self) -> &EventFd {
        &self.irq
    }

    /// Has the event loop look at a queue again, after other events.
    pub fn reschedule(&self, queue: usize) {
        // A counter that is full is an event already.
        let _ = self.queue_events[queue].write(1);
    }

    /// Takes the next chain of a queue.
    pub fn pop(&mut self, queue: usize) -> Result<Option<Chain>, Broken> {
        self.queues[queue].pop(&self.mem)
    }

    /// Puts the chain taken last back into its queue.
    pub fn unpop(&mut self, queue: usize) {
        self.queues[queue].unpop();
    }

    /// Has a device serve the chains of a queue in their order, until there are no more or one has to wait. After
    /// `budget` of them other devices get their turn.
    ///
    /// # Errors
    /// The guest broke a rule, or `serve` says so.
    pub fn serve(
        &mut self,
        queue: usize,
        budget: usize,
        mut serve: impl FnMut(&Self, &Chain) -> Result<Served, Broken>,
    ) -> Result<(), Broken> {
        self.disable_notification(queue)?;
        let mut budget = budget;
        loop {
            if budget == 0 {
                self.reschedule(queue);
                break;
            }
            budget -= 1;
            let Some(chain) = self.pop(queue)? else {
                // The guest notifies for what comes from now on; some may have come just now.
                if self.enable_notification(queue)? {
                    self.disable_notification(queue)?;
                    continue;
                }
                break;
            };
            match serve(self, &chain)? {
                Served::Done(written) => self.complete(queue, chain.head, written)?,
                Served::Later => {
                    self.unpop(queue);
                    break;
                }
            }
        }
        self.interrupt_used(queue)
    }

    /// Reads again the chain of a request that was in flight.
    pub fn chain_at(&self, queue: usize, head: u16) -> Result<Chain, Broken> {
        self.queues[queue].parse(&self.mem, head)
    }

    /// Gives a chain back with `written` bytes in its writable part.
    pub fn complete(&mut self, queue: usize, head: u16, written: u32) -> Result<(), Broken> {
        self.queues[queue].complete(&self.mem, &[(head, written)])
    }

    /// The same for several chains at once: a guest that sees one of them sees all.
    pub fn complete_all(&mut self, queue: usize, chains: &[(u16, u32)]) -> Result<(), Broken> {
        self.queues[queue].complete(&self.mem, chains)
    }

    /// Descriptors in a queue; 0 while it is not in use.
    pub fn queue_size(&self, queue: usize) -> u16 {
        self.queues[queue].size()
    }

    /// Asks for notifications of a queue. True when chains have come meanwhile.
    pub fn enable_notification(&mut self, queue: usize) -> Result<bool, Broken> {
        self.queues[queue].enable_notification(&self.mem)
    }

    /// Asks for no notifications of a queue for now.
    pub fn disable_notification(&mut self, queue: usize) -> Result<(), Broken> {
        self.queues[queue].disable_notification(&self.mem)
    }

    /// Raises the interrupt for completed chains if the guest wants one.
    pub fn interrupt_used(&mut self, queue: usize) -> Result<(), Broken> {
        if self.queues[queue].wants_interrupt(&self.mem)? {
            self.interrupt(interrupt::USED_BUFFER);
        }
        Ok(())
    }

    /// Tells the guest that the configuration space has changed.
    pub fn config_changed(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        self.interrupt(interrupt::CONFIG_CHANGE);
    }

    /// Raises the interrupt again if the guest has not acknowledged the last one.
    pub(crate) fn interrupt_again(&mut self) {
        if self.interrupt_status != 0 {
            let _ = self.irq.write(1);
        }
    }

    /// The guest broke a rule: stop, and ask it for a reset (virtio 1.2, 2.1.2).
    pub(crate) fn break_down(&mut self) {
        self.status |= status::NEEDS_RESET;
        if self.status & status::DRIVER_OK != 0 {
            self.config_changed();
        }
    }

    pub(crate) fn reset(&mut self) {
        self.driver_features = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        self.status = 0;
        self.interrupt_status = 0;
        for queue in &mut self.queues {
            queue.reset();
        }
    }

    pub(crate) fn save(&self) -> TransportState {
        let Self {
            mem: _,
            offered: _,
            irq: _,
            queue_events: _,
            running: _,
            driver_features,
            device_features_sel,
            driver_features_sel,
            queue_sel,
            status,
            interrupt_status,
            config_generation,
            queues,
        } = self;
        TransportState {
            driver_features: *driver_features,
            device_features_sel: *device_features_sel,
            driver_features_sel: *driver_features_sel,
            queue_sel: *queue_sel,
            status: *status,
            interrupt_status: *interrupt_status,
            config_generation: *config_generation,
            queues: queues.iter().map(VirtQueue::save).collect(),
        }
    }

    /// Checks a captured state and builds its queues; nothing has changed on an error.
    pub(crate) fn check(&self, state: &TransportState) -> Result<Vec<VirtQueue>, RestoreError> {
        // What a driver has chosen is only looked at when it says that it is done (3.1.1).
        let extra = state.driver_features & !self.offered;
        if extra != 0 && state.status & status::FEATURES_OK != 0 {
            return Err(RestoreError::Features(extra));
        }
        let up = status::DRIVER_OK | status::FEATURES_OK;
        if state.status & !status::ALL != 0 || state.status & up == status::DRIVER_OK {
            return Err(RestoreError::Status(state.status));
        }
        if state.queues.len() != self.queues.len() {
            return Err(RestoreError::QueueCount(state.queues.len()));
        }
        let has = |bit| state.driver_features & bit != 0;
        let (event_idx, indirect) = (has(feature::EVENT_IDX), has(feature::INDIRECT_DESC));
        self.queues
            .iter()
            .zip(&state.queues)
            .enumerate()
            .map(|(index, (queue, state))| {
                let max_size = queue.max_size();
                VirtQueue::restored(index, max_size, &self.mem, state, event_idx, indirect)
            })
            .collect()
    }

    /// Takes over a state that [`Self::check`] passed, with the queues it built.
    pub(crate) fn restore(&mut self, state: TransportState, restored: Vec<VirtQueue>) {
        let TransportState {
            driver_features,
            device_features_sel,
            driver_features_sel,
            queue_sel,
            status,
            interrupt_status,
            config_generation,
            queues: _,
        } = state;
        self.running = false;
        self.driver_features = driver_features;
        self.device_features_sel = device_features_sel;
        self.driver_features_sel = driver_features_sel;
        self.queue_sel = queue_sel;
        self.status = status;
        self.interrupt_status =
            interrupt_status & (interrupt::USED_BUFFER | interrupt::CONFIG_CHANGE);
        self.config_generation = config_generation;
        self.queues = restored;
    }

    fn interrupt(&mut self, cause: u32) {
        self.interrupt_status |= cause;
        // A counter that is full carries the edge already.
        let _ = self.irq.write(1);
    }
}
