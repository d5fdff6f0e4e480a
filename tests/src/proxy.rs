//! A bad network: a TCP proxy that damages what passes through it.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use evertwin::lab::LabError;
use evertwin::lab::namespace::NetNamespace;

/// What happens to the bytes that flow from the dialled side to the dialler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A bit flips in each of two bytes, since nobody looks at one of the bytes before a record of TLS.
    Flip,
    /// The stream ends in the middle of a frame.
    Cut,
    /// Nothing passes any more, but the connection stays open.
    Stall,
}

/// A proxy between a dialler and its target. It damages one byte once and is honest afterwards.
#[derive(Debug)]
pub struct Proxy {
    /// Bytes that may still pass before the damage; `u64::MAX`: none is planned.
    countdown: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens on `listen` and connects on to `target`, both in `host`.
    ///
    /// # Errors
    /// [`LabError::Io`] if the address can't be listened on.
    pub fn start(
        host: &NetNamespace,
        listen: SocketAddr,
        target: SocketAddr,
        damage: Damage,
    ) -> Result<Self, LabError> {
        let listener = host.enter(|| TcpListener::bind(listen))?;
        let listener = listener.map_err(|source| LabError::Io {
            what: format!("listening on {listen}"),
            source,
        })?;
        let countdown = Arc::new(AtomicU64::new(u64::MAX));
        let plan = Arc::clone(&countdown);
        let host = host.clone();
        // The thread ends with the test's process; it holds nothing but sockets.
        thread::spawn(move || {
            for dialler in listener.incoming().map_while(Result::ok) {
                let Ok(Ok(dialled)) = host.enter(|| TcpStream::connect(target)) else {
                    continue;
                };
                let Ok(copies) = pair_of_copies(&dialler, &dialled) else {
                    continue;
                };
                thread::spawn(move || pass(copies.0, copies.1, Damage::Cut, |_| true));
                let plan = Arc::clone(&plan);
                thread::spawn(move || {
                    pass(dialled, dialler, damage, |bytes| {
                        inflict(damage, &plan, bytes)
                    })
                });
            }
        });
        Ok(Self { countdown })
    }

    /// Plans the damage for after `bytes` more bytes.
    pub fn damage_after(&self, bytes: u64) {
        self.countdown.store(bytes, Ordering::SeqCst);
    }

    /// Whether the planned damage was done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.countdown.load(Ordering::SeqCst) == u64::MAX
    }
}

fn pair_of_copies(one: &TcpStream, other: &TcpStream) -> io::Result<(TcpStream, TcpStream)> {
    one.set_nodelay(true)?;
    other.set_nodelay(true)?;
    Ok((one.try_clone()?, other.try_clone()?))
}

/// Damages `bytes` if it is time; false if nothing more is to pass.
fn inflict(damage: Damage, countdown: &AtomicU64, bytes: &mut Vec<u8>) -> bool {
    let left = countdown.load(Ordering::SeqCst);
    if left == u64::MAX {
        return true;
    }
    let length = bytes.len() as u64;
    if left >= length {
        countdown.store(left - length, Ordering::SeqCst);
        return true;
    }
    countdown.store(u64::MAX, Ordering::SeqCst);
    let place = usize::try_from(left).unwrap_or(0);
    match damage {
        Damage::Flip => {
            bytes[place] ^= 0x10;
            let next = if place + 1 < bytes.len() {
                place + 1
            } else {
                place.saturating_sub(1)
            };
            bytes[next] ^= 0x20;
        }
        Damage::Cut | Damage::Stall => bytes.truncate(place),
    }
    damage == Damage::Flip
}

/// Copies bytes until either side ends or `look` says so, then closes both, or reads on in silence for a stall.
fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    damage: Damage,
    mut look: impl FnMut(&mut Vec<u8>) -> bool,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer[..count].to_vec();
        let go_on = look(&mut bytes);
        if to.write_all(&bytes).is_err() {
            break;
        }
        if !go_on {
            if damage == Damage::Stall {
                let _ = io::copy(&mut from, &mut io::sink());
            }
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
