//! The mark beside an image that is being made a copy of a twin's disk.
//!
//! It is there before the first byte of the old contents goes, and until all of the new ones are durable: whoever finds it
//! must not boot a guest from the image (I10). The end has two stages, because a copy that is whole may be in the host's
//! memory only. Then it is still whole for every process of this host, until the host itself goes down.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::beside;

/// Added to the name of an image.
const SUFFIX: &str = ".unfinished";
/// What Linux calls the time from one start of the host to the next.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Begins the second stage's last line, before the host's boot ID.
const FLUSHING: &str = "flushing since boot ";

/// The mark of one image, set or not.
#[derive(Debug)]
pub struct CopyMark {
    path: PathBuf,
    image: File,
    /// Copies that were begun, and changes of the mark one at a time.
    begun: Mutex<u64>,
}

impl CopyMark {
    /// The mark of the image at `path`, which is open as `image`.
    pub(super) fn of(path: &Path, image: &File, is_device: bool) -> io::Result<Self> {
        Ok(Self {
            path: beside::place(path, is_device, SUFFIX),
            image: image.try_clone()?,
            begun: Mutex::new(0),
        })
    }

    /// Where the mark is while it is set.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the image is no whole copy, as far as this host can tell.
    ///
    /// # Errors
    /// The mark can't be read.
    pub fn is_unfinished(&self) -> io::Result<bool> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) if error.kind() == ErrorKind::InvalidData => return Ok(true),
            Err(error) => return Err(self.named(error)),
        };
        let since = text.lines().find_map(|line| line.strip_prefix(FLUSHING));
        match since {
            Some(boot) => Ok(boot != boot_id()?),
            None => Ok(true),
        }
    }

    /// Sets the mark, durably, before the image's contents go.
    ///
    /// # Errors
    /// It can't be written.
    pub fn begin(&self) -> io::Result<()> {
        // Breaks I10 on purpose: nobody can tell what is a copy.
        fail::fail_point!("disk::unmarked", |_| Ok(()));
        let mut begun = self.lock();
        *begun += 1;
        self.begin_locked().map_err(|error| self.named(error))
    }

    fn begin_locked(&self) -> io::Result<()> {
        beside::make_directory(&self.path)?;
        let mut file = File::create(&self.path)?;
        file.write_all(
            b"The disk image of this name is an unfinished copy of the one on the VM's other host.\n\
            It becomes whole when both run the VM again. Remove this file only if you have made\n\
            the image whole yourself.\n",
        )?;
        file.sync_all()?;
        beside::sync_directory(&self.path)
    }

    /// How many copies were begun: the number of the last one.
    pub fn copies(&self) -> u64 {
        *self.lock()
    }

    /// This copy is whole: makes it durable, which may take as long as writing all of it, and takes the mark away. One
    /// that another copy has followed is left alone.
    ///
    /// # Errors
    /// The image can't be flushed, or the mark not be changed: it stays.
    pub fn finish(&self, copy: u64) -> io::Result<()> {
        self.if_last(copy, |path| {
            let text = format!(
                "A whole copy, on its way to the disk.\n{FLUSHING}{}\n",
                boot_id()?
            );
            fs::write(path, text)
        })?;
        self.image.sync_data().map_err(|error| self.named(error))?;
        self.if_last(copy, |path| {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            beside::sync_directory(path)
        })
    }

    /// Changes the mark if it is of this copy.
    fn if_last(&self, copy: u64, change: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
        let begun = self.lock();
        if *begun != copy {
            return Ok(());
        }
        change(&self.path).map_err(|error| self.named(error))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, u64> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn named(&self, error: io::Error) -> io::Error {
        let path = self.path.display();
        let message = format!("{path} can't be used to mark an unfinished copy: {error}");
        io::Error::new(error.kind(), message)
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> (tempfile::TempDir, CopyMark) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let image = File::create(&path).unwrap();
        let mark = CopyMark::of(&path, &image, false).unwrap();
        assert_eq!(mark.path(), directory.path().join("disk.img.unfinished"));
        (directory, mark)
    }

    #[test]
    fn a_copy_is_unfinished_from_its_beginning_to_its_end() {
        let (_directory, mark) = image();
        assert!(!mark.is_unfinished().unwrap());
        mark.begin().unwrap();
        assert!(mark.is_unfinished().unwrap());
        mark.finish(mark.copies()).unwrap();
        assert!(!mark.is_unfinished().unwrap() && !mark.path().exists());
    }

    #[test]
    fn a_copy_that_is_not_durable_is_whole_until_the_hosts_next_start() {
        let (_directory, mark) = image();
        let here = format!("whole\n{FLUSHING}{}\n", boot_id().unwrap());
        fs::write(mark.path(), here).unwrap();
        assert!(!mark.is_unfinished().unwrap());
        let elsewhere = format!("whole\n{FLUSHING}2c2b4d3e-another\n");
        fs::write(mark.path(), elsewhere).unwrap();
        assert!(mark.is_unfinished().unwrap());
    }

    #[test]
    fn a_mark_that_says_nothing_or_nonsense_counts() {
        let (_directory, mark) = image();
        for text in [&b""[..], b"\xff\xfe", b"flushing", FLUSHING.as_bytes()] {
            fs::write(mark.path(), text).unwrap();
            assert!(mark.is_unfinished().unwrap(), "{text:?}");
        }
    }

    #[test]
    fn the_mark_of_a_copy_that_began_meanwhile_stays() {
        let (_directory, mark) = image();
        mark.begin().unwrap();
        let first = mark.copies();
        mark.begin().unwrap();
        mark.finish(first).unwrap();
        assert!(mark.is_unfinished().unwrap());
        mark.finish(mark.copies()).unwrap();
        assert!(!mark.path().exists());
    }

    #[test]
    fn a_directory_that_takes_no_mark_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let image = File::create(&path).unwrap();
        let mark = CopyMark::of(&path, &image, false).unwrap();
        fs::create_dir(mark.path()).unwrap();
        let error = mark.begin().unwrap_err().to_string();
        assert!(
            error.contains("disk.img.unfinished can't be used"),
            "{error}"
        );
    }
}
