//! Turning the dirty log on and off on a thread of its own.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};
use tracing::warn;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{KvmError, Vm};

/// Turns KVM's dirty log on and off.
///
/// KVM waits for every reader of its memory slots before the call returns
/// (KVM API, 4.35 `KVM_SET_USER_MEMORY_REGION`). On a busy host that takes up to a second: too
/// long for a thread that has heartbeats to send.
#[derive(Debug)]
pub(super) struct LogSwitch {
    /// None only when dropped: it ends the thread.
    wishes: Option<Sender<bool>>,
    results: Receiver<Result<(), KvmError>>,
    /// Wishes without a result.
    pending: u32,
    switched: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl LogSwitch {
    pub(super) fn new(vm: Arc<Vm>) -> Result<Self, KvmError> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(KvmError::call("eventfd"))?;
        let switched = Arc::new(event);
        let signal = switched.clone();
        let (wishes, wished) = unbounded::<bool>();
        let (result, results) = unbounded();
        let thread = thread::Builder::new()
            .name("dirty-log".to_owned())
            .spawn(move || {
                for on in &wished {
                    let switched = vm.log_dirty_pages(on);
                    if let (false, Err(error)) = (on, &switched) {
                        warn!(%error, "dirty logging could not be turned off; the guest goes on, slower");
                    }
                    if result.send(switched).is_err() {
                        return;
                    }
                    if wished.is_empty() {
                        // Can't fail: the counter is far from its end.
                        let _ = signal.write(1);
                    }
                }
            })
            .map_err(KvmError::call("a thread for the dirty log"))?;
        Ok(Self {
            wishes: Some(wishes),
            results,
            pending: 0,
            switched,
            thread: Some(thread),
        })
    }

    /// Begins to turn the log on or off, after all that was begun before.
    pub(super) fn begin(&mut self, on: bool) {
        // What was done before is no news any more.
        let _ = self.switched.read();
        let wishes = self.wishes.as_ref();
        if wishes.is_some_and(|wishes| wishes.send(on).is_ok()) {
            self.pending += 1;
        }
    }

    /// A descriptor that becomes readable when all that was begun is done.
    pub(super) fn switched(&self) -> RawFd {
        self.switched.as_raw_fd()
    }

    pub(super) fn signal(&self) -> Result<EventFd, KvmError> {
        self.switched.try_clone().map_err(KvmError::call("dup"))
    }

    /// Waits for all that was begun, and gives the result of the last.
    pub(super) fn finish(&mut self) -> Result<(), KvmError> {
        let mut last = Ok(());
        while self.pending > 0 {
            self.pending -= 1;
            let gone = |_| KvmError::call("the dirty log's thread")(std::io::ErrorKind::BrokenPipe);
            last = self.results.recv().map_err(gone)?;
        }
        last
    }
}

impl Drop for LogSwitch {
    fn drop(&mut self) {
        self.wishes = None;
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}
