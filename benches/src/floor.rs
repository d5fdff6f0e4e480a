//! A guest in this process that is stopped at times: what a pause can't go below, and what it takes where all is copied.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use evertwin::kvm::{DirtyLog, KvmError, VcpuState};
use evertwin::machine::{ConsoleOutput, Machine, PausePhases};
use evertwin::memory::{self, PAGE_SIZE};
use evertwin::page_set::PageSet;
use vm_memory::{Bytes, GuestAddress};

use crate::arms::Setup;
use crate::logging::Logged;
use crate::pin::{Pinned, Side};

/// A guest whose writes are logged.
pub struct Stoppable {
    machine: Machine,
    log: DirtyLog,
    dirty: PageSet,
    pages: Vec<u64>,
    bytes: Vec<u8>,
    /// The guest's threads inherit it.
    _pinned: Pinned,
}

/// One stop of the guest.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// Pages written since the one before.
    pub pages: u64,
    /// Reading the state of vCPUs, chips and devices, and nothing else.
    pub state: Duration,
    /// Reading and re-arming the log.
    pub harvest: Duration,
    /// Copying the pages.
    pub copy: Duration,
    /// All of it with the kick, until the guest goes on.
    pub whole: Duration,
}

impl Stop {
    /// What no pause can do without.
    #[must_use]
    pub fn floor(&self) -> Duration {
        self.state + self.harvest
    }
}

impl Stoppable {
    /// Boots the guest and begins to log its writes.
    ///
    /// # Panics
    /// If the host refuses.
    #[must_use]
    pub fn start(setup: &Setup) -> Self {
        let pinned = Pinned::to(Side::Guest);
        let logged = Logged {
            net: false,
            ..setup.logged()
        };
        let started = || -> Result<_, Box<dyn std::error::Error>> {
            let kvm = evertwin::kvm::open()?;
            let console = ConsoleOutput::Writer(Box::new(std::io::sink()));
            let mut machine = Machine::new(&kvm, &logged.config(), console)?;
            let mut log = DirtyLog::new(machine.vm())?;
            machine.boot()?;
            log.start();
            log.started(machine.vm())?;
            Ok((machine, log))
        };
        let (machine, log) = started().unwrap_or_else(|error| panic!("{error}"));
        Self {
            dirty: PageSet::new(&memory::region_list(machine.memory())),
            pages: Vec::new(),
            bytes: Vec::new(),
            machine,
            log,
            _pinned: pinned,
        }
    }

    /// Stops the guest, does all that a stop-and-copy does, and lets it go on.
    ///
    /// # Panics
    /// If KVM refuses.
    pub fn stop(&mut self) -> Stop {
        self.try_stop().unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_stop(&mut self) -> Result<Stop, Box<dyn std::error::Error>> {
        let begun = Instant::now();
        let mut paused = self.machine.pause(&mut PausePhases::default())?;
        let save = Instant::now();
        let state = self.machine.save(&mut paused)?;
        let chips_and_devices = save.elapsed();

        let harvest = Instant::now();
        let dirty = &mut self.dirty;
        let merge = |first, bitmap: &[u64]| dirty.merge(first, bitmap);
        self.log.read(self.machine.vm(), merge)?;
        self.dirty.drain_into(&mut self.pages);
        let harvest = harvest.elapsed();

        let copy = Instant::now();
        // Only ever grows, so that nothing is zeroed twice.
        let length = self.pages.len() * PAGE_SIZE as usize;
        self.bytes.resize(self.bytes.len().max(length), 0);
        let places = self.bytes.chunks_exact_mut(PAGE_SIZE as usize);
        let ram = self.machine.memory();
        for (page, place) in self.pages.iter().zip(places) {
            ram.read_slice(place, GuestAddress(page * PAGE_SIZE))?;
        }
        let copy = copy.elapsed();

        // The vCPUs' state was read before they answered; once more for the time it takes by itself.
        let again = Instant::now();
        let vcpus = self.vcpu_state()?;
        let again = again.elapsed();
        drop(paused);
        let whole = begun.elapsed() - again;
        drop(state);
        Ok(Stop {
            pages: self.pages.len() as u64,
            state: chips_and_devices + vcpus,
            harvest,
            copy,
            whole,
        })
    }

    fn vcpu_state(&self) -> Result<Duration, KvmError> {
        let mut slowest = Duration::ZERO;
        for vcpu in self.machine.vcpus() {
            let msrs: Arc<[u32]> = vcpu.msrs().into();
            let (sender, time) = channel();
            vcpu.set_up(move |fd| {
                let begun = Instant::now();
                VcpuState::save(fd, &msrs)?;
                // The receiver waits below.
                let _ = sender.send(begun.elapsed());
                Ok(())
            })?;
            slowest = slowest.max(time.recv().unwrap_or_default());
        }
        Ok(slowest)
    }

    /// Stops the guest once per period until `time` is over, and keeps the stops that `counts` accepts.
    pub fn stops(
        &mut self,
        period: Duration,
        time: Duration,
        counts: impl Fn(&Stop) -> bool,
    ) -> Vec<Stop> {
        let until = Instant::now() + time;
        let mut stops = Vec::new();
        while Instant::now() < until {
            std::thread::sleep(period);
            let stop = self.stop();
            if counts(&stop) {
                stops.push(stop);
            }
        }
        stops
    }
}
