//! What the lab does to a host's own disk.

use super::Host;
use crate::error::LabError;
use crate::lab::DISK_BYTES;

/// The disk, where the host's agent mounts it, and where Debian's tools see it.
const DISK: &str = "/dev/vdb";
const PLACE: &str = "/disk";
const PLACE_OF_TOOLS: &str = "/debian/mnt";
/// Name of the device between the disk and its file system (dmsetup(8)), and the node that the kernel makes for it.
const LAYER: &str = "own";
const LAYER_NODE: &str = "/dev/dm-0";
/// How long an access to a disk that hangs takes, in milliseconds: longer than any scenario.
const HANGS_MS: u64 = 24 * 3600 * 1000;

impl Host {
    /// Leaves not a block of the disk free.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn fill_disk(&self) -> Result<(), LabError> {
        // Most of it at once, and then each block that is left.
        self.shell(
            "fallocate -l 1T /mnt/filler; dd if=/dev/zero of=/mnt/filler.rest bs=4k; sync; true",
        )
    }

    /// Takes [`Host::fill_disk`] back.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn free_disk(&self) -> Result<(), LabError> {
        self.shell("rm -f /mnt/filler /mnt/filler.rest && sync")
    }

    /// Mounts the disk through the device mapper, so that [`Host::break_disk`] and [`Host::hang_disk`] can come between,
    /// and so that what is written goes to the disk at once. Before anything is on it.
    ///
    /// # Errors
    /// The disk is in use.
    pub fn make_disk_breakable(&self) -> Result<(), LabError> {
        for place in [PLACE_OF_TOOLS, PLACE] {
            self.run(&["/bin/busybox", "umount", place])?;
        }
        let table = format!("0 {} linear {DISK} 0", DISK_BYTES / 512);
        self.tool(&[
            "dmsetup",
            "--noudevsync",
            "create",
            LAYER,
            "--table",
            &table,
        ])?;
        let mount = ["mount", "-t", "ext4", "-o", "sync", LAYER_NODE, PLACE];
        self.run(&[&["/bin/busybox"], &mount[..]].concat())?;
        let bind = ["/bin/busybox", "mount", "-o", "bind", PLACE, PLACE_OF_TOOLS];
        self.run(&bind).map(drop)
    }

    /// Lets every access to the disk fail from now on.
    ///
    /// # Errors
    /// The disk is not breakable.
    pub fn break_disk(&self) -> Result<(), LabError> {
        self.put_between("error")
    }

    /// Lets no access to the disk end from now on.
    ///
    /// # Errors
    /// The disk is not breakable.
    pub fn hang_disk(&self) -> Result<(), LabError> {
        self.put_between(&format!("delay {DISK} 0 {HANGS_MS}"))
    }

    /// Exchanges what is between the disk and its file system.
    fn put_between(&self, target: &str) -> Result<(), LabError> {
        let table = format!("0 {} {target}", DISK_BYTES / 512);
        // Writes that are under way are not waited for.
        self.shell(&format!(
            "dmsetup --noudevsync suspend --nolockfs --noflush {LAYER} \
             && dmsetup load {LAYER} --table '{table}' && dmsetup --noudevsync resume {LAYER}"
        ))
    }

    fn shell(&self, script: &str) -> Result<(), LabError> {
        self.tool(&["sh", "-c", script]).map(drop)
    }
}
