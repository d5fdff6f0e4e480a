//! One TCP connection to a peer, or to somebody who claims to be it.

mod channel;
mod message;
mod packing;
mod plain;
mod queue;
mod zero_copy;

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::ring::{Completion, Ring};
use crate::tls::{Session, TlsError};
use crate::wire::{Frame, FrameReader};
use channel::Channel;
use message::Message;
use packing::Packing;
pub(crate) use queue::Queue;
use zero_copy::ZeroCopy;

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
    packing: Packing,
    channel: Channel,
    sending: bool,
    /// What the kernel's send points to.
    message: Message,
    zero_copy: ZeroCopy,
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
            packing: Packing::default(),
            channel: Channel::new(session),
            sending: false,
            message: Message::default(),
            zero_copy: ZeroCopy::default(),
        })
    }

    /// This side's address.
    pub(crate) fn local_address(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    pub(crate) fn queue_control(&mut self, frame: Frame) {
        self.queue.push_control(frame);
    }

    /// Returns how many bytes the frame has on the link, without those of TLS.
    pub(crate) fn queue_bulk(&mut self, frame: Frame) -> usize {
        let frame = self.packing.pack(frame);
        let bytes = frame.len();
        self.queue.push_bulk(frame);
        bytes
    }

    /// From here on bulk frames are packed, should the link turn out to be slow.
    pub(crate) fn allow_packing(&mut self) {
        self.packing.allow();
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
        self.queue.is_empty() && self.channel.is_flushed()
    }

    /// Are frames sealed? Says nothing of a handshake that is not over.
    pub(crate) fn is_sealed(&self) -> bool {
        self.channel.session().is_some_and(Session::is_ready)
    }

    /// Why nothing more can be received, if so.
    pub(crate) fn failure(&self) -> Option<TlsError> {
        self.channel.session()?.failure().cloned()
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

    /// Gives back the memory of what has come and was taken, and of what was sent.
    pub(crate) fn give_back_memory(&mut self) {
        if !self.receiving {
            self.reader.give_back_memory();
        }
        self.packing.give_back_memory();
        if let Channel::Tls(session) = &mut self.channel {
            session.give_back_memory(!self.receiving, !self.sending);
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

    /// Nobody has listened to it until now.
    pub(crate) fn was_left_alone(&mut self) {
        self.heard = Instant::now();
    }

    /// How long nothing has come over it.
    pub(crate) fn quiet(&self) -> Duration {
        self.heard.elapsed()
    }

    /// Was the connection cut within a frame?
    pub(crate) fn torn(&self) -> bool {
        self.channel.session().is_some_and(Session::torn) || self.reader.torn()
    }

    /// Starts a send, unless one is under way or there is nothing to send.
    #[allow(unsafe_code)]
    pub(crate) fn send(&mut self, ring: &mut Ring) -> io::Result<()> {
        if self.sending {
            return Ok(());
        }
        if let Err(error) = self.channel.fill(&mut self.queue) {
            warn!(peer = %self.address, %error, "nothing more can be sent");
            self.cut();
            return Ok(());
        }
        let bytes = self.channel.unsent_bytes();
        if bytes == 0 {
            return Ok(());
        }
        let fd = self.stream.as_raw_fd();
        match self.zero_copy.begin(bytes, &self.channel, ring) {
            Some(batch) => {
                let parts = self.channel.parts(&mut self.message);
                // SAFETY: as below, and `zero_copy` holds the bytes until the kernel has let go of them, which a
                // connection that is not idle waits for as well.
                unsafe { ring.send_zero_copy(fd, &parts, self.id, batch)? };
            }
            None => {
                let header = self.channel.point(&mut self.message);
                // SAFETY: header and vectors belong to `message`, what they point to to the channel; all are left alone
                // while `sending`, and are on the heap. A connection is only dropped once it is idle, or leaked.
                unsafe { ring.send(fd, header, self.id)? };
            }
        }
        self.sending = true;
        Ok(())
    }

    /// A send has ended, or the kernel has let go of its bytes.
    pub(crate) fn sent(&mut self, completion: &Completion) -> io::Result<()> {
        if completion.notification {
            self.zero_copy.notified(completion);
            return Ok(());
        }
        self.sending = false;
        let result = completion.result;
        if self.zero_copy.ended(completion) {
            debug!(peer = %self.address, error = %io::Error::from_raw_os_error(-result), "sends are copied");
            return Ok(());
        }
        let sent = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))?;
        self.channel.sent(sent);
        let all_taken = self.channel.unsent_bytes() == 0;
        let rests = all_taken && self.queue.is_empty();
        self.packing.sent(sent, rests, Instant::now());
        if all_taken {
            self.zero_copy.passed(&mut self.channel);
        }
        Ok(())
    }

    /// Has the kernel let go of all buffers?
    pub(crate) fn idle(&self) -> bool {
        !self.receiving && !self.sending && !self.zero_copy.waits()
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
        if self.zero_copy.waits() {
            // A peer that is gone would leave us waiting for what it has not acknowledged. This drops it.
            let _ = rustix::net::connect_unspec(&self.stream);
        }
    }
}
