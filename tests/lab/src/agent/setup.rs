//! What a host needs before it can be used: file systems, drivers, and Debian's tools.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::system::init_module;

use super::open_port;

/// Lists the drivers, dependencies first.
const MODULES: &str = "/modules/order";
/// Where Debian's tools are mounted, read-only, from the guest's root image.
const TOOLS: &str = "/debian";
/// The disk that holds them, and the host's own disk.
const TOOLS_DISK: &str = "/dev/vda";
const OWN_DISK: &str = "/dev/vdb";
/// The host's own disk is mounted here, if it has one.
const OWN: &str = "/disk";
/// Devices show up some time after their drivers.
const PATIENCE: Duration = Duration::from_secs(30);

/// Mounts the kernel's file systems, loads the drivers and opens the port to the lab.
pub(super) fn prepare() -> io::Result<File> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(place)?;
        mount(kind, place, kind, MountFlags::empty(), None).map_err(|error| at(place, error))?;
    }
    fs::create_dir_all("/tmp")?;
    let order = fs::read_to_string(MODULES)?;
    for name in order.lines() {
        let image = fs::read(Path::new("/modules").join(name))?;
        init_module(&image, &CString::default()).map_err(|error| at(name, error))?;
    }
    await_path(Path::new("/sys/class/virtio-ports"))?;
    let port = await_port()?;
    open_port(&port)
}

/// Mounts the tools, and what they expect of a running system, and the host's own disk.
pub(super) fn mount_tools() -> io::Result<()> {
    await_path(Path::new(TOOLS_DISK))?;
    fs::create_dir_all(TOOLS)?;
    mount(TOOLS_DISK, TOOLS, "ext4", MountFlags::RDONLY, None)
        .map_err(|error| at(TOOLS_DISK, error))?;
    for place in ["proc", "sys", "dev"] {
        let to = format!("{TOOLS}/{place}");
        mount_bind(format!("/{place}"), &to).map_err(|error| at(&to, error))?;
    }
    for place in ["tmp", "run", "root"] {
        let to = format!("{TOOLS}/{place}");
        mount("tmpfs", &to, "tmpfs", MountFlags::empty(), None).map_err(|error| at(&to, error))?;
    }
    fs::create_dir_all(OWN)?;
    if Path::new(OWN_DISK).exists() {
        mount(OWN_DISK, OWN, "ext4", MountFlags::empty(), None)
            .map_err(|error| at(OWN_DISK, error))?;
        let to = format!("{TOOLS}/mnt");
        mount_bind(OWN, &to).map_err(|error| at(&to, error))?;
    }
    Ok(())
}

fn await_port() -> io::Result<PathBuf> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = fs::read_dir("/sys/class/virtio-ports")?
            .filter_map(Result::ok)
            .map(|entry| Path::new("/dev").join(entry.file_name()))
            .find(|path| path.exists());
        match found {
            Some(path) => return Ok(path),
            None if Instant::now() > deadline => {
                return Err(io::Error::other("this host has no virtio-serial port"));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn await_path(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !path.exists() {
        if Instant::now() > deadline {
            return Err(io::Error::other(format!(
                "{} did not show up",
                path.display()
            )));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn at(what: &str, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
