//! A microVM: KVM, RAM, vCPUs and devices put together.

mod assemble;
mod copies;
mod pause;
mod reboot;
mod slowdown;

pub use assemble::ConsoleOutput;
#[cfg(test)]
pub(crate) use assemble::MAX_DEVICES;
pub(crate) use copies::{finish_copies, journaled};
pub use pause::{PausePhases, Paused};
pub(crate) use pause::{Stopwatch, lock};

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use evertwin_devices::GuestMemory;
use evertwin_devices::gate::OutputGate;
use evertwin_devices::inbound::InboundLog;
use evertwin_devices::legacy::ExitSignal;
use evertwin_devices::power::PowerButton;
use evertwin_devices::serial::Serial;
use evertwin_devices::virtio::Device;
use vmm_sys_util::eventfd::EventFd;

use crate::acpi;
use crate::boot::{self, BootError};
use crate::checkpoint::CheckpointError;
use crate::config::VmConfig;
use crate::event_loop::{EventLoop, EventLoopError};
use crate::kvm::{KvmError, Vcpu, Vm};
use crate::memory::MemoryError;
use reboot::{Boots, PowerOn};
use slowdown::Slowdown;

/// Why a machine can't be made or can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A device; the message names it.
    #[error("{0}")]
    Device(String),
    /// Too many devices for the interrupt lines there are.
    #[error("{0} disks, network cards and vsock devices are too many: a VM can have {max}", max = assemble::MAX_CONFIGURED)]
    TooManyDevices(usize),
    /// The device thread.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// Saved state.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A disk that was to be a copy of the twin's has never become whole.
    #[error(
        "the guest is not booted: one of its disks is an unfinished copy of the one on the VM's other host, as {0} says: \
         run the VM there, and it is finished here; remove the mark only if you have made the disk whole yourself"
    )]
    UnfinishedCopy(PathBuf),
}

/// One device, shared by the vCPU threads, the device thread and checkpoints. Whoever
/// holds the lock has the device at a request boundary.
pub type SharedDevice = Arc<Mutex<dyn Device>>;

/// A microVM. It starts with its vCPUs paused and nothing loaded.
pub struct Machine {
    // Dropped in this order: vCPUs and who kicks them first, RAM last.
    slowdown: Option<Slowdown>,
    /// The guest has to stand still, whatever else happens to it.
    stopped: bool,
    vcpus: Arc<[Vcpu]>,
    _events: EventLoop,
    vm: Arc<Vm>,
    devices: Vec<SharedDevice>,
    serial: Arc<Mutex<Serial>>,
    gate: Arc<OutputGate>,
    inbound: Arc<InboundLog>,
    exit: Arc<ExitSignal>,
    failure: Arc<OnceLock<String>>,
    first_instruction: Arc<OnceLock<Instant>>,
    memory: Arc<GuestMemory>,
    config: VmConfig,
    cmdline_with_devices: String,
    power_button: Arc<PowerButton>,
    power_on: Option<PowerOn>,
    boots: Boots,
    disks_changed: EventFd,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// Loads the kernel and lets the guest run from its entry.
    ///
    /// # Errors
    /// The kernel can't be loaded, a KVM call failed, or a disk is an unfinished copy.
    pub fn boot(&mut self) -> Result<(), Error> {
        self.check_disks()?;
        // The process that made them whole may not have lived to see them durable.
        finish_copies(&self.devices);
        let acpi = acpi::write(&self.memory, self.config.vcpus, self.devices.len())?;
        let guest = boot::Guest {
            kernel: &self.config.kernel,
            initrd: self.config.initrd.as_deref(),
            cmdline: self.config.cmdline.trim(),
            cmdline_with_devices: &self.cmdline_with_devices,
            acpi,
        };
        let entry = boot::load(&self.memory, guest)?;
        if let Some(first) = self.vcpus.first() {
            first.set_up(move |fd| {
                let mut sregs = fd.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
                entry.set_long_mode(&mut sregs);
                fd.set_sregs(&sregs)
                    .map_err(KvmError::call("KVM_SET_SREGS"))?;
                fd.set_regs(&entry.regs())
                    .map_err(KvmError::call("KVM_SET_REGS"))
            })?;
        }
        self.boots.booted();
        Ok(self.run()?)
    }

    /// Stops all vCPUs where they are, until [`Self::go_on`].
    ///
    /// # Errors
    /// A vCPU's thread is gone.
    pub(crate) fn stop(&mut self) -> Result<(), KvmError> {
        self.stopped = true;
        self.pause_vcpus(false).map(drop)
    }

    /// Lets a guest that was stopped go on.
    ///
    /// # Errors
    /// A vCPU's thread is gone.
    pub(crate) fn go_on(&mut self) -> Result<(), KvmError> {
        self.stopped = false;
        self.run()
    }

    /// Lets all vCPUs run, unless they are to stand still.
    pub(crate) fn run(&self) -> Result<(), KvmError> {
        if self.stopped {
            return Ok(());
        }
        self.vcpus.iter().try_for_each(Vcpu::resume)
    }

    /// Stops the vCPUs for good and drops all output that is held or still to come.
    pub fn halt(&mut self) {
        self.gate.discard();
        self.slowdown = None;
        // Dropping a handle kicks the vCPU out of the guest and joins its thread.
        self.vcpus = Arc::default();
    }

    /// What the VM is made of.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// RAM.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The KVM VM.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// The vCPUs.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// The virtio devices, in the order of their addresses.
    pub fn devices(&self) -> &[SharedDevice] {
        &self.devices
    }

    /// The gate that all output passes.
    pub fn gate(&self) -> &Arc<OutputGate> {
        &self.gate
    }

    /// What network cards gave to the guest.
    pub fn inbound(&self) -> &Arc<InboundLog> {
        &self.inbound
    }

    /// The serial console's port.
    pub fn serial(&self) -> &Arc<Mutex<Serial>> {
        &self.serial
    }

    /// The button that asks the guest to shut down.
    pub fn power_button(&self) -> &PowerButton {
        &self.power_button
    }

    /// Fires when the guest has ended itself.
    pub fn exit(&self) -> &Arc<ExitSignal> {
        &self.exit
    }

    /// Why KVM could not go on with the guest, if so.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// When the guest first wrote to the POST code port.
    pub fn first_instruction(&self) -> Option<Instant> {
        self.first_instruction.get().copied()
    }
}
