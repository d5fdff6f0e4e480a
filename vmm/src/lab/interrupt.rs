//! Ctrl-C: a command with a lab kills its processes, removes its directory and ends.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle as SignalsHandle, Signals};

use super::LabError;
use super::process::Handle;

/// Tidies up on SIGINT, SIGTERM and SIGHUP for as long as it exists.
#[derive(Debug)]
pub(crate) struct Cleaner {
    running: Arc<Mutex<Vec<Handle>>>,
    signals: SignalsHandle,
}

impl Cleaner {
    /// Starts to listen for signals. `command` is named where it ends so.
    pub(crate) fn install(command: &'static str, directory: &Path) -> Result<Self, LabError> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
            .map_err(LabError::io("listening for signals"))?;
        let running = Arc::new(Mutex::new(Vec::<Handle>::new()));
        let cleaner = Self {
            running: Arc::clone(&running),
            signals: signals.handle(),
        };
        let directory = directory.to_owned();
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                end(command, &running, &directory, signal);
            }
        });
        Ok(cleaner)
    }

    /// Adds a process that must not outlive the command.
    pub(crate) fn watch(&self, process: Handle) {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(process);
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        self.signals.close();
    }
}

fn end(command: &str, running: &Mutex<Vec<Handle>>, directory: &PathBuf, signal: i32) -> ! {
    // The lock is kept, so that no process can be added behind our back.
    let running = running.lock().unwrap_or_else(PoisonError::into_inner);
    running
        .iter()
        .for_each(|process| process.signal(Signal::KILL));
    for process in running.iter() {
        let _ = process.wait(Duration::from_secs(5));
    }
    let _ = std::fs::remove_dir_all(directory);
    eprintln!("{command}: interrupted");
    std::process::exit(128 + signal)
}
