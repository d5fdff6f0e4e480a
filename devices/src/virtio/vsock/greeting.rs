//! Programs that have connected and not yet said to which port of the guest they want.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Longest greeting, with its newline.
const MAX_GREETING_BYTES: usize = 32;
/// Most programs that have not said it. One more, and the first of them must go.
pub(super) const MAX_GREETINGS: usize = 32;

/// What a program has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Greeting {
    /// Not all of it yet.
    Incomplete,
    /// A connection to this port of the guest.
    Connect(u32),
    /// Something else, or nothing before its end.
    Wrong,
}

pub(super) struct Greetings {
    sockets: VecDeque<(u32, OwnedFd)>,
    first_id: u32,
    next_id: u32,
}

impl Greetings {
    /// Names programs by numbers from `first_id` on.
    pub(super) fn new(first_id: u32) -> Self {
        Self {
            sockets: VecDeque::new(),
            first_id,
            next_id: first_id,
        }
    }

    pub(super) fn add(&mut self, socket: OwnedFd) -> (u32, &OwnedFd) {
        if self.sockets.len() >= MAX_GREETINGS {
            self.sockets.pop_front();
        }
        let id = self.next_id;
        self.next_id = id.checked_add(1).unwrap_or(self.first_id);
        self.sockets.push_back((id, socket));
        (id, &self.sockets[self.sockets.len() - 1].1)
    }

    pub(super) fn take(&mut self, id: u32) -> Option<OwnedFd> {
        let at = self.sockets.iter().position(|(one, _)| *one == id)?;
        self.sockets.remove(at).map(|(_, socket)| socket)
    }

    pub(super) fn clear(&mut self) {
        self.sockets.clear();
    }

    /// Reads a program's greeting, and not a byte of what follows it.
    pub(super) fn read(&self, id: u32) -> Greeting {
        let Some((_, socket)) = self.sockets.iter().find(|(one, _)| *one == id) else {
            return Greeting::Incomplete;
        };
        let mut bytes = [0; MAX_GREETING_BYTES];
        let seen = loop {
            match recv(socket, &mut bytes[..], RecvFlags::PEEK) {
                Ok((0, _)) => return Greeting::Wrong,
                Ok((count, _)) => break &bytes[..count],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Greeting::Incomplete,
                Err(_) => return Greeting::Wrong,
            }
        };
        let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
            return match seen.len() {
                MAX_GREETING_BYTES => Greeting::Wrong,
                _ => Greeting::Incomplete,
            };
        };
        let greeting = parse(&seen[..end]);
        let mut line = [0; MAX_GREETING_BYTES];
        match recv(socket, &mut line[..=end], RecvFlags::empty()) {
            Ok((count, _)) if count == end + 1 => greeting,
            _ => Greeting::Wrong,
        }
    }
}

fn parse(line: &[u8]) -> Greeting {
    let port = line
        .strip_prefix(b"CONNECT ")
        .filter(|digits| digits.iter().all(u8::is_ascii_digit))
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse().ok());
    port.map_or(Greeting::Wrong, Greeting::Connect)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn only_one_line_is_understood() {
        assert_eq!(parse(b"CONNECT 5000"), Greeting::Connect(5000));
        assert_eq!(parse(b"CONNECT 4294967295"), Greeting::Connect(u32::MAX));
        let wrong: [&[u8]; 8] = [
            b"",
            b"CONNECT",
            b"CONNECT ",
            b"CONNECT +1",
            b"CONNECT -1",
            b"CONNECT 4294967296",
            b"CONNECT 1 ",
            b"connect 1",
        ];
        for line in wrong {
            assert_eq!(parse(line), Greeting::Wrong, "{line:?}");
        }
    }

    #[test]
    fn what_follows_a_greeting_is_left_alone() {
        let mut greetings = Greetings::new(7);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (id, _) = greetings.add(ours.into());
        assert_eq!(greetings.read(id), Greeting::Incomplete);
        theirs.write_all(b"CONN").unwrap();
        assert_eq!(greetings.read(id), Greeting::Incomplete);
        theirs.write_all(b"ECT 12\nhello").unwrap();
        assert_eq!(greetings.read(id), Greeting::Connect(12));
        let mut rest = [0; 10];
        let mut socket = UnixStream::from(greetings.take(id).unwrap());
        assert_eq!(socket.read(&mut rest).unwrap(), 5);
        assert_eq!(&rest[..5], b"hello");
        assert!(greetings.take(id).is_none());
    }

    #[test]
    fn a_line_without_end_is_wrong() {
        let mut greetings = Greetings::new(0);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (id, _) = greetings.add(ours.into());
        theirs.write_all(&[b'1'; MAX_GREETING_BYTES]).unwrap();
        assert_eq!(greetings.read(id), Greeting::Wrong);
    }
}
