//! One connection's records: frames are sealed into a buffer for the socket, and what the socket
//! gave is opened into a reader of frames.

use std::sync::Arc;

use rustls::Error;
use rustls::client::{ClientConfig, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConfig, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus, WriteTraffic};

use super::TlsError;
use crate::connection::{Queue, SEND_BYTES};
use crate::give_back;
use crate::ring::{BUFFER_BYTES, Buffer};
use crate::wire::{FrameReader, MAGIC, MAX_FRAME};

/// Room for what was received. What is opened is never longer than what was sealed, so that a
/// reader with room for a frame takes all of it.
const INCOMING: usize = 256 * 1024;

/// Room for what the engine says by itself in one go: a record, or a flight of the handshake.
const OWN_WORDS: usize = 64 * 1024;

const _: () = assert!(INCOMING < MAX_FRAME);
// One frame more than is begun, with what records add to it, and the few bytes that the engine has to say by itself.
const _: () = assert!(SEND_BYTES + MAX_FRAME + 16 * 1024 <= BUFFER_BYTES);

/// The state of TLS on one connection.
pub(crate) struct Session {
    engine: Engine,
    /// Bytes received and not opened yet: `opened` to `received`.
    incoming: Box<[u8]>,
    opened: usize,
    received: usize,
    /// Records of the engine's own that go before everything else.
    queued: Vec<u8>,
    /// Records on their way: `sent` to `sealed`. Others may look at it until it was sent.
    outgoing: Buffer,
    sent: usize,
    sealed: usize,
    /// The peer has proved who it is, and frames may be sealed.
    ready: bool,
    /// The peer has said something that TLS knows.
    heard: bool,
    closing: Closing,
    failure: Option<TlsError>,
}

enum Engine {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    Asked,
    Said,
}

/// What a step of the engine has come to.
enum Step {
    /// There may be more to do.
    More,
    /// Bytes from the peer are needed.
    Blocked,
    /// Frames may be sealed.
    Ready,
}

impl Session {
    pub(super) fn client(
        config: Arc<ClientConfig>,
        peer: ServerName<'static>,
    ) -> Result<Self, TlsError> {
        let engine = UnbufferedClientConnection::new(config, peer)?;
        let mut session = Self::new(Engine::Client(engine));
        // The first word is the dialing side's.
        session.run(&mut FrameReader::empty())?;
        Ok(session)
    }

    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        let engine = UnbufferedServerConnection::new(config)?;
        Ok(Self::new(Engine::Server(engine)))
    }

    fn new(engine: Engine) -> Self {
        Self {
            engine,
            incoming: vec![0; INCOMING].into_boxed_slice(),
            opened: 0,
            received: 0,
            queued: Vec::new(),
            outgoing: Buffer::unregistered(),
            sent: 0,
            sealed: 0,
            ready: false,
            heard: false,
            closing: Closing::No,
            failure: None,
        }
    }

    /// Room for what is received next; never empty, since no record is as long as this.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.incoming.copy_within(self.opened..self.received, 0);
        (self.opened, self.received) = (0, self.received - self.opened);
        &mut self.incoming[self.received..]
    }

    /// `len` bytes were put into the room: opens the whole records among them. What can't be opened is left, with
    /// all that follows, and [`Self::failure`] tells why.
    pub(crate) fn received(&mut self, len: usize, reader: &mut FrameReader) {
        if self.failure.is_some() {
            return;
        }
        self.received = (self.received + len).min(self.incoming.len());
        let words = self.incoming[self.opened..self.received].iter();
        let is_frame = words.zip(&MAGIC).all(|(byte, magic)| byte == magic);
        let Err(error) = self.run(reader) else {
            return;
        };
        self.failure = Some(match error {
            Error::InvalidMessage(_) if self.heard => error.into(),
            Error::InvalidMessage(_) if is_frame => TlsError::Plaintext,
            Error::InvalidMessage(_) => TlsError::NotTls,
            error => error.into(),
        });
        // The engine's own words on the matter, which the peer may want to read.
        while self.engine.wants_write() && self.step(reader, None).is_ok() {}
    }

    /// Gives back the memory of what was opened and of what was sent, where the kernel does not use it.
    pub(crate) fn give_back_memory(&mut self, incoming: bool, outgoing: bool) {
        if incoming && self.opened == self.received {
            give_back::pages_of(&mut self.incoming);
        }
        // Memory that the ring knows stays where it is.
        if outgoing && self.unsent().is_empty() && self.outgoing.index().is_none() {
            give_back::pages_of(&mut self.outgoing);
        }
    }

    /// Why this connection can't go on.
    pub(crate) fn failure(&self) -> Option<&TlsError> {
        self.failure.as_ref()
    }

    /// The peer has proved who it is.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Would the connection be cut within a record?
    pub(crate) fn torn(&self) -> bool {
        self.opened < self.received
    }

    /// What is still to be sent of what was sealed.
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.outgoing[self.sent..self.sealed]
    }

    /// The socket took so many bytes.
    pub(crate) fn sent(&mut self, len: usize) {
        self.sent = (self.sent + len).min(self.sealed);
    }

    /// Has all been sent that the engine had to say?
    pub(crate) fn is_flushed(&self) -> bool {
        self.unsent().is_empty() && self.queued.is_empty()
    }

    /// Seals frames, once everything sealed before was sent. Before the peer has proved who it is, none.
    ///
    /// # Errors
    /// The engine can't go on; the connection must be cut.
    pub(crate) fn seal(&mut self, frames: &mut Queue) -> Result<(), TlsError> {
        (self.sent, self.sealed) = (0, 0);
        self.put_queued();
        let nothing = frames.is_empty() && self.closing != Closing::Asked;
        if nothing || !self.ready || self.failure.is_some() {
            return Ok(());
        }
        // What is queued is on the wire before anything that is sealed after it.
        while self.queued.is_empty()
            && let Step::More = self.step(&mut FrameReader::empty(), Some(frames))?
        {
            self.put_queued();
        }
        Ok(())
    }

    /// The buffer in which what is still to be sent lies.
    pub(crate) fn buffer(&self) -> &Buffer {
        &self.outgoing
    }

    /// Goes on with another buffer, once everything sealed was sent: the kernel still has this one.
    pub(crate) fn exchange(&mut self, buffer: Buffer) -> Buffer {
        (self.sent, self.sealed) = (0, 0);
        std::mem::replace(&mut self.outgoing, buffer)
    }

    /// Says to the peer that nothing more will come. False when it was said, or need not be.
    pub(crate) fn close(&mut self) -> bool {
        let now = self.ready && self.failure.is_none() && self.closing == Closing::No;
        if now {
            self.closing = Closing::Asked;
        }
        now
    }

    fn put_queued(&mut self) {
        let room = &mut self.outgoing[self.sealed..];
        let len = self.queued.len().min(room.len());
        room[..len].copy_from_slice(&self.queued[..len]);
        self.queued.drain(..len);
        self.sealed += len;
    }

    /// Runs the engine until it needs bytes from the peer or frames to seal.
    fn run(&mut self, reader: &mut FrameReader) -> Result<(), Error> {
        loop {
            match self.step(reader, None)? {
                Step::More => {}
                Step::Blocked => return Ok(()),
                Step::Ready => {
                    self.ready = true;
                    return Ok(());
                }
            }
        }
    }

    fn step(
        &mut self,
        reader: &mut FrameReader,
        frames: Option<&mut Queue>,
    ) -> Result<Step, Error> {
        let mut work = Work {
            reader,
            frames,
            queued: &mut self.queued,
            outgoing: &mut self.outgoing,
            sealed: &mut self.sealed,
            closing: &mut self.closing,
        };
        let incoming = &mut self.incoming[self.opened..self.received];
        let (discard, step) = match &mut self.engine {
            Engine::Client(client) => work.take(client.process_tls_records(incoming)),
            Engine::Server(server) => work.take(server.process_tls_records(incoming)),
        };
        self.opened = (self.opened + discard).min(self.received);
        self.heard |= discard > 0 && step.is_ok();
        step
    }
}

