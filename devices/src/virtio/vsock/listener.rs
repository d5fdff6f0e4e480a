//! The Unix sockets by which the host's programs and the guest find each other.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, FileType, Stat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};

/// Longest socket path: `sun_path` without its final NUL, less `_` and a port of ten digits.
const MAX_PATH_BYTES: usize = 107 - 11;
/// Connections the kernel keeps until they are accepted.
const BACKLOG: i32 = 64;

/// Why a socket path can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// With the suffix of a port it would be too long for the system.
    #[error(
        "the vsock socket {path} has a path of {length} bytes: use at most {MAX_PATH_BYTES}, since \
         _PORT is added to it"
    )]
    TooLong {
        /// As given.
        path: PathBuf,
        /// Of it.
        length: usize,
    },
    /// No file can have this name.
    #[error("`{0}` is no path of a vsock socket: name a file, for example /run/vm.vsock")]
    NoFile(PathBuf),
    /// Its directory is not there or not ours to write to.
    #[error(
        "the vsock socket {path} can't be made: directory {directory} is missing or not writable \
         ({error}); create it or choose another path"
    )]
    Directory {
        /// As given.
        path: PathBuf,
        /// Where it would be.
        directory: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Somebody listens there.
    #[error(
        "another process listens on the vsock socket {0}: end it, or choose another path; host \
         programs can't reach this guest"
    )]
    Alive(PathBuf),
    /// Something else has its name.
    #[error("{0} exists and is no socket: remove it, or choose another path for the vsock socket")]
    NotASocket(PathBuf),
    /// Anything else.
    #[error("can't listen on the vsock socket {path}: {error}")]
    Io {
        /// As given.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// The path of a VM's socket, short enough for all that is made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketPath(PathBuf);

impl SocketPath {
    /// Checks a path's length and form.
    ///
    /// # Errors
    /// Too long, or no file's name.
    pub fn new(path: &Path) -> Result<Self, SocketError> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() > MAX_PATH_BYTES {
            return Err(SocketError::TooLong {
                path: path.into(),
                length: bytes.len(),
            });
        }
        if path.file_name().is_none() || bytes.ends_with(b"/") || bytes.contains(&0) {
            return Err(SocketError::NoFile(path.into()));
        }
        Ok(Self(path.into()))
    }

    /// The path as given.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Checks that files can be made where the path points to.
    pub(super) fn check_directory(&self) -> Result<(), SocketError> {
        let parent = self.0.parent().filter(|p| !p.as_os_str().is_empty());
        let directory = parent.unwrap_or(Path::new("."));
        let listed = rustix::fs::stat(directory).and_then(|stat| match is(&stat) {
            FileType::Directory => Ok(()),
            _ => Err(Errno::NOTDIR),
        });
        listed
            .and_then(|()| rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK))
            .map_err(|error| SocketError::Directory {
                path: self.0.clone(),
                directory: directory.into(),
                error: error.into(),
            })
    }

    /// Connects to the program that serves `port` on the host.
    pub(super) fn connect(&self, port: u32) -> Result<OwnedFd, Errno> {
        let mut path = OsString::from(&self.0);
        path.push(format!("_{port}"));
        let socket = new_socket()?;
        connect(&socket, &SocketAddrUnix::new(Path::new(&path))?)?;
        Ok(socket)
    }
}

fn is(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// A socket that listens. Its file goes with it, unless it has become somebody else's.
pub(super) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens on `path`, in place of a socket on which nobody listens any more.
    pub(super) fn bind(path: &SocketPath) -> Result<Self, SocketError> {
        let path = path.as_path();
        let other = |error: Errno| SocketError::Io {
            path: path.into(),
            error: error.into(),
        };
        let address = SocketAddrUnix::new(path).map_err(other)?;
        let socket = new_socket().map_err(other)?;
        match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                let there = rustix::fs::lstat(path).map_err(other)?;
                if is(&there) != FileType::Socket {
                    return Err(SocketError::NotASocket(path.into()));
                }
                match new_socket().and_then(|probe| connect(&probe, &address)) {
                    Err(Errno::CONNREFUSED) => {}
                    // A backlog that is full is somebody's.
                    Ok(()) | Err(Errno::AGAIN) => return Err(SocketError::Alive(path.into())),
                    Err(error) => return Err(other(error)),
                }
                rustix::fs::unlink(path).map_err(other)?;
                bind(&socket, &address).map_err(other)?;
            }
            result => result.map_err(other)?,
        }
        listen(&socket, BACKLOG).map_err(other)?;
        Ok(Self {
            socket,
            path: path.into(),
            file: file_at(path),
        })
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The next program that has connected.
    pub(super) fn accept(&self) -> Option<OwnedFd> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        loop {
            match accept_with(&self.socket, flags) {
                Ok(socket) => return Some(socket),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.file.is_some() && file_at(&self.path) == self.file {
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::lstat(path).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn path(dir: &tempfile::TempDir) -> SocketPath {
        SocketPath::new(&dir.path().join("vm.vsock")).unwrap()
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(&dir);
        drop(UnixListener::bind(path.as_path()).unwrap());
        assert!(path.as_path().exists());
        let listener = Listener::bind(&path).unwrap();
        let _program = UnixStream::connect(path.as_path()).unwrap();
        assert!(listener.accept().is_some());
        assert!(listener.accept().is_none());

        let error = Listener::bind(&path).err().unwrap();
        assert!(matches!(error, SocketError::Alive(_)), "{error}");
        assert!(error.to_string().contains("vm.vsock"));
        drop(listener);
        assert!(!path.as_path().exists());
    }

    #[test]
    fn what_is_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(&dir);
        let listener = Listener::bind(&path).unwrap();
        std::fs::remove_file(path.as_path()).unwrap();
        let _other = UnixListener::bind(path.as_path()).unwrap();
        drop(listener);
        assert!(path.as_path().exists());

        std::fs::remove_file(path.as_path()).unwrap();
        std::fs::write(path.as_path(), "precious").unwrap();
        let error = Listener::bind(&path).err().unwrap();
        assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
        assert_eq!(std::fs::read(path.as_path()).unwrap(), b"precious");
    }

    #[test]
    fn errors_name_the_path_and_the_fix() {
        let long = "/tmp/".to_owned() + &"x".repeat(MAX_PATH_BYTES - 4);
        let error = SocketPath::new(Path::new(&long)).unwrap_err().to_string();
        assert!(error.contains("97 bytes: use at most 96"), "{error}");
        SocketPath::new(Path::new(&long[1..])).unwrap();
        for none in ["", "/", "/tmp/", ".."] {
            let error = SocketPath::new(Path::new(none)).unwrap_err();
            assert!(matches!(error, SocketError::NoFile(_)), "{none}: {error}");
        }
        let missing = SocketPath::new(Path::new("/nonexistent/vm.vsock")).unwrap();
        let error = missing.check_directory().unwrap_err().to_string();
        assert!(
            error.contains("directory /nonexistent is missing"),
            "{error}"
        );
        SocketPath::new(Path::new("/tmp/vm.vsock"))
            .unwrap()
            .check_directory()
            .unwrap();
    }
}
