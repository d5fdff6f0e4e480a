//! Slowing a guest: its vCPUs get only a part of their time.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{Error, Machine};
use crate::die_together::DieTogether;
use crate::kvm::{KvmError, Vcpu, turn_in};

/// While it lives, vCPUs are told to leave the guest again and again; each keeps account of its
/// time by itself and stays out as long as it should. Dropped, it ends at once.
#[derive(Debug)]
pub(super) struct Slowdown {
    changes: Option<Sender<u8>>,
    thread: Option<JoinHandle<()>>,
}

impl Slowdown {
    fn start(vcpus: Arc<[Vcpu]>, percent: u8) -> Result<Self, KvmError> {
        let (changes, changed) = bounded(1);
        let thread = std::thread::Builder::new()
            .name("slowdown".into())
            .spawn(move || {
                let _together = DieTogether;
                end_turns(&vcpus, percent, &changed);
            })
            .map_err(KvmError::call("clone(slowdown thread)"))?;
        Ok(Self {
            changes: Some(changes),
            thread: Some(thread),
        })
    }

    fn change(&self, percent: u8) {
        if let Some(changes) = &self.changes {
            // It only ends with its owner.
            let _ = changes.send(percent);
        }
    }
}

impl Drop for Slowdown {
    fn drop(&mut self) {
        self.changes = None;
        if let Some(thread) = self.thread.take() {
            // One that panics takes the process with it.
            let _ = thread.join();
        }
    }
}

fn end_turns(vcpus: &[Vcpu], mut percent: u8, changed: &Receiver<u8>) {
    loop {
        match changed.recv_timeout(turn_in(percent)) {
            Ok(other) => percent = other,
            Err(RecvTimeoutError::Timeout) => vcpus.iter().for_each(Vcpu::kick),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Machine {
    /// Keeps each vCPU out of the guest for this share of the time, in percent: at most 99. 0 is
    /// full speed. Pausing, ending and halting take no longer than at full speed.
    ///
    /// # Errors
    /// No thread can be had, or a vCPU's is gone.
    pub fn slow(&mut self, percent: u8) -> Result<(), Error> {
        let percent = percent.min(99);
        if percent == 0 {
            self.slowdown = None;
        } else if let Some(slowdown) = &self.slowdown {
            slowdown.change(percent);
        } else if !self.vcpus.is_empty() {
            self.slowdown = Some(Slowdown::start(Arc::clone(&self.vcpus), percent)?);
        }
        Ok(self.vcpus.iter().try_for_each(|vcpu| vcpu.slow(percent))?)
    }
}
