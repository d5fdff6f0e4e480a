//! Virtio devices, serial port, address bus and the output gate.
//!
//! Nothing here opens `/dev/kvm`: interrupts leave through event fds, notifications come
//! in through event fds or register writes, and guest memory is what the caller hands over.

pub mod bus;
pub mod console;
mod dirty_marks;
pub mod gate;
pub mod inbound;
pub mod legacy;
pub mod power;
pub mod serial;
pub mod virtio;

pub use dirty_marks::DirtyMarks;

/// Guest memory of one VM. Every write the devices make goes through its bitmap (I6).
pub type GuestMemory = vm_memory::GuestMemoryMmap<DirtyMarks>;

/// Locks a mutex also after another thread panicked while holding it: the panic is
/// reported where it happened, and a second one here would only hide it.
fn lock<T: ?Sized>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
