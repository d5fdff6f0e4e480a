//! The heap: all RAM that nothing else uses.

use core::sync::atomic::{AtomicBool, Ordering};

use talc::TalcLock;
use talc::lock_api::{GuardNoSend, RawMutex};
use talc::source::Manual;

/// One vCPU, and interrupt handlers that don't allocate: there is nobody to wait for.
struct NoContention(AtomicBool);

// SAFETY: `try_lock` gives the lock to one holder at a time; `lock` either gets it or
// never returns.
unsafe impl RawMutex for NoContention {
    #[allow(
        clippy::declare_interior_mutable_const,
        reason = "the trait asks for it"
    )]
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        assert!(self.try_lock(), "the heap was entered twice");
    }

    fn try_lock(&self) -> bool {
        !self.0.swap(true, Ordering::Acquire)
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

#[global_allocator]
static HEAP: TalcLock<NoContention, Manual> = TalcLock::new(Manual);

/// Gives a range of RAM to the heap.
///
/// # Safety
/// `start..end` must be mapped RAM that nothing else uses, for ever.
pub(crate) unsafe fn add(start: usize, end: usize) {
    // SAFETY: the caller's promise is what `claim` asks for. A range that is too small
    // is refused, which leaves it unused.
    let _ = unsafe { HEAP.lock().claim(start as *mut u8, end - start) };
}

/// Bytes that are allocated now.
pub(crate) fn used() -> usize {
    HEAP.lock().counters().allocated_bytes
}

/// Bytes that the heap was given.
pub(crate) fn total() -> usize {
    HEAP.lock().counters().claimed_bytes
}
