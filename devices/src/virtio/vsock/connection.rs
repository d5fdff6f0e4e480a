//! One connection between a program on the host and the guest (virtio 1.2, 5.10.6).

use std::collections::VecDeque;
use std::num::Wrapping;
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown as shut_down};

use super::packet::{Header, op, shutdown};

/// Most bytes of the guest kept for a host program that does not read: the credit the guest
/// has (5.10.6.3).
pub(super) const BUF_ALLOC: u32 = 64 << 10;
/// A guest that believes to have less room than this is told how much there is.
const LOW_ROOM: u32 = BUF_ALLOC / 2;

/// Room that an idle connection keeps, in bytes: enough for what most packets carry.
const KEPT_ROOM: usize = 4096;

/// The ports that name a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Keep,
    /// It has ended, and the guest is told with a reset.
    Reset,
    /// It has ended, and the guest knows, or never knew of it.
    Forget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A host program wants to reach the guest, which has not heard of it.
    Asking,
    /// The guest was asked.
    Asked,
    /// The guest has asked, and a host program was there; it has not been told.
    Answering,
    /// Bytes move.
    Open,
}

/// A packet for the guest, before ports and credit are put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) payload: usize,
}

/// One connection. Its socket is watched for edges: what is there is remembered here.
pub(super) struct Connection {
    socket: OwnedFd,
    stage: Stage,
    readable: bool,
    writable: bool,
    /// The program closed its end.
    hung_up: bool,
    /// All that the program sent has been read.
    ended: bool,
    /// The program takes nothing more.
    deaf: bool,
    /// What the guest will no longer do, and what it was told of the program.
    guest_shut: u32,
    told_shut: u32,
    /// The guest shut both directions and has forgotten the connection since. What it sent
    /// before is still due.
    guest_gone: bool,
    write_ended: bool,
    /// Bytes of the guest that the program has not taken.
    out: VecDeque<u8>,
    /// Bytes of the guest that the program took, now and as the guest was last told.
    forwarded: Wrapping<u32>,
    told_forwarded: Wrapping<u32>,
    owes_credit: bool,
    /// Bytes given to the guest, and its room for them.
    given: Wrapping<u32>,
    guest_alloc: u32,
    guest_forwarded: Wrapping<u32>,
    asked_credit: bool,
    /// In the muxer's list of those with something for the guest.
    pub(super) listed: bool,
}

impl Connection {
    fn new(socket: OwnedFd, stage: Stage) -> Self {
        Self {
            socket,
            stage,
            readable: true,
            writable: true,
            hung_up: false,
            ended: false,
            deaf: false,
            guest_shut: 0,
            told_shut: 0,
            guest_gone: false,
            write_ended: false,
            out: VecDeque::new(),
            forwarded: Wrapping(0),
            told_forwarded: Wrapping(0),
            owes_credit: false,
            given: Wrapping(0),
            guest_alloc: 0,
            guest_forwarded: Wrapping(0),
            asked_credit: false,
            listed: false,
        }
    }

    /// A host program asks for a port of the guest.
    pub(super) fn to_guest(socket: OwnedFd) -> Self {
        Self::new(socket, Stage::Asking)
    }

    /// The guest asked, with this header, for a program that is there.
    pub(super) fn from_guest(socket: OwnedFd, request: &Header) -> Self {
        let mut connection = Self::new(socket, Stage::Answering);
        connection.take_credit(request);
        connection
    }

    /// Whether the guest has not heard of it.
    pub(super) fn is_new(&self) -> bool {
        self.stage == Stage::Asking
    }

    /// Our side of the credit, for a packet to the guest; which knows it from then on.
    pub(super) fn tell_credit(&mut self, header: &mut Header) {
        header.buf_alloc = BUF_ALLOC;
        header.fwd_cnt = self.forwarded.0;
        self.told_forwarded = self.forwarded;
        self.owes_credit = false;
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_alloc = header.buf_alloc;
        self.guest_forwarded = Wrapping(header.fwd_cnt);
        self.asked_credit &= self.credit() == 0;
    }

    /// Bytes the guest has room for (5.10.6.3). The counters wrap.
    fn credit(&self) -> u32 {
        let on_their_way = (self.given - self.guest_forwarded).0;
        self.guest_alloc.saturating_sub(on_their_way)
    }

    /// Bytes the guest sent that nobody took: as many as are kept.
    pub(super) fn kept(&self) -> u32 {
        self.out.len() as u32
    }

    /// A packet of the guest for this connection.
    pub(super) fn guest_sent(&mut self, header: &Header, payload: &[u8], host_port: u32) -> Fate {
        self.take_credit(header);
        match (header.op, self.stage) {
            (op::RST, _) => {
                self.guest_gone = self.guest_shut == shutdown::BOTH && !self.out.is_empty();
                return match self.guest_gone {
                    true => Fate::Keep,
                    false => Fate::Forget,
                };
            }
            (op::RESPONSE, Stage::Asked) => {
                self.stage = Stage::Open;
                let answer = format!("OK {host_port}\n");
                // The first bytes of a socket: all of them fit, or the program is gone.
                if send(&self.socket, answer.as_bytes(), SendFlags::NOSIGNAL) != Ok(answer.len()) {
                    return Fate::Reset;
                }
            }
            (op::RW, Stage::Open | Stage::Answering) => {
                let room = BUF_ALLOC - self.kept();
                if self.guest_shut & shutdown::SEND != 0 || payload.len() > room as usize {
                    return Fate::Reset;
                }
                self.out.extend(payload);
                self.flush();
            }
            (op::SHUTDOWN, Stage::Open | Stage::Answering) => self.guest_shuts(header.flags),
            (op::CREDIT_UPDATE, Stage::Open | Stage::Answering) => {}
            (op::CREDIT_REQUEST, Stage::Open | Stage::Answering) => self.owes_credit = true,
            _ => return Fate::Reset,
        }
        self.fate()
    }

