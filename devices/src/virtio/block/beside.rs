//! Files that belong to an image and stand beside it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Those of block devices: nothing that is written beside them outlives the host's next start.
const OF_DEVICES: &str = "/var/lib/evertwin";

/// Where the file of this kind is.
pub(super) fn place(image: &Path, is_device: bool, suffix: &str) -> PathBuf {
    if is_device {
        // The name as it is configured: what it stands for, such as /dev/dm-3, may be another device after the next start.
        let name = std::path::absolute(image).unwrap_or_else(|_| image.into());
        let name = name.to_string_lossy().replace('%', "%%").replace('/', "%");
        return Path::new(OF_DEVICES).join(name + suffix);
    }
    let mut path = image.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Makes sure that there is a directory for such a file.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    let directory = directory(path);
    if directory == Path::new(OF_DEVICES) && !directory.exists() {
        fs::create_dir_all(directory)?;
        File::open(self::directory(directory))?.sync_all()?;
    }
    Ok(())
}

/// Makes durable that such a file was made or removed.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory(path))?.sync_all()
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_devices_are_elsewhere() {
        for (device, file) in [
            ("/dev/vg/root", "%dev%vg%root.unfinished"),
            ("/dev/vg-root", "%dev%vg-root.unfinished"),
            ("/dev/vg%root", "%dev%vg%%root.unfinished"),
        ] {
            let expected = Path::new("/var/lib/evertwin").join(file);
            assert_eq!(place(Path::new(device), true, ".unfinished"), expected);
        }
        let beside = place(Path::new("disk.img"), false, ".unfinished");
        assert_eq!(beside, Path::new("disk.img.unfinished"));
        assert_eq!(directory(&beside), Path::new("."));
    }
}
