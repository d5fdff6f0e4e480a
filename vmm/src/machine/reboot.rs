//! What becomes of a machine whose guest has ended itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use evertwin_devices::legacy::GuestExit;
use evertwin_devices::serial::SerialState;
use evertwin_devices::virtio::DeviceIdentity;

use super::{Error, Machine, lock};
use crate::config::AfterEnd;
use crate::kvm::{KvmError, TscChange, VcpuState, VmChipState};

/// A guest that ends sooner than this after its boot got nowhere.
const QUICK: Duration = Duration::from_secs(1);

/// How many such ends in a row are enough.
const MAX_QUICK_ENDS: u32 = 10;

/// Tells a guest that can't boot from one that reboots.
#[derive(Debug)]
pub(super) struct Boots {
    last: Instant,
    quick_ends: u32,
}

impl Default for Boots {
    fn default() -> Self {
        Self {
            last: Instant::now(),
            quick_ends: 0,
        }
    }
}

impl Boots {
    pub(super) fn booted(&mut self) {
        self.last = Instant::now();
    }

    /// The guest has ended: true if booting it again is pointless.
    fn hopeless(&mut self) -> bool {
        self.quick_ends = if self.last.elapsed() < QUICK {
            self.quick_ends + 1
        } else {
            0
        };
        self.quick_ends >= MAX_QUICK_ENDS
    }
}

/// The state in which everything was made, to which a reset goes back.
pub(super) struct PowerOn {
    vcpus: Vec<Arc<VcpuState>>,
    chips: VmChipState,
    serial: SerialState,
}

impl Machine {
    /// Remembers the state of a machine that has never run.
    pub(super) fn remember_power_on(&mut self) -> Result<(), KvmError> {
        let vcpus = self.pause_vcpus(true)?;
        self.power_on = Some(PowerOn {
            vcpus: vcpus.into_iter().map(Arc::new).collect(),
            chips: self.vm.save_chips()?,
            serial: lock(&self.serial).save(),
        });
        Ok(())
    }

    /// Acts on the guest's end as the configuration wants it: true if the guest was booted
    /// again, false if this is the end.
    ///
    /// # Errors
    /// The guest should be booted again and can't be.
    pub fn after_guest_exit(&mut self) -> Result<bool, Error> {
        let Some(exit) = self.exit.get() else {
            return Ok(false);
        };
        let (what, after) = match exit {
            GuestExit::Shutdown => ("shut itself down", AfterEnd::Exit),
            GuestExit::Reset => ("reset itself", self.config.on_reboot),
            GuestExit::Panicked => ("panicked", self.config.on_panic),
        };
        if exit == GuestExit::Panicked {
            self.blame_missing_drivers();
        }
        match after {
            AfterEnd::Exit => {
                tracing::info!("the guest {what}");
                Ok(false)
            }
            AfterEnd::Restart if self.boots.hopeless() => {
                tracing::error!(
                    "the guest {what}, for the {MAX_QUICK_ENDS}th time within {QUICK:?} of its boot: giving it up"
                );
                Ok(false)
            }
            AfterEnd::Restart => {
                tracing::info!("the guest {what}: booting it again");
                self.reboot()?;
                Ok(true)
            }
        }
    }

    /// A kernel that finds no root disk panics; its own words rarely name the cause.
    fn blame_missing_drivers(&self) {
        for device in &self.devices {
            let device = lock(device);
            // A guest boots without the others.
            let needed = matches!(
                device.identity(),
                DeviceIdentity::Block { .. } | DeviceIdentity::Net { .. }
            );
            if needed && !device.driver_ready() {
                tracing::warn!(
                    device = device.name(),
                    "the guest panicked and had not set up this device: its kernel or initrd needs the modules virtio_mmio and virtio_blk or virtio_net"
                );
            }
        }
    }

    /// Resets all but memory and clock, and boots again. The clock goes on: guest time never
    /// steps back (I8).
    fn reboot(&mut self) -> Result<(), Error> {
        self.pause_vcpus(false)?;
        let Some(power_on) = &self.power_on else {
            return Err(Error::Device("no power-on state to go back to".into()));
        };
        for device in &self.devices {
            lock(device).reset();
        }
        lock(&self.serial)
            .restore(&power_on.serial)
            .map_err(|e| Error::Device(format!("can't reset the serial port: {e}")))?;
        self.vm.restore_chips(&power_on.chips)?;
        for (vcpu, state) in self.vcpus.iter().zip(&power_on.vcpus) {
            vcpu.restore(Arc::clone(state), TscChange::Keep)?;
        }
        self.exit.rearm();
        self.boot()
    }
}
