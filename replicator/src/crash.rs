//! Points at which a test has this process die as if its host had lost power.

/// A named point. Armed (`return`), it kills the process: nothing is unwound, flushed or said.
/// Without the feature `failpoints` it is nothing.
pub fn crash_point(_name: &str) {
    fail::fail_point!(_name, |_| die());
}

/// Ends the process by SIGKILL. The caller does not come to its next instruction.
pub(crate) fn die() {
    use rustix::process::{Signal, getpid, kill_process};
    // A process may always signal itself.
    let _ = kill_process(getpid(), Signal::KILL);
    loop {
        std::thread::park();
    }
}
