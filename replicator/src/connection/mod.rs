//! One TCP connection to a peer, or to somebody who claims to be it.

mod message;
mod plain;
mod queue;

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::ring::Ring;
use crate::tls::{Session, TlsError};
use crate::wire::{Frame, FrameReader};
use message::Message;
use plain::Plain;
pub(crate) use queue::Queue;

/// Most bytes given to the kernel in one send, give or take a frame: what is to overtake the
/// rest has to wait for no more than these.
pub(crate) const SEND_BYTES: usize = 512 * 1024;

/// A connection with its queues. Frames of control overtake bulk frames.
pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    /// The peer's hello was checked.
    pub(crate) verified: bool,
    /// Our hello was queued.
    pub(crate) greeted: bool,
    /// When something last came over it.
    heard: Instant,
    stream: TcpStream,
    reader: FrameReader,
    receiving: bool,
    queue: Queue,
    channel: Channel,
    sending: bool,
    /// What the kernel's send points to.
    message: Message,
}

/// How frames become bytes on the wire.
enum Channel {
    Plain(Plain),
    Tls(Box<Session>),
}

impl Connection {
    /// A connection over the stream; with TLS, if there is a session for it.
    pub(crate) fn new(
        id: u64,
        stream: TcpStream,
        address: SocketAddr,
        session: Option<Session>,
    ) -> io::Result<Self> {
        // A ring waits for blocking sockets by itself; others it gives back at once.
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            id,
            address,
            verified: false,
            greeted: false,
            heard: Instant::now(),
            stream,
            reader: FrameReader::new(),
            receiving: false,
            queue: Queue::default(),
            channel: match session {
                Some(session) => Channel::Tls(Box::new(session)),
                None => Channel::Plain(Plain::default()),
            },
            sending: false,
            message: Message::default(),
        })
    }

    /// This side's address.
    pub(crate) fn local_address(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    pub(crate) fn queue_control(&mut self, frame: Frame) {
        self.queue.push_control(frame);
    }

    pub(crate) fn queue_bulk(&mut self, frame: Frame) {
        self.queue.push_bulk(frame);
    }

    /// Bytes of bulk frames that wait for a send.
    pub(crate) fn bulk_bytes(&self) -> usize {
        self.queue.bulk_bytes()
    }

    /// Drops bulk frames. One that was begun is still sent whole.
    pub(crate) fn drop_bulk(&mut self) {
        self.queue.drop_bulk();
    }

    /// Nothing waits or is under way.
    pub(crate) fn all_sent(&self) -> bool {
        let flushed = match &self.channel {
            Channel::Plain(plain) => plain.is_empty(),
            Channel::Tls(session) => session.is_flushed(),
        };
        self.queue.is_empty() && flushed
    }

    /// Are frames sealed? Says nothing of a handshake that is not over.
    pub(crate) fn is_sealed(&self) -> bool {
        match &self.channel {
            Channel::Plain(_) => false,
            Channel::Tls(session) => session.is_ready(),
        }
    }

    /// Why nothing more can be received, if so.
    pub(crate) fn failure(&self) -> Option<TlsError> {
        match &self.channel {
            Channel::Plain(_) => None,
            Channel::Tls(session) => session.failure().cloned(),
        }
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
        let room = match &mut self.channel {
            Channel::Plain(_) => self.reader.room(),
            Channel::Tls(session) => session.room(),
        };
        let (into, len) = (room.as_mut_ptr(), room.len() as u32);
        // SAFETY: the buffer of reader or session is on the heap, does not move, and this part of
        // it is used by nothing else while `receiving`; a connection is only dropped once it is
        // idle, or leaked.
        unsafe { ring.receive(fd, into, len, self.id)? };
        self.receiving = true;
        Ok(())
    }

    /// A receive has ended: the number of bytes that came, 0 at the connection's end.
    pub(crate) fn received(&mut self, result: i32) -> io::Result<usize> {
        self.receiving = false;
        let len = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))?;
        self.heard = Instant::now();
        match &mut self.channel {
            Channel::Plain(_) => self.reader.filled(len),
            Channel::Tls(session) => session.received(len, &mut self.reader),
        }
        Ok(len)
    }

    /// How long nothing has come over it.
    pub(crate) fn quiet(&self) -> Duration {
        self.heard.elapsed()
    }

    /// Was the connection cut within a frame?
    pub(crate) fn torn(&self) -> bool {
        let within_record = match &self.channel {
            Channel::Plain(_) => false,
            Channel::Tls(session) => session.torn(),
        };
        within_record || self.reader.torn()
    }

    /// Starts a send, unless one is under way or there is nothing to send.
    #[allow(unsafe_code)]
    pub(crate) fn send(&mut self, ring: &mut Ring) -> io::Result<()> {
        if self.sending {
            return Ok(());
        }
        let header = match &mut self.channel {
            Channel::Plain(plain) => {
                if plain.is_empty() {
                    plain.gather(&mut self.queue);
                }
                if plain.is_empty() {
                    return Ok(());
                }
                self.message.point(plain.unsent())
            }
            Channel::Tls(session) => {
                if session.unsent().is_empty()
                    && let Err(error) = session.seal(&mut self.queue)
                {
                    warn!(peer = %self.address, %error, "nothing more can be sent");
                    self.cut();
                    return Ok(());
                }
                if session.unsent().is_empty() {
                    return Ok(());
                }
                self.message.point(std::iter::once(session.unsent()))
            }
        };
        let fd = self.stream.as_raw_fd();
        // SAFETY: header and vectors belong to `message`, what they point to to the channel; all
        // are left alone while `sending`, and are on the heap. A connection is only dropped once
        // it is idle, or leaked.
        unsafe { ring.send(fd, header, self.id)? };
        self.sending = true;
        Ok(())
    }

    /// A send has ended.
    pub(crate) fn sent(&mut self, result: i32) -> io::Result<()> {
        self.sending = false;
        let sent = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))?;
        match &mut self.channel {
            Channel::Plain(plain) => plain.sent(sent),
            Channel::Tls(session) => session.sent(sent),
        }
        Ok(())
    }

    /// Has the kernel let go of all buffers?
    pub(crate) fn idle(&self) -> bool {
        !self.receiving && !self.sending
    }

    /// Says that nothing more will be sent, once all was sent; the peer may still send.
    pub(crate) fn finish(&mut self, ring: &mut Ring) -> io::Result<()> {
        if let Channel::Tls(session) = &mut self.channel
            && session.close()
        {
            return self.send(ring);
        }
        // Fails when the connection is gone already, which is as good.
        let _ = self.stream.shutdown(Shutdown::Write);
        Ok(())
    }

    /// Drops all frames that wait.
    pub(crate) fn drop_all(&mut self) {
        self.queue.clear();
    }

    /// Cuts the connection: what is under way ends soon.
    pub(crate) fn cut(&mut self) {
        self.drop_all();
        // Fails when the connection is gone already, which is as good.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
