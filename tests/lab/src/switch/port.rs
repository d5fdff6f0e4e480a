//! One port of a switch: a socket that a host's card connects to, each time that the host is powered on.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender};

/// Frames that wait for a host; more are lost.
const QUEUE: usize = 1024;
/// The longest frame that is accepted: a card with segmentation offload sends up to 64 KiB.
const LONGEST: usize = 128 << 10;

/// A port. Closing it ends its threads.
#[derive(Debug)]
pub(super) struct Port {
    path: PathBuf,
    line: Arc<Line>,
    threads: Vec<JoinHandle<()>>,
}

/// The card that is plugged in now.
#[derive(Debug, Default)]
struct Line {
    card: Mutex<Option<Arc<UnixStream>>>,
    closing: AtomicBool,
}

impl Line {
    fn card(&self) -> MutexGuard<'_, Option<Arc<UnixStream>>> {
        self.card.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Port {
    /// Opens a port; `receive` is called with each frame that comes in, and what is sent goes out.
    pub(super) fn open(
        path: PathBuf,
        receive: impl Fn(Vec<u8>) + Send + 'static,
    ) -> io::Result<(Self, Sender<Arc<[u8]>>)> {
        let listener = UnixListener::bind(&path)?;
        let (sender, queue) = crossbeam_channel::bounded(QUEUE);
        let line = Arc::new(Line::default());
        let (reading, writing) = (Arc::clone(&line), Arc::clone(&line));
        let threads = vec![
            thread::spawn(move || read(&listener, &reading, receive)),
            thread::spawn(move || write(&queue, &writing)),
        ];
        let port = Self {
            path,
            line,
            threads,
        };
        Ok((port, sender))
    }

    #[cfg(test)]
    pub(super) fn has_card(&self) -> bool {
        self.line.card().is_some()
    }

    /// Ends the port. The sender must have been dropped before, since the writer waits for it.
    pub(super) fn close(&mut self) {
        self.line.closing.store(true, Ordering::SeqCst);
        if let Some(card) = self.line.card().take() {
            let _ = card.shutdown(Shutdown::Both);
        }
        // Wakes the reader up if it waits for a card.
        let _ = UnixStream::connect(&self.path);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn read(listener: &UnixListener, line: &Line, receive: impl Fn(Vec<u8>)) {
    while let Ok((stream, _)) = listener.accept() {
        let card = Arc::new(stream);
        *line.card() = Some(Arc::clone(&card));
        // After the card is in its place: closing happens before this check, or finds the card.
        if line.closing.load(Ordering::SeqCst) {
            return;
        }
        while let Ok(frame) = read_frame(&card) {
            receive(frame);
        }
        line.card().take();
    }
}

fn read_frame(mut card: &UnixStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    card.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; length];
    card.read_exact(&mut frame)?;
    Ok(frame)
}

fn write(queue: &Receiver<Arc<[u8]>>, line: &Line) {
    let mut bytes = Vec::new();
    for frame in queue {
        // Not under the lock: a frozen host takes nothing for a long time.
        let Some(card) = line.card().clone() else {
            continue;
        };
        bytes.clear();
        bytes.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&frame);
        // The host is gone: so is the frame.
        let _ = (&*card).write_all(&bytes);
    }
}
