//! Disks that are copies of the twin's (I10).

use std::io;
use std::sync::Arc;

use evertwin_devices::virtio::DiskWrite;
use evertwin_devices::virtio::block::{CopyMark, JournaledDisk, Recovery, recover};
use vmm_sys_util::eventfd::EventFd;

use super::{Error, Machine, SharedDevice, lock};

impl Machine {
    /// Checks that the guest may be booted from its disks.
    ///
    /// # Errors
    /// [`Error::UnfinishedCopy`], or a mark that can't be read.
    pub fn check_disks(&self) -> Result<(), Error> {
        for mark in copy_marks(&self.devices) {
            let unfinished = mark.is_unfinished();
            if unfinished.map_err(|error| Error::Device(error.to_string()))? {
                return Err(Error::UnfinishedCopy(mark.path().into()));
            }
        }
        Ok(())
    }

    /// Brings the disks to the last epoch that the journal of a standby's has, if this host died as one (I3).
    ///
    /// # Errors
    /// The journal can't be read or used, or a disk fails.
    pub fn recover_disks(&self) -> Result<(), Error> {
        let failed = |error: &dyn std::error::Error| Error::Device(error.to_string());
        let disks = journaled(&self.devices).map_err(|error| failed(&error))?;
        let repeat = |writes: &[DiskWrite]| {
            let mut devices = self.devices.iter();
            devices.try_for_each(|device| lock(device).apply_disk_writes(writes))
        };
        match recover(&self.config.name, &disks, repeat).map_err(|error| failed(&error))? {
            Recovery::Nothing => {}
            Recovery::Repeated(epochs) => {
                tracing::info!(epochs, "the disks hold the last epoch of their journal");
            }
            Recovery::Forgotten(why) => {
                tracing::warn!(why, "the journal of the disks is not used");
            }
            Recovery::Damaged { path, entry } => tracing::error!(
                journal = %path.display(),
                entry,
                "the journal of the disks is damaged, so they may be between two epochs: no guest is booted from them until \
                 the VM's other host has run it, and they were copied in full"
            ),
        }
        Ok(())
    }

    /// Takes up what is known of the twin's copies of the disks. A disk of which nothing can be recorded is always copied in full.
    ///
    /// # Errors
    /// A record can neither be used nor removed: a later run would trust what it says. Or this process can have no further
    /// descriptor.
    pub fn open_mirrors(&self, vm: &str) -> Result<(), Error> {
        for device in &self.devices {
            let signal = self.disks_changed.try_clone();
            let signal = signal.map_err(|error| Error::Device(error.to_string()))?;
            if let Some(disk) = lock(device).disk()
                && let Err(error) = disk.open_mirror(vm, signal)
            {
                tracing::warn!(%error, "each copy of this disk will be a full one");
                let forgotten = disk.forget_mirror();
                forgotten.map_err(|error| Error::Device(error.to_string()))?;
            }
        }
        Ok(())
    }

    /// Makes sure that nobody trusts what was known of a twin's copies: the guest runs without one.
    ///
    /// # Errors
    /// A record can't be removed.
    pub fn forget_mirrors(&self) -> Result<(), Error> {
        for device in &self.devices {
            if let Some(disk) = lock(device).disk() {
                let forgotten = disk.forget_mirror();
                forgotten.map_err(|error| Error::Device(error.to_string()))?;
            }
        }
        Ok(())
    }

    /// Written when a disk has made a point durable, or is ready to be filled.
    pub(crate) fn disks_changed(&self) -> &EventFd {
        &self.disks_changed
    }
}

/// The disks that the guest may write, for their journal.
pub(crate) fn journaled(devices: &[SharedDevice]) -> io::Result<Vec<JournaledDisk>> {
    let mut disks = Vec::new();
    for device in devices {
        if let Some(disk) = lock(device).disk() {
            disks.push(disk.journaled()?);
        }
    }
    Ok(disks)
}

/// Disks that are marked are whole copies now. Makes them durable in the background, which may take as long as writing them did, and
/// takes their marks away.
pub(crate) fn finish_copies(devices: &[SharedDevice]) {
    let mut marks = copy_marks(devices);
    marks.retain(|mark| mark.path().exists());
    if marks.is_empty() {
        return;
    }
    let copies: Vec<_> = marks
        .into_iter()
        .map(|mark| (mark.copies(), mark))
        .collect();
    let finish = move || {
        for (copy, mark) in copies {
            if let Err(error) = mark.finish(copy) {
                tracing::warn!(%error, "a disk stays marked as an unfinished copy");
            }
        }
    };
    let thread = std::thread::Builder::new().name("disk-copy".to_owned());
    if let Err(error) = thread.spawn(finish) {
        tracing::warn!(%error, "the disks stay marked as unfinished copies");
    }
}

/// The marks of all disks that the guest may write.
fn copy_marks(devices: &[SharedDevice]) -> Vec<Arc<CopyMark>> {
    let mut marks = Vec::new();
    for device in devices {
        let mut device = lock(device);
        marks.extend(device.disk().map(|disk| Arc::clone(disk.copy_mark())));
    }
    marks
}
