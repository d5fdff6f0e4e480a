//! What a link carries, for the benchmarks: the driver's own connections over the loopback, without guests.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::connection::Connection;
use crate::machine::PAGE_SIZE;
use crate::ring::{Op, Ring};
use crate::tls::Security;
use crate::wire::{PAGES_PER_FRAME, sync_frame};

/// Bulk bytes that wait for a send, as in a sync.
const AHEAD: usize = 1 << 20;

/// Longer than any step takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends frames of a sync with at least `bytes` of pages from one connection to another, which verifies them. Returns
/// how long that took from the first frame's arrival on, and the bytes of the frames after it.
///
/// # Errors
/// Sockets or io_uring can't be used, or the two ends don't trust each other.
pub fn carry(bytes: u64, dials: &Security, accepts: &Security) -> io::Result<(Duration, u64)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    let (accepted, _) = listener.accept()?;
    let mut receiver = connection(accepted, accepts, false)?;
    let frames = bytes.div_ceil((PAGES_PER_FRAME * PAGE_SIZE) as u64);
    thread::scope(|scope| {
        let sending = scope.spawn(move || send(&mut connection(stream, dials, true)?, frames));
        let received = receive(&mut receiver, frames);
        // Whatever the other end waits for will not come.
        drop(receiver);
        let sent = sending.join();
        let received = received?;
        sent.map_err(|_| io::Error::other("the sender panicked"))??;
        Ok(received)
    })
}

fn connection(stream: TcpStream, security: &Security, dials: bool) -> io::Result<Connection> {
    let session = security.session(dials).map_err(io::Error::other)?;
    let address = stream.peer_addr()?;
    Connection::new(0, stream, address, session)
}

fn send(connection: &mut Connection, mut frames: u64) -> io::Result<()> {
    let mut ring = Ring::new()?;
    let pages: Vec<u64> = (0..PAGES_PER_FRAME as u64).collect();
    let contents: Vec<u8> = (0..PAGES_PER_FRAME * PAGE_SIZE)
        .map(|at| at as u8)
        .collect();
    let ended = loop {
        while frames > 0 && connection.bulk_bytes() < AHEAD {
            connection.queue_bulk(sync_frame(1, &pages, &contents));
            frames -= 1;
        }
        if frames == 0 && connection.all_sent() {
            connection.finish(&mut ring)?;
        }
        match turn(connection, &mut ring) {
            Ok(Some(0)) => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    end(connection, &mut ring);
    ended
}

fn receive(connection: &mut Connection, frames: u64) -> io::Result<(Duration, u64)> {
    let mut ring = Ring::new()?;
    let (mut left, mut bytes, mut first) = (frames, 0, None);
    let ended = loop {
        match turn(connection, &mut ring) {
            Ok(Some(0)) => break Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Ok(Some(_)) => {}
            Ok(None) => continue,
            Err(error) => break Err(error),
        }
        let mut reader = connection.take_reader();
        let taken = loop {
            match reader.next() {
                Ok(Some((_, payload))) => {
                    left = left.saturating_sub(1);
                    match first {
                        None => first = Some(Instant::now()),
                        Some(_) => bytes += payload.len() as u64,
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(io::Error::other(error)),
            }
        };
        connection.put_reader(reader);
        match (taken, left, first) {
            (Err(error), ..) => break Err(error),
            (Ok(()), 0, Some(first)) => break Ok((first.elapsed(), bytes)),
            _ => {}
        }
    };
    end(connection, &mut ring);
    ended
}

/// Sends and receives what there is. Gives the number of bytes of a receive that has ended.
fn turn(connection: &mut Connection, ring: &mut Ring) -> io::Result<Option<usize>> {
    connection.send(ring)?;
    connection.receive(ring)?;
    let mut completions = Vec::new();
    ring.wait(PATIENCE, &mut completions)?;
    let mut received = None;
    for completion in completions {
        match completion.op {
            Op::Receive => received = Some(connection.received(completion.result)?),
            Op::Send => connection.sent(&completion)?,
            _ => {}
        }
    }
    match connection.failure() {
        Some(failure) => Err(io::Error::other(failure)),
        None => Ok(received),
    }
}

/// Waits until the kernel uses none of the buffers any more.
fn end(connection: &mut Connection, ring: &mut Ring) {
    connection.cut();
    let mut completions = Vec::new();
    while !connection.idle() && ring.wait(PATIENCE, &mut completions).is_ok() {
        for completion in &completions {
            // How it ended does not matter.
            let _ = match completion.op {
                Op::Receive => connection.received(completion.result).map(drop),
                Op::Send => connection.sent(completion),
                _ => Ok(()),
            };
        }
    }
}