    fn guest_shuts(&mut self, flags: u32) {
        self.guest_shut |= flags & shutdown::BOTH;
        if self.guest_shut & shutdown::RECEIVE != 0 {
            // The program learns of it when it writes.
            let _ = shut_down(&self.socket, Shutdown::Read);
        }
        self.flush();
    }

    /// The socket has news.
    pub(super) fn host_event(&mut self, events: EventFlags) -> Fate {
        if events.intersects(EventFlags::HUP | EventFlags::ERR) {
            self.hung_up = true;
        }
        if events.intersects(EventFlags::IN | EventFlags::RDHUP) || self.hung_up {
            self.readable = true;
        }
        if events.contains(EventFlags::OUT) || self.hung_up {
            self.writable = true;
            self.flush();
        }
        self.fate()
    }

    /// Gives the program what it takes of the guest's bytes.
    fn flush(&mut self) {
        while self.writable && !self.deaf {
            let (front, _) = self.out.as_slices();
            if front.is_empty() {
                break;
            }
            match send(&self.socket, front, SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.out.drain(..count);
                    self.forwarded += count as u32;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => self.deaf = true,
            }
        }
        if self.deaf {
            self.forwarded += self.kept();
            self.out.clear();
        }
        if self.out.is_empty() {
            self.out.shrink_to(KEPT_ROOM);
            if self.guest_shut & shutdown::SEND != 0 && !self.write_ended {
                self.write_ended = true;
                let _ = shut_down(&self.socket, Shutdown::Write);
            }
        }
    }

    fn fate(&mut self) -> Fate {
        // Nobody will read what is left, or nobody wants to.
        if self.hung_up && (self.guest_shut & shutdown::RECEIVE != 0 || self.guest_gone) {
            self.ended = true;
        }
        let delivered = self.out.is_empty() || (self.hung_up && self.ended);
        match self.stage {
            Stage::Asking if self.hung_up => Fate::Forget,
            Stage::Asked if self.hung_up => Fate::Reset,
            _ if self.guest_gone && delivered => Fate::Forget,
            _ if self.guest_shut == shutdown::BOTH && delivered => Fate::Reset,
            _ => Fate::Keep,
        }
    }

    fn wants_read(&self) -> bool {
        self.stage == Stage::Open
            && self.readable
            && !self.ended
            && self.guest_shut & shutdown::RECEIVE == 0
    }

    fn wants_credit_told(&self) -> bool {
        let believed = (self.forwarded - self.told_forwarded).0 + self.kept();
        self.owes_credit
            || (self.forwarded != self.told_forwarded
                && BUF_ALLOC.saturating_sub(believed) < LOW_ROOM)
    }

    /// What the guest should know the program will no longer do.
    fn host_shut(&self) -> u32 {
        let send = if self.ended { shutdown::SEND } else { 0 };
        let receive = self.deaf || (self.ended && self.hung_up);
        send | if receive { shutdown::RECEIVE } else { 0 }
    }

    /// Whether there may be something for the guest.
    pub(super) fn has_message(&self) -> bool {
        match self.stage {
            _ if self.guest_gone => false,
            Stage::Asking | Stage::Answering => true,
            Stage::Asked => false,
            Stage::Open => {
                (self.wants_read() && (self.credit() > 0 || !self.asked_credit))
                    || self.host_shut() & !self.told_shut != 0
                    || self.wants_credit_told()
            }
        }
    }

    /// The next packet for the guest, with its payload in `buffer`; then what becomes of the
    /// connection.
    pub(super) fn next_message(&mut self, buffer: &mut [u8]) -> (Option<Message>, Fate) {
        let message = |op, flags, payload| Message { op, flags, payload };
        match self.stage {
            Stage::Asking => {
                self.stage = Stage::Asked;
                return (Some(message(op::REQUEST, 0, 0)), Fate::Keep);
            }
            Stage::Answering => {
                self.stage = Stage::Open;
                return (Some(message(op::RESPONSE, 0, 0)), self.fate());
            }
            Stage::Asked => return (None, Fate::Keep),
            Stage::Open => {}
        }
        if self.wants_read() && self.credit() > 0 {
            let room = buffer.len().min(self.credit() as usize);
            let count = self.read(&mut buffer[..room]);
            if count > 0 {
                self.given += count as u32;
                return (Some(message(op::RW, 0, count)), Fate::Keep);
            }
        }
        let shut = self.host_shut();
        if shut & !self.told_shut != 0 {
            self.told_shut = shut;
            let fate = match shut {
                // Neither side can say more. What the guest still sends is answered as what
                // belongs to no connection.
                shutdown::BOTH => Fate::Forget,
                _ => Fate::Keep,
            };
            return (Some(message(op::SHUTDOWN, shut, 0)), fate);
        }
        if self.wants_credit_told() {
            return (Some(message(op::CREDIT_UPDATE, 0, 0)), Fate::Keep);
        }
        if self.wants_read() && self.credit() == 0 && !self.asked_credit {
            self.asked_credit = true;
            return (Some(message(op::CREDIT_REQUEST, 0, 0)), Fate::Keep);
        }
        (None, Fate::Keep)
    }

    /// Reads what the program sent. None of it may get lost: there is room in the guest.
    fn read(&mut self, buffer: &mut [u8]) -> usize {
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((0, _)) => self.ended = true,
                Ok((count, _)) => return count,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => self.readable = false,
                Err(_) => {
                    self.ended = true;
                    self.hung_up = true;
                }
            }
            return 0;
        }
    }
}

#[cfg(test)]
mod tests;
