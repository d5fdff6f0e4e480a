//! TAP interfaces: the host's end of a guest's network card.
#![allow(unsafe_code)] // TUNSETIFF takes a raw structure; see the SAFETY comments.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use super::header::{HEADER_BYTES, Offloads};
use crate::gate::Sink;

/// Longest interface name, without the final NUL.
const MAX_NAME_BYTES: usize = libc::IFNAMSIZ - 1;

/// Why a TAP can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have this name.
    #[error("`{0}` is no interface name: use 1 to 15 characters without `/` and spaces")]
    BadName(String),
    /// There is no such interface.
    #[error("there is no interface {0}: create it with `ip tuntap add {0} mode tap`")]
    Missing(String),
    /// The interface is no TAP.
    #[error(
        "interface {0} is not a single-queue TAP: create one with `ip tuntap add NAME mode tap`"
    )]
    NotATap(String),
    /// Another process has it.
    #[error("TAP {0} is used by another process: stop that one or use another TAP")]
    Busy(String),
    /// The system has no TAP support.
    #[error("/dev/net/tun is missing: load it with `modprobe tun`")]
    NoDevice,
    /// It has no offload headers.
    #[error(
        "TAP {name} refuses offload headers (TUNSETVNETHDRSZ, TUNSETOFFLOAD): {error}; use a TAP of \
         an ordinary Linux kernel, made with `ip tuntap add {name} mode tap`"
    )]
    NoHeaders {
        /// Interface name.
        name: String,
        /// What the system said.
        error: io::Error,
    },
    /// This user may not.
    #[error(
        "TAP {0} may not be opened by this user: create it with `ip tuntap add {0} mode tap user \
         NAME` and allow /dev/net/tun"
    )]
    NoRights(String),
    /// Anything else.
    #[error("TAP {name} can't be opened: {error}")]
    Io {
        /// Interface name.
        name: String,
        /// What the system said.
        error: io::Error,
    },
}

/// Opens the TAP `name`, which must exist, without packet information and with offload
/// headers.
pub fn open(name: &str) -> Result<OwnedFd, TapError> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b'%';
    let dots = name == "." || name == "..";
    if !(1..=MAX_NAME_BYTES).contains(&name.len()) || dots || !name.bytes().all(allowed) {
        return Err(TapError::BadName(name.into()));
    }
    let io_error = |error: io::Error| TapError::Io {
        name: name.into(),
        error,
    };
    // TUNSETIFF would make an interface that doesn't exist: look first.
    let probe = socket(AddressFamily::INET, SocketType::DGRAM, None)
        .map_err(|error| io_error(error.into()))?;
    match netdevice::name_to_index(&probe, name) {
        Ok(_) => {}
        Err(rustix::io::Errno::NODEV) => return Err(TapError::Missing(name.into())),
        Err(error) => return Err(io_error(error.into())),
    }
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => TapError::NoDevice,
            io::ErrorKind::PermissionDenied => TapError::NoRights(name.into()),
            _ if error.raw_os_error() == Some(libc::ENODEV) => TapError::NoDevice,
            _ => io_error(error),
        })?;
    // SAFETY: all zeroes are a valid `ifreq`: it has integers, arrays and unions of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one `ifreq`.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::EINVAL) => TapError::NotATap(name.into()),
            Some(libc::EBUSY) => TapError::Busy(name.into()),
            Some(libc::EPERM | libc::EACCES) => TapError::NoRights(name.into()),
            _ => io_error(error),
        });
    }
    let tun = OwnedFd::from(tun);
    // All that may ever be asked for is asked for here, where a refusal still has a name.
    let all = Offloads {
        checksum: true,
        tso4: true,
        tso6: true,
    };
    set_header_bytes(&tun)
        .and_then(|()| set_offloads(&tun, all))
        .and_then(|()| set_offloads(&tun, Offloads::default()))
        .map_err(|error| TapError::NoHeaders {
            name: name.into(),
            error,
        })?;
    Ok(tun)
}

fn set_header_bytes(tap: &OwnedFd) -> io::Result<()> {
    let bytes = HEADER_BYTES as libc::c_int;
    // SAFETY: the descriptor is open, and TUNSETVNETHDRSZ reads one `int`.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Says what the guest behind a TAP takes undone. What is no TAP takes no such orders.
pub(super) fn set_offloads(tap: &OwnedFd, offloads: Offloads) -> io::Result<()> {
    let Offloads {
        checksum,
        tso4,
        tso6,
    } = offloads;
    let mut flags = 0;
    for (on, flag) in [
        (checksum, libc::TUN_F_CSUM),
        (tso4, libc::TUN_F_TSO4),
        (tso6, libc::TUN_F_TSO6),
    ] {
        if on {
            flags |= flag;
        }
    }
    // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes its flags by value.
    let result = unsafe {
        libc::ioctl(
            tap.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(flags),
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ENOTTY) {
            return Err(error);
        }
    }
    Ok(())
}

/// The gate's way out to a TAP.
pub(super) struct TapSink {
    pub(super) tap: Arc<OwnedFd>,
    pub(super) dropped: Arc<std::sync::atomic::AtomicU64>,
}

impl Sink for TapSink {
    fn emit(&mut self, frame: &[u8]) {
        // A frame the interface won't take now is lost, as on a real network.
        if rustix::io::write(&self.tap, frame).is_err() {
            self.dropped
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_interface_and_the_fix() {
        let error = open("et-none0").unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no interface et-none0: create it with `ip tuntap add et-none0 mode tap`"
        );
        for name in [
            "",
            "a/b",
            "a b",
            "sixteen-letters-",
            "tap%d",
            "..",
            "t\u{e4}p",
        ] {
            let error = open(name).unwrap_err();
            assert!(matches!(error, TapError::BadName(_)), "{name}: {error}");
        }
    }

    #[test]
    fn an_interface_of_another_kind_is_refused() {
        // Without the right to open /dev/net/tun the answer is another one, just as clear.
        let error = open("lo").unwrap_err();
        assert!(
            matches!(
                error,
                TapError::NotATap(_) | TapError::NoRights(_) | TapError::NoDevice
            ),
            "{error}"
        );
    }
}
