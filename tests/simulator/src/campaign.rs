//! Many schedules on several threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use evertwin_protocol::Bug;

use crate::check::Violation;
use crate::run::run;
use crate::schedule::Schedule;
use crate::world::Tally;

/// Seeds taken at once by a thread.
const SHARE: u64 = 16;

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(5);

/// When a campaign ends.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After this many schedules.
    Schedules(u64),
    /// At this moment.
    Until(Instant),
}

/// A run over many seeds.
#[derive(Clone, Copy, Debug)]
pub struct Campaign {
    /// The first seed; the others follow.
    pub first: u64,
    /// When it ends.
    pub limit: Limit,
    /// Violations after which it ends.
    pub failures: usize,
    /// Threads.
    pub jobs: usize,
    /// A deliberate fault in the core.
    pub bug: Option<Bug>,
}

/// A seed that breaks an invariant.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What it breaks.
    pub violation: Violation,
}

/// What a campaign has found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Schedules run.
    pub schedules: u64,
    /// What happened in them.
    pub tally: Tally,
    /// Those that broke an invariant.
    pub failures: Vec<Failure>,
    /// How long it took.
    pub took: Duration,
}

/// How far a campaign has come.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Schedules run.
    pub schedules: u64,
    /// Violations found.
    pub failures: Vec<Failure>,
    /// Time since the beginning.
    pub took: Duration,
}

impl Campaign {
    /// Runs to its limit, and tells of its progress now and then.
    pub fn run(&self, mut progress: impl FnMut(Progress)) -> Found {
        let began = Instant::now();
        let next = AtomicU64::new(0);
        let done = AtomicBool::new(false);
        let found = Mutex::new(Found::default());
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.jobs.max(1))
                .map(|_| scope.spawn(|| self.work(&next, &done, &found)))
                .collect();
            let mut told = began;
            while !workers.iter().all(|worker| worker.is_finished()) {
                thread::sleep(Duration::from_millis(2));
                if told.elapsed() >= PROGRESS {
                    told = Instant::now();
                    let found = lock(&found);
                    progress(Progress {
                        schedules: found.schedules,
                        failures: found.failures.clone(),
                        took: began.elapsed(),
                    });
                }
            }
        });
        let mut found = std::mem::take(&mut *lock(&found));
        found.took = began.elapsed();
        found
    }

    fn work(&self, next: &AtomicU64, done: &AtomicBool, found: &Mutex<Found>) {
        while !done.load(Ordering::Relaxed) {
            let from = next.fetch_add(SHARE, Ordering::Relaxed);
            let to = match self.limit {
                Limit::Schedules(limit) => limit.min(from + SHARE),
                Limit::Until(end) if Instant::now() >= end => return,
                Limit::Until(_) => from + SHARE,
            };
            if from >= to {
                return;
            }
            let mut share = Found::default();
            for index in from..to {
                let seed = self.first.wrapping_add(index);
                let outcome = run(&Schedule::generate(seed), self.bug);
                share.schedules += 1;
                share.tally.add(&outcome.tally);
                if let Some(violation) = outcome.violation {
                    share.failures.push(Failure { seed, violation });
                    break;
                }
            }
            let mut found = lock(found);
            found.schedules += share.schedules;
            found.tally.add(&share.tally);
            found.failures.append(&mut share.failures);
            if found.failures.len() >= self.failures {
                done.store(true, Ordering::Relaxed);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A worker that panicked leaves whole sums behind.
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
