//! The thread's io_uring: polls, receives and sends.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

/// What an operation was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Accept,
    Dial,
    Probe,
    Receive,
    Send,
    Output,
    Inbound,
    Tracking,
    Exited,
    Stop,
    Arbiter,
    Control,
    Cancel,
}

const OPS: [Op; 13] = [
    Op::Accept,
    Op::Dial,
    Op::Probe,
    Op::Receive,
    Op::Send,
    Op::Output,
    Op::Inbound,
    Op::Tracking,
    Op::Exited,
    Op::Stop,
    Op::Arbiter,
    Op::Control,
    Op::Cancel,
];

/// Bits of the user data that hold the id; the operation stands above them.
const ID_BITS: u32 = 56;

/// An operation that came to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Completion {
    pub(crate) op: Op,
    /// Which connection or attempt it belongs to.
    pub(crate) id: u64,
    /// As the kernel gives it: negative for an error.
    pub(crate) result: i32,
}

/// The submission and completion queues.
pub(crate) struct Ring(IoUring);

impl Ring {
    pub(crate) fn new() -> io::Result<Self> {
        IoUring::new(128).map(Self)
    }

    /// Completes once when the descriptor is readable.
    pub(crate) fn poll_readable(&mut self, fd: RawFd, op: Op) -> io::Result<()> {
        let entry = opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32);
        self.push(entry.build(), op, 0)
    }

    /// Completes once when a connection waits at the listener with this number.
    pub(crate) fn poll_listener(&mut self, fd: RawFd, number: u64) -> io::Result<()> {
        let entry = opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32);
        self.push(entry.build(), Op::Accept, number)
    }

    /// Completes once when the descriptor is writable.
    pub(crate) fn poll_writable(&mut self, fd: RawFd, op: Op, id: u64) -> io::Result<()> {
        let entry = opcode::PollAdd::new(Fd(fd), libc::POLLOUT as u32);
        self.push(entry.build(), op, id)
    }

    /// Ends an operation that is under way; it then completes with an error.
    pub(crate) fn cancel(&mut self, op: Op, id: u64) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(user_data(op, id));
        self.push(entry.build(), Op::Cancel, id)
    }

    /// Receives into `len` bytes at `into`.
    ///
    /// # Safety
    /// The memory must stay valid and otherwise unused until the operation completes.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn receive(
        &mut self,
        fd: RawFd,
        into: *mut u8,
        len: u32,
        id: u64,
    ) -> io::Result<()> {
        let entry = opcode::Recv::new(Fd(fd), into, len);
        self.push(entry.build(), Op::Receive, id)
    }

    /// Sends what the message header points to.
    ///
    /// # Safety
    /// The header, its vectors and the bytes they name must stay valid and unchanged until
    /// the operation completes.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn send(
        &mut self,
        fd: RawFd,
        message: *const libc::msghdr,
        id: u64,
    ) -> io::Result<()> {
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        let entry = opcode::SendMsg::new(Fd(fd), message).flags(flags);
        self.push(entry.build(), Op::Send, id)
    }

    /// Hands what was queued to the kernel.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        match self.0.submit() {
            Err(error) if !transient(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Submits, waits for a completion or the timeout, and gathers what completed.
    pub(crate) fn wait(
        &mut self,
        timeout: Duration,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let timespec = Timespec::from(timeout);
        let args = SubmitArgs::new().timespec(&timespec);
        match self.0.submitter().submit_with_args(1, &args) {
            Err(error) if !transient(&error) => return Err(error),
            _ => {}
        }
        completions.clear();
        completions.extend(self.0.completion().filter_map(|entry| {
            let data = entry.user_data();
            Some(Completion {
                op: *OPS.get((data >> ID_BITS) as usize)?,
                id: data & ((1 << ID_BITS) - 1),
                result: entry.result(),
            })
        }));
        Ok(())
    }

    fn push(&mut self, entry: squeue::Entry, op: Op, id: u64) -> io::Result<()> {
        let entry = entry.user_data(user_data(op, id));
        loop {
            // SAFETY: polls and cancels point to no memory; the memory of receives and sends
            // is kept valid by their callers.
            #[allow(unsafe_code)]
            let pushed = unsafe { self.0.submission().push(&entry) };
            if pushed.is_ok() {
                return Ok(());
            }
            self.submit()?;
        }
    }
}

fn user_data(op: Op, id: u64) -> u64 {
    (op as u64) << ID_BITS | id
}

/// Errors that say "later" or "nothing came", not that something is wrong.
fn transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
    )
}
