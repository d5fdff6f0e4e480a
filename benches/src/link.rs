//! What the replication link carries over the loopback, in plaintext and with TLS.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use evertwin::lab::pair::{KEYS, make_keys};
use evertwin::lab::topology::Node;
use evertwin_replicator::throughput::carry;
use evertwin_replicator::tls::{Keys, Security};

use crate::report::{Row, Samples};

const BYTES: u64 = 1 << 30;
const RUNS: usize = 7;
/// Parts of a raw socket's speed that are to be left.
const PLAIN_SPEED: f64 = 0.8;
const TLS_SPEED: f64 = 0.5;
/// As much as the link gives to the kernel, and takes from it, at once.
const CHUNK: usize = 512 << 10;

/// Measures a link in plaintext.
#[must_use]
pub fn plain() -> Row {
    let name = "1 GiB over the link, in plaintext";
    row(name, Security::Plaintext, Security::Plaintext, PLAIN_SPEED)
}

/// Measures a link with TLS.
#[must_use]
pub fn tls() -> Row {
    let (dials, accepts) = secured();
    row("1 GiB over the link, with TLS", dials, accepts, TLS_SPEED)
}

/// Bytes per second of a link with TLS on which nothing else is done.
#[must_use]
pub fn tls_speed() -> f64 {
    let (dials, accepts) = secured();
    let carried = carry(BYTES, &dials, &accepts);
    let (time, bytes) = carried.unwrap_or_else(|error| panic!("link: {error}"));
    bytes as f64 / time.as_secs_f64()
}

/// What the twin that dials and the one that accepts need for TLS.
fn secured() -> (Security, Security) {
    let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("keys: {error}"));
    make_keys(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    let [a, b] = [Node::A, Node::B].map(|node| {
        let place = directory.path().join(KEYS).join(node.name());
        let loaded = Keys::load(&place, node.id(), node.peer().id());
        Security::Tls(loaded.unwrap_or_else(|error| panic!("{error}")).0)
    });
    (b, a)
}

fn row(name: &str, dials: Security, accepts: Security, speed: f64) -> Row {
    let (mut link, mut socket) = (Samples::default(), Samples::default());
    for _ in 0..RUNS {
        let carried = carry(BYTES, &dials, &accepts);
        let (time, bytes) = carried.unwrap_or_else(|error| panic!("{name}: {error}"));
        link.add(time.mul_f64(BYTES as f64 / bytes as f64));
        socket.add(loopback().unwrap_or_else(|error| panic!("loopback: {error}")));
    }
    let rate = |samples: &Samples| BYTES as f64 / samples.p50() / 1e3;
    let detail = format!(
        "{:.2} GB/s, {:.0} % of the {:.2} GB/s of a raw socket",
        rate(&link),
        100.0 * rate(&link) / rate(&socket),
        rate(&socket)
    );
    Row::new(name, &link)
        .floor("the same bytes over a raw loopback socket", &socket)
        .speed_at_least(speed)
        .detail(detail)
}

fn loopback() -> std::io::Result<Duration> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    raw(BYTES, stream, listener.accept()?.0)
}

/// The time that so many bytes take over a socket, from the first read on.
///
/// # Errors
/// The sockets'.
pub fn raw(
    bytes: u64,
    mut stream: TcpStream,
    mut accepted: TcpStream,
) -> std::io::Result<Duration> {
    let sender = thread::spawn(move || {
        let chunk = vec![1; CHUNK];
        for _ in 0..bytes / CHUNK as u64 {
            stream.write_all(&chunk)?;
        }
        std::io::Result::Ok(())
    });
    let mut buffer = vec![0; CHUNK];
    accepted.read_exact(&mut buffer[..1])?;
    let begun = Instant::now();
    while accepted.read(&mut buffer)? > 0 {}
    let time = begun.elapsed();
    sender
        .join()
        .map_err(|_| std::io::Error::other("the sender panicked"))??;
    Ok(time)
}
