//! The thread's io_uring: polls, receives and sends.

mod buffers;

use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use buffers::Pool;
pub(crate) use buffers::{BUFFER_BYTES, Buffer};

/// What an operation was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Accept,
    Dial,
    Probe,
    Look,
    Receive,
    Send,
    Output,
    Inbound,
    Tracking,
    Disks,
    Exited,
    Stop,
    Arbiter,
    Control,
    Cancel,
}

const OPS: [Op; 15] = [
    Op::Accept,
    Op::Dial,
    Op::Probe,
    Op::Look,
    Op::Receive,
    Op::Send,
    Op::Output,
    Op::Inbound,
    Op::Tracking,
    Op::Disks,
    Op::Exited,
    Op::Stop,
    Op::Arbiter,
    Op::Control,
    Op::Cancel,
];

/// Bits of the user data that hold the id; above them stands the number of the batch, and above that the operation.
const ID_BITS: u32 = 48;
const BATCH_BITS: u32 = 8;

/// From linux/io_uring.h: a notification is to tell whether the bytes were copied after all (since Linux 6.2).
const IORING_SEND_ZC_REPORT_USAGE: u16 = 1 << 3;
/// From linux/io_uring.h: they were, some of them at least.
const IORING_NOTIF_USAGE_ZC_COPIED: u32 = 1 << 31;

/// An operation that came to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Completion {
    pub(crate) op: Op,
    /// Which connection or attempt it belongs to.
    pub(crate) id: u64,
    /// As the kernel gives it: negative for an error.
    pub(crate) result: i32,
    /// Of a zero-copy send: the batch that it was given.
    pub(crate) batch: u8,
    /// Of a zero-copy send: a notification is still to come.
    pub(crate) more: bool,
    /// The kernel has let go of the bytes of a zero-copy send, whose result came or comes by itself.
    pub(crate) notification: bool,
}

impl Completion {
    /// Of a notification: the bytes were copied after all.
    pub(crate) fn copied(&self) -> bool {
        self.result as u32 & IORING_NOTIF_USAGE_ZC_COPIED != 0
    }
}

/// Bytes for a zero-copy send.
pub(crate) enum Parts {
    /// What a message header points to.
    Message(*const libc::msghdr),
    /// Part of a registered buffer.
    Registered { at: *const u8, len: u32, index: u16 },
}

/// The submission and completion queues.
pub(crate) struct Ring {
    ring: IoUring,
    // Goes after the ring that knows its buffers.
    pool: Pool,
    /// The kernel knows zero-copy sends, and tells what became of them.
    pub(crate) zero_copy: bool,
    /// Sends end when they have sent something. Otherwise they wait until they have sent all.
    #[cfg(test)]
    pub(crate) piecemeal: bool,
}

impl Ring {
    pub(crate) fn new() -> io::Result<Self> {
        let mut ring = IoUring::new(128)?;
        Ok(Self {
            zero_copy: knows_zero_copy(&mut ring)?,
            pool: Pool::default(),
            ring,
            #[cfg(test)]
            piecemeal: false,
        })
    }

    /// A buffer for zero-copy sends, unless all are in use.
    pub(crate) fn take_buffer(&mut self) -> Option<Buffer> {
        self.pool.take(&self.ring.submitter())
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
        let entry = opcode::SendMsg::new(Fd(fd), message).flags(self.send_flags() as u32);
        self.push(entry.build(), Op::Send, id)
    }

    /// Sends the parts from where they are. Completes with the result and, unless that says otherwise, once again as a
    /// notification.
    ///
    /// # Safety
    /// A header and its vectors must stay valid and unchanged until the result has come, the bytes that are sent until
    /// the notification has come as well.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn send_zero_copy(
        &mut self,
        fd: RawFd,
        parts: &Parts,
        id: u64,
        batch: u8,
    ) -> io::Result<()> {
        let (fd, flags) = (Fd(fd), self.send_flags());
        let entry = match *parts {
            Parts::Message(header) => opcode::SendMsgZc::new(fd, header)
                .flags(flags as u32)
                .ioprio(IORING_SEND_ZC_REPORT_USAGE)
                .build(),
            Parts::Registered { at, len, index } => opcode::SendZc::new(fd, at, len)
                .buf_index(Some(index))
                .flags(flags)
                .zc_flags(IORING_SEND_ZC_REPORT_USAGE)
                .build(),
        };
        self.push(entry, Op::Send, u64::from(batch) << ID_BITS | id)
    }

    fn send_flags(&self) -> i32 {
        #[cfg(test)]
        if self.piecemeal {
            return libc::MSG_NOSIGNAL;
        }
        libc::MSG_NOSIGNAL | libc::MSG_WAITALL
    }

    /// Hands what was queued to the kernel.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        match self.ring.submit() {
            Err(error) if !transient(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Submits, and looks for completions for so long without sleeping; whoever else wants the processor has it meanwhile.
    pub(crate) fn poll(&mut self, time: Duration) -> io::Result<()> {
        if time.is_zero() {
            return Ok(());
        }
        self.submit()?;
        let begun = Instant::now();
        while self.ring.completion().is_empty() && begun.elapsed() < time {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Submits, waits for a completion or the timeout, and gathers what completed.
    pub(crate) fn wait(
        &mut self,
        timeout: Duration,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let timespec = Timespec::from(timeout);
        let args = SubmitArgs::new().timespec(&timespec);
        match self.ring.submitter().submit_with_args(1, &args) {
            Err(error) if !transient(&error) => return Err(error),
            _ => {}
        }
        completions.clear();
        completions.extend(self.ring.completion().filter_map(|entry| {
            let (data, flags) = (entry.user_data(), entry.flags());
            Some(Completion {
                op: *OPS.get((data >> (ID_BITS + BATCH_BITS)) as usize)?,
                id: data & ((1 << ID_BITS) - 1),
                result: entry.result(),
                batch: (data >> ID_BITS) as u8,
                more: cqueue::more(flags),
                notification: cqueue::notif(flags),
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
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_ok() {
                return Ok(());
            }
            self.submit()?;
        }
    }
}

/// Does the kernel know zero-copy sends, and tell whether they copied after all? It is asked with a send to nowhere: a
/// probe for operations says nothing of their flags.
fn knows_zero_copy(ring: &mut IoUring) -> io::Result<bool> {
    let nowhere = opcode::SendZc::new(Fd(-1), ptr::null(), 0).zc_flags(IORING_SEND_ZC_REPORT_USAGE);
    // SAFETY: it points to no memory.
    #[allow(unsafe_code)]
    let pushed = unsafe { ring.submission().push(&nowhere.build()) };
    pushed.map_err(io::Error::other)?;
    let mut known = false;
    loop {
        match ring.submit_and_wait(1) {
            Err(error) if !transient(&error) => return Err(error),
            _ => {}
        }
        for entry in ring.completion() {
            known |= entry.result() == -libc::EBADF;
            if !cqueue::more(entry.flags()) {
                return Ok(known);
            }
        }
    }
}

fn user_data(op: Op, id: u64) -> u64 {
    (op as u64) << (ID_BITS + BATCH_BITS) | id
}

/// Errors that say "later" or "nothing came", not that something is wrong.
fn transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
    )
}
