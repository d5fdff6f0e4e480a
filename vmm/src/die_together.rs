//! Threads that a guest can't go on without.

/// Ends the process when the thread that holds it panics. A VM that has lost one of its
/// threads stands still while its heartbeats go on; dead, it is replaced by its twin.
pub(crate) struct DieTogether;

impl Drop for DieTogether {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
