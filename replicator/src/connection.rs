//! One TCP connection to a peer, or to somebody who claims to be it.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use crate::ring::Ring;
use crate::wire::{Frame, FrameReader};

/// Most bytes given to the kernel in one send, give or take a frame.
const SEND_BYTES: usize = 512 * 1024;

/// Most frames in one send: two vectors each, 1024 are allowed.
const SEND_FRAMES: usize = 256;

/// A connection with its queues. Frames of control overtake bulk frames.
pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    /// The peer's hello was checked.
    pub(crate) verified: bool,
    stream: TcpStream,
    reader: FrameReader,
    receiving: bool,
    control: VecDeque<Frame>,
    bulk: VecDeque<Frame>,
    bulk_bytes: usize,
    sending: Sending,
}

/// A send that the kernel works on, and what it points to.
#[derive(Default)]
struct Sending {
    active: bool,
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that were sent before.
    sent: usize,
    vectors: Vec<libc::iovec>,
    header: Option<Box<libc::msghdr>>,
}

impl Connection {
    pub(crate) fn new(id: u64, stream: TcpStream, address: SocketAddr) -> io::Result<Self> {
        // A ring waits for blocking sockets by itself; others it gives back at once.
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            id,
            address,
            verified: false,
            stream,
            reader: FrameReader::new(),
            receiving: false,
            control: VecDeque::new(),
            bulk: VecDeque::new(),
            bulk_bytes: 0,
            sending: Sending::default(),
        })
    }

    pub(crate) fn queue_control(&mut self, frame: Frame) {
        self.control.push_back(frame);
    }

    pub(crate) fn queue_bulk(&mut self, frame: Frame) {
        self.bulk_bytes += frame.len();
        self.bulk.push_back(frame);
    }

    /// Bytes of bulk frames that wait for a send.
    pub(crate) fn bulk_bytes(&self) -> usize {
        self.bulk_bytes
    }

    /// Drops bulk frames. One that was begun is still sent whole.
    pub(crate) fn drop_bulk(&mut self) {
        self.bulk.clear();
        self.bulk_bytes = 0;
    }

    /// Nothing waits or is under way.
    pub(crate) fn all_sent(&self) -> bool {
        self.control.is_empty() && self.bulk.is_empty() && self.sending.frames.is_empty()
    }

    /// The frames received; given back with [`Self::put_reader`].
    pub(crate) fn take_reader(&mut self) -> FrameReader {
        std::mem::replace(&mut self.reader, FrameReader::empty())
    }

    pub(crate) fn put_reader(&mut self, reader: FrameReader) {
        // The kernel may be writing to the buffer of a reader that is in use.
        if !self.receiving {
            self.reader = reader;
        }
    }

    /// Starts a receive, unless one is under way.
    #[allow(unsafe_code)]
    pub(crate) fn receive(&mut self, ring: &mut Ring) -> io::Result<()> {
        if self.receiving {
            return Ok(());
        }
        let fd = self.stream.as_raw_fd();
        let room = self.reader.room();
        let (into, len) = (room.as_mut_ptr(), room.len() as u32);
        // SAFETY: the reader's buffer is on the heap, does not move, and is used by nothing
        // else while `receiving`; a connection is only dropped once it is idle, or leaked.
        unsafe { ring.receive(fd, into, len, self.id)? };
        self.receiving = true;
        Ok(())
    }

    /// A receive has ended: the number of bytes that came, 0 at the connection's end.
    pub(crate) fn received(&mut self, result: i32) -> io::Result<usize> {
        self.receiving = false;
        let len = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))?;
        self.reader.filled(len);
        Ok(len)
    }

    /// Was the connection cut within a frame?
    pub(crate) fn torn(&self) -> bool {
        self.reader.torn()
    }

    /// Starts a send, unless one is under way or there is nothing to send.
    #[allow(unsafe_code)]
    pub(crate) fn send(&mut self, ring: &mut Ring) -> io::Result<()> {
        if self.sending.active {
            return Ok(());
        }
        if self.sending.frames.is_empty() {
            self.gather();
        }
        if self.sending.frames.is_empty() {
            return Ok(());
        }
        let header = self.sending.point();
        let fd = self.stream.as_raw_fd();
        // SAFETY: header, vectors and frames belong to `sending` and are left alone while it
        // is active; frames keep their bytes on the heap. A connection is only dropped once
        // it is idle, or leaked.
        unsafe { ring.send(fd, header, self.id)? };
        self.sending.active = true;
        Ok(())
    }

    /// A send has ended.
    pub(crate) fn sent(&mut self, result: i32) -> io::Result<()> {
        self.sending.active = false;
        let sent = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))?;
        self.sending.advance(sent);
        Ok(())
    }

    /// Has the kernel let go of all buffers?
    pub(crate) fn idle(&self) -> bool {
        !self.receiving && !self.sending.active
    }

    /// Says that nothing more will be sent; the peer may still send.
    pub(crate) fn finish(&self) {
        // Fails when the connection is gone already, which is as good.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Cuts the connection: what is under way ends soon.
    pub(crate) fn cut(&mut self) {
        self.control.clear();
        self.drop_bulk();
        // Fails when the connection is gone already, which is as good.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn gather(&mut self) {
        let mut bytes = 0;
        while bytes < SEND_BYTES && self.sending.frames.len() < SEND_FRAMES {
            let frame = match self.control.pop_front() {
                Some(frame) => frame,
                None => {
                    let Some(frame) = self.bulk.pop_front() else {
                        break;
                    };
                    self.bulk_bytes -= frame.len();
                    frame
                }
            };
            bytes += frame.len();
            self.sending.frames.push_back(frame);
        }
    }
}

impl Sending {
    /// Points the vectors to what is left of the frames.
    fn point(&mut self) -> *const libc::msghdr {
        self.vectors.clear();
        let mut skip = self.sent;
        for frame in &self.frames {
            for part in [frame.head.as_slice(), frame.body.bytes()] {
                let passed = skip.min(part.len());
                skip -= passed;
                let part = &part[passed..];
                if !part.is_empty() {
                    self.vectors.push(libc::iovec {
                        iov_base: part.as_ptr().cast_mut().cast(),
                        iov_len: part.len(),
                    });
                }
            }
        }
        // SAFETY: all-zero bytes are a valid msghdr: null pointers and zero lengths.
        #[allow(unsafe_code)]
        let zeroed = || Box::new(unsafe { std::mem::zeroed::<libc::msghdr>() });
        let header = self.header.get_or_insert_with(zeroed);
        header.msg_iov = self.vectors.as_mut_ptr();
        header.msg_iovlen = self.vectors.len();
        &raw const **header
    }

    fn advance(&mut self, sent: usize) {
        self.sent += sent;
        while let Some(frame) = self.frames.front() {
            if self.sent < frame.len() {
                break;
            }
            self.sent -= frame.len();
            self.frames.pop_front();
        }
    }
}
