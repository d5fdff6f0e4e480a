//! Stopping a machine at an instant: first the vCPUs, then the devices; resuming in
//! reverse when the guard goes.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use evertwin_devices::serial::Serial;
use evertwin_devices::virtio::Device;

use super::Machine;
use crate::kvm::{KvmError, VcpuState};

/// How long each phase of an epoch's end took.
#[derive(Debug, Clone, Copy, Default)]
pub struct PausePhases {
    /// Copying pages before the pause: the guest runs meanwhile.
    pub ahead: Duration,
    /// How many pages that were, each counted once.
    pub pages_ahead: usize,
    /// Until all vCPUs had left guest mode, finished their I/O and read out their state.
    pub kick: Duration,
    /// Until all devices stood at a request boundary.
    pub quiesce: Duration,
    /// Reading and re-arming the dirty log.
    pub harvest: Duration,
    /// Reading chips and devices, encoding everything.
    pub capture: Duration,
    /// Copying the dirty pages.
    pub copy: Duration,
    /// Until all vCPUs were told to go on.
    pub resume: Duration,
}

impl PausePhases {
    /// The whole pause: all but what comes ahead of it.
    pub fn total(&self) -> Duration {
        self.kick + self.quiesce + self.harvest + self.capture + self.copy + self.resume
    }
}

/// Measures phases that follow each other.
#[derive(Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the last lap, and starts the next one.
    pub(crate) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}

/// A machine that stands still. Dropping it lets the guest go on.
pub struct Paused<'a> {
    machine: &'a Machine,
    /// Devices in order, each at a request boundary while locked.
    pub(crate) devices: Vec<MutexGuard<'a, dyn Device + 'static>>,
    pub(crate) serial: MutexGuard<'a, Serial>,
    vcpus: Vec<VcpuState>,
    stays: bool,
}

impl std::fmt::Debug for Paused<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paused").finish_non_exhaustive()
    }
}

impl Machine {
    /// Stops the machine and reads out its vCPUs.
    ///
    /// # Errors
    /// A vCPU's state can't be read or its thread is gone; the guest goes on then.
    pub fn pause(&self, phases: &mut PausePhases) -> Result<Paused<'_>, KvmError> {
        let mut watch = Stopwatch::start();
        let vcpus = match self.capture_vcpus() {
            Ok(vcpus) => vcpus,
            Err(error) => {
                self.run()?;
                return Err(error);
            }
        };
        phases.kick = watch.lap();
        let devices = self.devices.iter().map(lock).collect();
        let serial = lock(&self.serial);
        phases.quiesce = watch.lap();
        Ok(Paused {
            machine: self,
            devices,
            serial,
            vcpus,
            stays: false,
        })
    }

    /// Stops all vCPUs; they save their states in parallel.
    fn capture_vcpus(&self) -> Result<Vec<VcpuState>, KvmError> {
        // One that still runs may send an interrupt to one that is saved already: it would be
        // lost (I3). So all stop before any is read.
        if self.vcpus.len() > 1 {
            fail::fail_point!("pause::one_by_one", |_| {
                let states = self.vcpus.iter().map(|vcpu| vcpu.pause(true)?.wait());
                states
                    .filter_map(|state| state.map(|s| s.map(|boxed| *boxed)).transpose())
                    .collect()
            });
            self.pause_vcpus(false)?;
        }
        self.pause_vcpus(true)
    }

    /// Kicks all vCPUs, then waits for all.
    pub(crate) fn pause_vcpus(&self, capture: bool) -> Result<Vec<VcpuState>, KvmError> {
        let pausing: Vec<_> = self.vcpus.iter().map(|vcpu| vcpu.pause(capture)).collect();
        let states: Vec<_> = pausing
            .into_iter()
            .map(|pausing| pausing.and_then(crate::kvm::Pausing::wait))
            .collect();
        states
            .into_iter()
            .filter_map(|state| state.map(|s| s.map(|boxed| *boxed)).transpose())
            .collect()
    }
}

/// A device whose thread panicked is still the guest's device: go on with what it has.
pub(crate) fn lock<T: ?Sized>(
    mutex: &impl std::ops::Deref<Target = std::sync::Mutex<T>>,
) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Paused<'_> {
    /// The vCPUs' states, read when they stopped.
    pub(crate) fn take_vcpus(&mut self) -> Vec<VcpuState> {
        std::mem::take(&mut self.vcpus)
    }
}

impl Paused<'_> {
    /// Leaves the guest where it is, for it goes on elsewhere: the devices are reset, so that
    /// they touch nothing of it, and the vCPUs wait for a restore.
    pub(crate) fn stay(mut self) {
        self.stays = true;
        for device in &mut self.devices {
            device.reset();
        }
        // It is in the saved state.
        self.machine.exit.rearm();
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        // vCPUs may start a moment before the locks go: they wait at the first access.
        if let Err(error) = self.machine.run() {
            tracing::error!(%error, "the guest could not be resumed");
        }
    }
}
