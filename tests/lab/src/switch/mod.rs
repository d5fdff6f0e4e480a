//! A learning Ethernet switch inside the lab's process. Each host's card is a stream of frames over a Unix socket, as
//! QEMU's `-netdev stream` speaks it: four bytes of length, big-endian, then the frame.

mod capture;
mod port;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub(crate) use capture::Capture;
use port::Port;

use crate::lab::HostName;
use crate::one_speaker::Spoken;

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// Least bytes of a frame: both addresses and the type.
const SHORTEST: usize = 14;

/// One network: a switch with a port for each host on it. Its threads end when it is dropped.
#[derive(Debug)]
pub(crate) struct Switch {
    shared: Arc<Shared>,
    ports: Vec<Port>,
}

/// What the ports' threads share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Frames from this address are remembered.
    watched: Mac,
}

#[derive(Debug, Default)]
struct State {
    /// Where frames to a host go out.
    out: HashMap<HostName, crossbeam_channel::Sender<Arc<[u8]>>>,
    /// Behind which port an address is.
    learnt: HashMap<Mac, HostName>,
    /// Pairs of hosts of which the second does not hear the first.
    cut: HashSet<(HostName, HostName)>,
    spoken: Vec<Spoken>,
    capture: Option<Capture>,
}

impl Switch {
    /// A switch whose ports wait for their hosts' cards at sockets in `directory`.
    pub(crate) fn new(
        name: &str,
        hosts: &[HostName],
        directory: &Path,
        watched: Mac,
        capture: Option<Capture>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                capture,
                ..State::default()
            }),
            watched,
        });
        let mut ports = Vec::new();
        for &host in hosts {
            let path = directory.join(format!("{name}-{host}"));
            let forwarding = Arc::clone(&shared);
            let receive = move |frame: Vec<u8>| forwarding.receive(host, frame);
            let (port, sender) = Port::open(path, receive)?;
            shared.lock().out.insert(host, sender);
            ports.push(port);
        }
        Ok(Self { shared, ports })
    }

    /// Where the sockets are, for QEMU's command line.
    pub(crate) fn socket(directory: &Path, name: &str, host: HostName) -> PathBuf {
        directory.join(format!("{name}-{host}"))
    }

    /// Lets no frame from `from` to `to` pass any more.
    pub(crate) fn cut(&self, from: HostName, to: HostName) {
        self.shared.lock().cut.insert((from, to));
    }

    /// Takes all cuts back.
    pub(crate) fn heal(&self) {
        self.shared.lock().cut.clear();
    }

    /// All frames so far that had the watched address as their source.
    pub(crate) fn spoken(&self) -> Vec<Spoken> {
        self.shared.lock().spoken.clone()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // The ports' writers end with the senders.
        self.shared.lock().out.clear();
        for port in &mut self.ports {
            port.close();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&self, from: HostName, frame: Vec<u8>) {
        if frame.len() < SHORTEST {
            return;
        }
        let mac = |at: usize| Mac::try_from(&frame[at..at + 6]).unwrap_or_default();
        let (destination, source) = (mac(0), mac(6));
        let at = Instant::now();
        let mut state = self.lock();
        if source == self.watched {
            state.spoken.push(Spoken { at, from });
        }
        if let Some(capture) = &mut state.capture {
            capture.record(from, &frame);
        }
        state.learnt.insert(source, from);
        let group = destination[0] & 1 == 1;
        let known = state.learnt.get(&destination).filter(|_| !group).copied();
        let frame: Arc<[u8]> = frame.into();
        for (&to, out) in &state.out {
            let wanted = to != from && known.is_none_or(|known| known == to);
            if wanted && !state.cut.contains(&(from, to)) {
                // A full queue loses frames, as a real switch does: a frozen host must not stop the others.
                let _ = out.try_send(Arc::clone(&frame));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use HostName::{A, B, Client};

    const GUEST: Mac = [2, 0, 0, 0, 0, 9];

    fn frame(to: Mac, from: Mac, text: &[u8]) -> Vec<u8> {
        [&to, &from, &[8, 0][..], text].concat()
    }

    struct Card(UnixStream);

    impl Card {
        fn plug(directory: &Path, host: HostName) -> Self {
            let stream = UnixStream::connect(Switch::socket(directory, "lan", host)).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_millis(300)))
                .unwrap();
            Self(stream)
        }

        fn send(&mut self, frame: &[u8]) {
            let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
            self.0.write_all(&length).unwrap();
            self.0.write_all(frame).unwrap();
        }

        fn receive(&mut self) -> Option<Vec<u8>> {
            let mut length = [0; 4];
            self.0.read_exact(&mut length).ok()?;
            let mut frame = vec![0; u32::from_be_bytes(length) as usize];
            self.0.read_exact(&mut frame).unwrap();
            Some(frame)
        }
    }

    fn network() -> (tempfile::TempDir, Switch, [Card; 3]) {
        let directory = tempfile::tempdir().unwrap();
        let switch = Switch::new("lan", &[A, B, Client], directory.path(), GUEST, None).unwrap();
        let cards = [A, B, Client].map(|host| Card::plug(directory.path(), host));
        // A frame for a card that the switch has not taken up yet would be lost.
        while !switch.ports.iter().all(Port::has_card) {
            std::thread::yield_now();
        }
        (directory, switch, cards)
    }

    #[test]
    fn frames_go_where_their_address_was_last_heard() {
        let (_directory, switch, [mut a, mut b, mut client]) = network();
        let peer = [2, 0, 0, 0, 0, 1];
        let hello = frame([0xff; 6], GUEST, b"hello");
        a.send(&hello);
        assert_eq!(b.receive(), Some(hello.clone()));
        assert_eq!(client.receive(), Some(hello.clone()));
        let answer = frame(GUEST, peer, b"answer");
        client.send(&answer);
        assert_eq!(a.receive(), Some(answer.clone()));
        assert_eq!(b.receive(), None);
        // The guest moves to b.
        b.send(&hello);
        assert_eq!(client.receive(), Some(hello));
        client.send(&answer);
        assert_eq!(b.receive(), Some(answer));
        let spoken: Vec<HostName> = switch.spoken().iter().map(|frame| frame.from).collect();
        assert_eq!(spoken, [A, B]);
    }

    #[test]
    fn each_direction_is_cut_alone_and_healed() {
        let (_directory, switch, [mut a, mut b, _client]) = network();
        let from_a = frame([0xff; 6], [2, 0, 0, 0, 0, 1], b"a");
        let from_b = frame([0xff; 6], [2, 0, 0, 0, 0, 2], b"b");
        switch.cut(A, B);
        a.send(&from_a);
        b.send(&from_b);
        assert_eq!(a.receive(), Some(from_b));
        assert_eq!(b.receive(), None);
        switch.heal();
        a.send(&from_a);
        assert_eq!(b.receive(), Some(from_a));
    }

    #[test]
    fn a_host_that_does_not_read_stops_nobody_and_can_come_back() {
        let (directory, _switch, [mut a, b, mut client]) = network();
        let big = frame([0xff; 6], [2, 0, 0, 0, 0, 1], &[0; 1400]);
        for _ in 0..5000 {
            a.send(&big);
            assert!(client.receive().is_some());
        }
        drop(b);
        let mut b = Card::plug(directory.path(), B);
        // Frames of before may be lost or late, and those of before it was taken up are lost; new ones come.
        let new = frame([0xff; 6], [2, 0, 0, 0, 0, 1], b"new");
        for _ in 0..100 {
            a.send(&new);
            while let Some(received) = b.receive() {
                if received == new {
                    return;
                }
            }
        }
        panic!("the card that came back hears nothing");
    }
}
