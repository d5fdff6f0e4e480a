//! The console's way out: a thread writes what the gate lets pass, so that a terminal or
//! pipe that nobody reads stops neither the guest nor the release of other output.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::gate::Sink;
use crate::lock;

/// Most bytes waiting for a slow reader; more are dropped.
const BACKLOG_BYTES: usize = 1 << 20;
/// How long a dropped sink waits for its reader to take the rest.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Backlog {
    bytes: VecDeque<u8>,
    writing: bool,
    closed: bool,
    broken: bool,
    lost_bytes: u64,
}

#[derive(Default)]
struct Shared {
    backlog: Mutex<Backlog>,
    changed: Condvar,
}

/// A [`Sink`] for the console. Dropping it waits, for a bounded time, until what was
/// emitted has been written.
pub struct ConsoleSink {
    shared: Arc<Shared>,
}

impl ConsoleSink {
    /// Starts the thread that writes to `out`.
    pub fn new(out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("console".into())
            .spawn(move || write_backlog(&writer, out))?;
        Ok(Self { shared })
    }

    /// Bytes dropped because the reader was too slow or is gone.
    pub fn lost_bytes(&self) -> u64 {
        lock(&self.shared.backlog).lost_bytes
    }
}

impl Sink for ConsoleSink {
    fn emit(&mut self, bytes: &[u8]) {
        let mut backlog = lock(&self.shared.backlog);
        let room = if backlog.broken {
            0
        } else {
            BACKLOG_BYTES - backlog.bytes.len()
        };
        let taken = bytes.len().min(room);
        backlog.bytes.extend(&bytes[..taken]);
        backlog.lost_bytes += (bytes.len() - taken) as u64;
        self.shared.changed.notify_all();
    }

    fn is_stream(&self) -> bool {
        true
    }
}

impl Drop for ConsoleSink {
    fn drop(&mut self) {
        let mut backlog = lock(&self.shared.backlog);
        backlog.closed = true;
        self.shared.changed.notify_all();
        let pending = |b: &mut Backlog| !b.broken && (b.writing || !b.bytes.is_empty());
        let _ = self
            .shared
            .changed
            .wait_timeout_while(backlog, FLUSH_TIMEOUT, pending);
    }
}

fn write_backlog(shared: &Shared, mut out: impl Write) {
    let mut chunk = Vec::new();
    loop {
        {
            let mut backlog = lock(&shared.backlog);
            backlog.writing = false;
            shared.changed.notify_all();
            while backlog.bytes.is_empty() {
                if backlog.closed {
                    return;
                }
                backlog = shared
                    .changed
                    .wait(backlog)
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            chunk.clear();
            chunk.extend(backlog.bytes.drain(..));
            backlog.writing = true;
        }
        if let Err(error) = out.write_all(&chunk).and_then(|()| out.flush()) {
            tracing::warn!(%error, "console output can't be written and is dropped");
            let mut backlog = lock(&shared.backlog);
            backlog.broken = true;
            backlog.bytes.clear();
            shared.changed.notify_all();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn drop_waits_until_everything_is_written() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut sink = ConsoleSink::new(writer).unwrap();
        for _ in 0..1000 {
            sink.emit(b"hello ");
        }
        drop(sink);
        let mut text = vec![0; 6000];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(text, b"hello ".repeat(1000));
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "the thread has ended");
    }

    #[test]
    fn a_reader_that_never_reads_blocks_nobody() {
        let (reader, writer) = io::pipe().unwrap();
        let mut sink = ConsoleSink::new(writer).unwrap();
        for _ in 0..40 {
            sink.emit(&[b'x'; 1 << 16]);
        }
        assert!(sink.lost_bytes() > 0);
        drop(reader);
        drop(sink);
    }

    #[test]
    fn a_reader_that_is_gone_breaks_nothing() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut sink = ConsoleSink::new(writer).unwrap();
        sink.emit(b"lost");
        drop(sink);
    }
}
