//! What happens to a disk while its twin is down, and nobody tells the twin.

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;

use crate::pattern::{BLOCK, ROOM};

/// Most blocks that are overwritten.
const MOST: u64 = 64;

/// The mark of an unfinished copy is no hint that may be missing: without it, half a copy would pass for a disk.
const MARK: &str = ".unfinished";

/// A way to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tamper {
    /// Blocks of the image are overwritten.
    Overwrite,
    /// The image is replaced by a copy with the same times, in which blocks are different: somebody's backup.
    Replace,
    /// Files beside the image are deleted or damaged.
    Beside,
}

impl Tamper {
    /// Whether the image itself is something else now.
    pub(crate) fn harms_image(self) -> bool {
        self != Self::Beside
    }

    /// Does it; what was done, in words.
    pub(crate) fn perform(self, image: &Path, random: &mut Rng) -> io::Result<String> {
        match self {
            Self::Overwrite => {
                let count = overwrite(image, random)?;
                let_time_pass(image)?;
                Ok(format!("overwrote {count} blocks"))
            }
            Self::Replace => {
                let copy = image.with_extension("backup");
                fs::copy(image, &copy)?;
                let count = overwrite(&copy, random)?;
                let kept = fs::metadata(image)?;
                let times = FileTimes::new()
                    .set_modified(kept.modified()?)
                    .set_accessed(kept.accessed()?);
                File::options().write(true).open(&copy)?.set_times(times)?;
                fs::rename(&copy, image)?;
                Ok(format!("replaced by a copy with {count} other blocks"))
            }
            Self::Beside => {
                let mut told = Vec::new();
                for path in beside(image)? {
                    let how = damage(&path, random)?;
                    let name = path.file_name().unwrap_or_default();
                    told.push(format!("{how} {}", name.to_string_lossy()));
                }
                if told.is_empty() {
                    told.push("nothing beside it".to_owned());
                }
                Ok(told.join(", "))
            }
        }
    }
}

/// What is written within seconds of a twin's death may be the twin's own: it is taken to have died a minute ago.
fn let_time_pass(image: &Path) -> io::Result<()> {
    let record = PathBuf::from(format!("{}.mirror", image.display()));
    match File::options().write(true).open(&record) {
        Ok(record) => {
            let past = record.metadata()?.modified()? - Duration::from_secs(60);
            record.set_times(FileTimes::new().set_modified(past))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Overwrites blocks of 4 KiB. Returns how many.
pub(crate) fn overwrite(image: &Path, random: &mut Rng) -> io::Result<u64> {
    let file = File::options().write(true).open(image)?;
    let count = random.u64(1..=MOST);
    for _ in 0..count {
        let mut bytes = vec![0; BLOCK];
        random.fill(&mut bytes);
        file.write_all_at(&bytes, random.u64(0..ROOM) * BLOCK as u64)?;
    }
    Ok(count)
}

/// The files `IMAGE.*`, but not the mark.
fn beside(image: &Path) -> io::Result<Vec<PathBuf>> {
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}.");
    let mut found = Vec::new();
    for entry in fs::read_dir(image.parent().unwrap_or(Path::new(".")))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && !name.ends_with(MARK) && entry.file_type()?.is_file() {
            found.push(entry.path());
        }
    }
    // The order of a directory is not that of the seed.
    found.sort();
    Ok(found)
}

fn damage(path: &Path, random: &mut Rng) -> io::Result<&'static str> {
    let mut bytes = fs::read(path)?;
    match random.u8(0..4) {
        0 => {
            fs::remove_file(path)?;
            return Ok("deleted");
        }
        1 => {
            bytes.truncate(random.usize(0..=bytes.len()));
            fs::write(path, bytes)?;
            return Ok("truncated");
        }
        2 if !bytes.is_empty() => {
            let at = random.usize(0..bytes.len());
            bytes[at] ^= 1 << random.u8(0..8);
            fs::write(path, bytes)?;
            return Ok("flipped a bit of");
        }
        _ => random.fill(&mut bytes),
    }
    fs::write(path, bytes)?;
    Ok("filled with rubbish")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::DISK;

    #[test]
    fn a_disk_keeps_its_size_and_its_mark() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("disk-a.img");
        let mark = directory.path().join("disk-a.img.unfinished");
        let other = directory.path().join("disk-b.img.hints");
        File::create(&image).unwrap().set_len(DISK).unwrap();
        for path in [&mark, &other] {
            fs::write(path, "as it was").unwrap();
        }
        let mut random = Rng::with_seed(1);
        for seed in 0..20 {
            random.seed(seed);
            let before = fs::metadata(&image).unwrap();
            fs::write(directory.path().join("disk-a.img.hints"), "as it was").unwrap();
            for how in [Tamper::Overwrite, Tamper::Replace, Tamper::Beside] {
                how.perform(&image, &mut random).unwrap();
                assert_eq!(fs::metadata(&image).unwrap().len(), before.len());
            }
            for path in [&mark, &other] {
                assert_eq!(fs::read(path).unwrap(), b"as it was");
            }
            let hints = fs::read(directory.path().join("disk-a.img.hints"));
            assert_ne!(hints.unwrap_or_default(), b"as it was");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4);
    }
}