/// What the engine may read from and write to in a step.
struct Work<'a> {
    reader: &'a mut FrameReader,
    frames: Option<&'a mut Queue>,
    queued: &'a mut Vec<u8>,
    outgoing: &'a mut [u8],
    sealed: &'a mut usize,
    closing: &'a mut Closing,
}

impl Work<'_> {
    /// Does what the engine asks for. Gives the number of bytes that it is through with.
    fn take<Data>(
        &mut self,
        status: UnbufferedStatus<'_, '_, Data>,
    ) -> (usize, Result<Step, Error>) {
        let mut discard = status.discard;
        let step = status.state.and_then(|state| match state {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    self.reader.put(record.payload).map_err(engine_fault)?;
                }
                Ok(Step::More)
            }
            ConnectionState::EncodeTlsData(mut data) => {
                let before = self.queued.len();
                self.queued.resize(before + OWN_WORDS, 0);
                let len = data.encode(&mut self.queued[before..]);
                let len = len.map_err(engine_fault)?;
                self.queued.truncate(before + len);
                Ok(Step::More)
            }
            // What was queued is sent before anything that is sealed from here on.
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                Ok(Step::More)
            }
            ConnectionState::WriteTraffic(mut traffic) => {
                self.seal(&mut traffic)?;
                Ok(Step::Ready)
            }
            // After its close_notify a peer still reads, and the connection's end follows.
            ConnectionState::PeerClosed => Ok(Step::More),
            ConnectionState::BlockedHandshake | ConnectionState::Closed => Ok(Step::Blocked),
            other => Err(engine_fault(format!("unexpected state {other:?}"))),
        });
        (discard, step)
    }

    fn seal<Data>(&mut self, traffic: &mut WriteTraffic<'_, Data>) -> Result<(), Error> {
        let Some(frames) = &mut self.frames else {
            return Ok(());
        };
        while *self.sealed < SEND_BYTES {
            let Some(frame) = frames.pop() else {
                break;
            };
            for part in frame.parts() {
                let room = &mut self.outgoing[*self.sealed..];
                *self.sealed += traffic.encrypt(part, room).map_err(engine_fault)?;
            }
        }
        if *self.closing == Closing::Asked && frames.is_empty() {
            let room = &mut self.outgoing[*self.sealed..];
            *self.sealed += traffic.queue_close_notify(room).map_err(engine_fault)?;
            *self.closing = Closing::Said;
        }
        Ok(())
    }
}

fn engine_fault(fault: impl ToString) -> Error {
    Error::General(fault.to_string())
}

impl Engine {
    fn wants_write(&self) -> bool {
        match self {
            Self::Client(client) => client.wants_write(),
            Self::Server(server) => server.wants_write(),
        }
    }
}
