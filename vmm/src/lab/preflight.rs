//! What a lab needs of this machine, checked before anything is started, and the rights to make namespaces.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use rustix::thread::UnshareFlags;
use tempfile::TempDir;

use super::LabError;

/// All that comes before a lab: the rights, what it needs of this machine, and a directory for its files.
/// To be called while the process has one thread.
///
/// # Errors
/// Those of [`gain_namespace_rights`] and [`check`], and [`LabError::Io`] where there is no room for a directory.
pub(crate) fn prepare(prefix: &str) -> Result<TempDir, LabError> {
    gain_namespace_rights()?;
    check()?;
    let made = tempfile::Builder::new().prefix(prefix).tempdir();
    made.map_err(LabError::io("making a directory for files"))
}

/// Checks the devices and programs that every lab needs.
///
/// # Errors
/// The first thing that is missing, with the way to get it.
pub fn check() -> Result<(), LabError> {
    check_device(
        "/dev/kvm",
        "add yourself to its group with `sudo usermod -aG kvm $USER` and log in again, or run as root",
        "turn on virtualisation in the firmware and `modprobe kvm_intel` or `modprobe kvm_amd`",
    )?;
    check_device(
        "/dev/net/tun",
        "run as root, or make it mode 0666 as udev does",
        "`modprobe tun`",
    )?;
    find_program("ip", "iproute2")
}

/// Opens a device for reading and writing, and closes it again.
fn check_device(path: &str, no_rights: &str, absent: &str) -> Result<(), LabError> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(source) => {
            let fix = if source.kind() == io::ErrorKind::PermissionDenied {
                no_rights
            } else {
                absent
            };
            Err(LabError::Missing {
                path: path.into(),
                fix: fix.to_owned(),
                source,
            })
        }
    }
}

/// Looks a program up in PATH.
///
/// # Errors
/// [`LabError::NoProgram`] naming the Debian package that has it.
pub fn find_program(program: &str, package: &'static str) -> Result<(), LabError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps `ip` where an ordinary user's PATH does not look.
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory: std::path::PathBuf| directory.join(program).is_file());
    if found {
        Ok(())
    } else {
        Err(LabError::NoProgram {
            program: program.to_owned(),
            package,
        })
    }
}

/// Gains the right to make network namespaces: nothing to do for root, a user namespace of our own for others.
/// To be called while the process has one thread (the kernel refuses it otherwise).
///
/// # Errors
/// [`LabError::Namespace`] where the system does not allow it.
pub fn gain_namespace_rights() -> Result<(), LabError> {
    let uid = rustix::process::geteuid();
    let gid = rustix::process::getegid();
    if uid.is_root() {
        return Ok(());
    }
    let refused = |source| LabError::Namespace {
        kind: "user",
        source,
    };
    // SAFETY: NEWUSER touches credentials only; no descriptor table is unshared.
    #[allow(unsafe_code)]
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }
        .map_err(|errno| refused(errno.into()))?;
    // user_namespaces(7): setgroups must be denied before an unprivileged process may map its group.
    write_proc("setgroups", "deny").map_err(refused)?;
    write_proc("uid_map", &format!("0 {} 1", uid.as_raw())).map_err(refused)?;
    write_proc("gid_map", &format!("0 {} 1", gid.as_raw())).map_err(refused)
}

fn write_proc(name: &str, text: &str) -> io::Result<()> {
    fs::write(Path::new("/proc/self").join(name), text)
}
