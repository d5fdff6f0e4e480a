//! The wish to end: SIGINT, SIGTERM, SIGHUP or Ctrl-A x.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Becomes readable, and stays so, once the end is wished for.
#[derive(Debug)]
pub struct Stop {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Stop {
    /// Catches the signals that ask a process to end.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
        }
        Ok(Self { reader, writer })
    }

    /// A handle with which a thread can ask for the end.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn asker(&self) -> io::Result<AskStop> {
        Ok(AskStop(self.writer.try_clone()?))
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// Asks a [`Stop`] for the end.
#[derive(Debug)]
pub struct AskStop(OwnedFd);

impl AskStop {
    /// Asks. A full pipe means it has been asked already.
    pub fn ask(&self) {
        let _ = rustix::io::write(&self.0, &[1]);
    }
}
