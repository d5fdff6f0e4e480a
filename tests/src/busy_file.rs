//! A file that is slow to write to, on any file system.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Far behind what anybody else has in the file.
const AT: u64 = 1 << 30;
/// Some 10 ms of copying for the kernel.
const BYTES: usize = 32 << 20;

/// Writes large pieces to a file without a pause, far behind its contents. The kernel lets one writer at a time into a
/// file, so the writes of all others wait, longer than the pause of a guest takes. Stops when dropped.
#[derive(Debug)]
pub struct BusyFile {
    stop: Arc<AtomicBool>,
    writer: Option<JoinHandle<io::Result<()>>>,
}

impl BusyFile {
    /// Begins with a file that exists.
    ///
    /// # Errors
    /// It can't be opened, or has no room for the pieces.
    pub fn begin(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).open(path)?;
        let piece = vec![0xbf; BYTES];
        file.write_all_at(&piece, AT)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let writer = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                file.write_all_at(&piece, AT)?;
            }
            Ok(())
        });
        Ok(Self {
            stop,
            writer: Some(writer),
        })
    }

    /// Whether writing still goes on; it ends early only with an error.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.writer
            .as_ref()
            .is_some_and(|writer| !writer.is_finished())
    }
}

impl Drop for BusyFile {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}
