//! The thread on which devices handle their events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::die_together::DieTogether;

/// Something with events to handle.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// Why the loop can't be set up.
#[derive(Debug, thiserror::Error)]
#[error("can't set up the event loop: {0}")]
pub struct EventLoopError(String);

impl EventLoopError {
    fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// Runs until dropped.
#[derive(Debug)]
pub struct EventLoop {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    /// Starts the thread with these subscribers.
    ///
    /// # Errors
    /// No descriptors or no thread left on the host.
    pub fn spawn(subscribers: Vec<Subscriber>) -> Result<Self, EventLoopError> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(EventLoopError::new)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let mut manager: EventManager<Subscriber> =
            EventManager::new().map_err(|e| EventLoopError::new(format!("{e:?}")))?;
        manager.add_subscriber(Box::new(Stop {
            event: stop.try_clone().map_err(EventLoopError::new)?,
            flag: Arc::clone(&stopping),
        }));
        for subscriber in subscribers {
            manager.add_subscriber(subscriber);
        }
        let thread = std::thread::Builder::new()
            .name("devices".into())
            .spawn(move || {
                let _together = DieTogether;
                while !stopping.load(Ordering::Acquire) {
                    if let Err(error) = manager.run() {
                        tracing::error!(?error, "the device event loop failed");
                    }
                }
            })
            .map_err(EventLoopError::new)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        if self.stop.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // It does not panic: it would have taken this process with it.
            let _ = thread.join();
        }
    }
}

/// Ends the loop when its event is written.
struct Stop {
    event: EventFd,
    flag: Arc<AtomicBool>,
}

impl MutEventSubscriber for Stop {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.flag.store(true, Ordering::Release);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.event, EventSet::IN)) {
            tracing::error!(?error, "the event loop can't be stopped");
        }
    }
}
