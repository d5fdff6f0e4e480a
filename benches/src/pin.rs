//! Which processors the processes of a measurement may use.
//!
//! The host's processors are divided in two: the guest's side has the monitor that runs the guest, with all its
//! threads; the other side has the standby and the clients. So an arm without a standby has no more room for its
//! guest than one with it.

use std::fs;
use std::sync::OnceLock;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Half of the processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Of the monitor that runs the guest.
    Guest,
    /// Of the standby and the clients.
    Other,
}

/// Keeps all threads of a process, and those that they start, on one side.
///
/// # Panics
/// If the process is gone.
pub fn process(id: u32, side: Side) {
    let set = processors(side);
    let tasks = format!("/proc/{id}/task");
    // Twice: a thread that was just started by one that was not kept there yet is seen the second time.
    for _ in 0..2 {
        let threads = fs::read_dir(&tasks).unwrap_or_else(|error| panic!("{tasks}: {error}"));
        for thread in threads.flatten() {
            let name = thread.file_name();
            let id = name.to_str().and_then(|name| name.parse().ok());
            // One that has ended meanwhile does not matter.
            if let Some(id) = id.and_then(Pid::from_raw) {
                let _ = sched_setaffinity(Some(id), &set);
            }
        }
    }
}

/// Keeps this thread, and the processes and threads that it starts, on one side until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Pinned(CpuSet);

impl Pinned {
    /// Begins.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn to(side: Side) -> Self {
        let before = allowed();
        sched_setaffinity(None, &processors(side)).unwrap_or_else(|error| panic!("{error}"));
        Self(before)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// The sides in words.
#[must_use]
pub fn describe() -> String {
    let list = |side| {
        let set = processors(side);
        let numbers = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
        let numbers: Vec<_> = numbers.map(|cpu| cpu.to_string()).collect();
        numbers.join(",")
    };
    format!(
        "sched_setaffinity of all threads: the monitor that runs the guest on processor {}, the standby and the clients on {}; \
         rows of disks, resyncs, boot and memory are not pinned",
        list(Side::Guest),
        list(Side::Other)
    )
}

fn allowed() -> CpuSet {
    sched_getaffinity(None).unwrap_or_else(|error| panic!("{error}"))
}

fn processors(side: Side) -> CpuSet {
    // Before anything was pinned: a thread that is on one side asks for the other one later.
    static ALL: OnceLock<CpuSet> = OnceLock::new();
    divide(ALL.get_or_init(allowed), side)
}

/// The first half, or the rest; one processor is both.
fn divide(all: &CpuSet, side: Side) -> CpuSet {
    let numbers: Vec<_> = (0..CpuSet::MAX_CPU)
        .filter(|cpu| all.is_set(*cpu))
        .collect();
    let half = numbers.len() / 2;
    let numbers = match side {
        _ if half == 0 => &numbers[..],
        Side::Guest => &numbers[..half],
        Side::Other => &numbers[half..],
    };
    let mut set = CpuSet::new();
    numbers.iter().for_each(|cpu| set.set(*cpu));
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_have_processors_and_share_one_only_if_there_is_one() {
        for count in 1..5 {
            let mut all = CpuSet::new();
            (0..count).for_each(|cpu| all.set(cpu));
            let [guest, other] = [Side::Guest, Side::Other].map(|side| divide(&all, side));
            assert!(guest.count() > 0 && other.count() > 0);
            let shared = (0..count).any(|cpu| guest.is_set(cpu) && other.is_set(cpu));
            assert_eq!(shared, count == 1, "{count}");
        }
    }
}
