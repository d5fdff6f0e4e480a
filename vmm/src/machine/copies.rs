//! Disks that are copies of the twin's (I10).

use std::sync::Arc;

use evertwin_devices::virtio::block::CopyMark;
use vmm_sys_util::eventfd::EventFd;

use super::{Error, Machine, lock};

impl Machine {
    /// Checks that the guest may be booted from its disks.
    ///
    /// # Errors
    /// [`Error::UnfinishedCopy`], or a mark that can't be read.
    pub fn check_disks(&self) -> Result<(), Error> {
        for mark in self.copy_marks() {
            let unfinished = mark.is_unfinished();
            if unfinished.map_err(|error| Error::Device(error.to_string()))? {
                return Err(Error::UnfinishedCopy(mark.path().into()));
            }
        }
        Ok(())
    }

    /// Disks that are marked are whole copies now. Makes them durable in the background, which may take as long as writing
    /// them did, and takes their marks away.
    pub(crate) fn finish_copies(&self) {
        let mut marks = self.copy_marks();
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

    /// The marks of all disks that the guest may write.
    fn copy_marks(&self) -> Vec<Arc<CopyMark>> {
        let devices = self.devices.iter();
        let mut marks = Vec::new();
        for device in devices {
            let mut device = lock(device);
            marks.extend(device.disk().map(|disk| Arc::clone(disk.copy_mark())));
        }
        marks
    }
}
