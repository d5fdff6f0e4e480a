//! A hostile wire between the twins: passes, cuts, stalls or changes bytes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Forwards connections to an address, until told otherwise.
pub(crate) struct Proxy {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    target: SocketAddr,
    /// New connections are refused, nothing is forwarded.
    partitioned: AtomicBool,
    /// Connections stay open, but nothing passes.
    stalled: AtomicBool,
    /// From the listener to the dialer, so many bytes pass and the next are changed.
    /// Negative: never.
    corrupt_after: AtomicI64,
    /// The same, but then the connection is cut.
    cut_after: AtomicI64,
    streams: Mutex<Vec<TcpStream>>,
    over: AtomicBool,
}

impl Proxy {
    pub(crate) fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let state = Arc::new(State {
            target,
            partitioned: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            corrupt_after: AtomicI64::new(-1),
            cut_after: AtomicI64::new(-1),
            streams: Mutex::new(Vec::new()),
            over: AtomicBool::new(false),
        });
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.over.load(Ordering::SeqCst) {
                    return;
                }
                if !shared.partitioned.load(Ordering::SeqCst) {
                    forward(stream, &shared);
                }
            }
        });
        Self { address, state }
    }

    /// Cuts all connections and refuses new ones, or lets them pass again.
    pub(crate) fn partition(&self, on: bool) {
        self.state.partitioned.store(on, Ordering::SeqCst);
        if on {
            self.cut();
        }
    }

    /// Keeps connections open but silent.
    pub(crate) fn stall(&self, on: bool) {
        self.state.stalled.store(on, Ordering::SeqCst);
    }

    /// Changes what comes after the next `bytes` bytes from the listener.
    pub(crate) fn corrupt_after(&self, bytes: i64) {
        self.state.corrupt_after.store(bytes, Ordering::SeqCst);
    }

    /// Cuts the connection after the next `bytes` bytes from the listener.
    pub(crate) fn cut_after(&self, bytes: i64) {
        self.state.cut_after.store(bytes, Ordering::SeqCst);
    }

    pub(crate) fn cut(&self) {
        for stream in self.state.streams.lock().expect("unpoisoned").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the accepting thread, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

fn forward(dialer: TcpStream, state: &Arc<State>) {
    let Ok(listener) = TcpStream::connect(state.target) else {
        return;
    };
    let twin = |stream: &TcpStream| stream.try_clone().expect("a descriptor to spare");
    state
        .streams
        .lock()
        .expect("unpoisoned")
        .extend([twin(&dialer), twin(&listener)]);
    for (from, to, watched) in [
        (twin(&dialer), twin(&listener), false),
        (listener, dialer, true),
    ] {
        let state = state.clone();
        thread::spawn(move || copy(from, to, watched, &state));
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, watched: bool, state: &State) {
    let mut buffer = [0; 16 * 1024];
    loop {
        let len = match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(len) => len,
        };
        while state.stalled.load(Ordering::SeqCst) && !state.over.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        let mut pass = len;
        if watched {
            if let Some(at) = due(&state.corrupt_after, len) {
                // Two, since nobody looks at one of the bytes before a record of TLS.
                buffer[at] ^= 0x40;
                buffer[if at + 1 < len {
                    at + 1
                } else {
                    at.saturating_sub(1)
                }] ^= 0x80;
            }
            if let Some(at) = due(&state.cut_after, len) {
                pass = at;
            }
        }
        if to.write_all(&buffer[..pass]).is_err() || pass < len {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Counts down; gives the place within these bytes where the count ends.
fn due(counter: &AtomicI64, len: usize) -> Option<usize> {
    let before = counter.load(Ordering::SeqCst);
    if before < 0 {
        return None;
    }
    let after = before - len as i64;
    counter.store(after.max(-1), Ordering::SeqCst);
    (after < 0).then_some(before as usize)
}
