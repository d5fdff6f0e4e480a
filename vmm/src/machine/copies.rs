//! Disks that are copies of the twin's (I10).

use std::sync::Arc;

use evertwin_devices::virtio::block::CopyMark;

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

    /// The marks of all disks that the guest may write.
    fn copy_marks(&self) -> Vec<Arc<CopyMark>> {
        let devices = self.devices.iter();
        devices
            .filter_map(|device| lock(device).copy_mark())
            .collect()
    }
}
