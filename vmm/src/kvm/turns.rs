//! A slowed vCPU's turns in the guest and out of it.

use std::time::{Duration, Instant};

/// The shortest turn in the guest: it has to get somewhere.
const SHORTEST: Duration = Duration::from_millis(1);

/// One turn in and one out take so long together, unless that makes the turn in too short.
const BOTH: Duration = Duration::from_millis(20);

/// The longest turn out, however long the turn in was: a host that stood still is no reason
/// for a guest to stand still as well.
const LONGEST_OUT: Duration = Duration::from_millis(200);

/// How long a vCPU of which `percent` of the time is taken stays in the guest at a time.
pub(crate) fn turn_in(percent: u8) -> Duration {
    let left = 100 - u32::from(percent.min(100));
    (BOTH * left / 100).max(SHORTEST)
}

/// Keeps account of the turns.
#[derive(Debug)]
pub(super) struct Turns {
    /// What is taken of the time, at most 99.
    percent: u8,
    /// When the turn in the guest began.
    since: Instant,
}

impl Turns {
    /// Nothing is taken.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            percent: 0,
            since: now,
        }
    }

    /// Takes so much of the time from now on, in percent; at most 99.
    pub(super) fn slow(&mut self, percent: u8, now: Instant) {
        self.percent = percent.min(99);
        self.since = now;
    }

    /// A turn in the guest begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.since = now;
    }

    /// How long to stay out of the guest now, if its turn is over. Who was in it for too long,
    /// because nobody told it to leave, stays out in proportion.
    pub(super) fn out(&self, now: impl FnOnce() -> Instant) -> Option<Duration> {
        if self.percent == 0 {
            return None;
        }
        let was_in = now() - self.since;
        if was_in < turn_in(self.percent) {
            return None;
        }
        let percent = u32::from(self.percent);
        Some((was_in * percent / (100 - percent)).min(LONGEST_OUT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_turns_are_in_proportion() {
        let start = Instant::now();
        for (percent, was_in, out) in [
            (20, millis(16), millis(4)),
            (50, millis(10), millis(10)),
            (50, millis(30), millis(30)),
            (90, millis(2), millis(18)),
            (99, millis(1), millis(99)),
            (99, millis(60_000), LONGEST_OUT),
            (200, millis(1), millis(99)),
        ] {
            let mut turns = Turns::new(start);
            let later = start + millis(3);
            turns.slow(percent, later);
            let early = later + turn_in(percent) - Duration::from_nanos(1);
            assert_eq!(turns.out(|| early), None, "{percent} %");
            assert_eq!(turns.out(|| later + was_in), Some(out), "{percent} %");
            turns.begin(later + was_in);
            assert_eq!(turns.out(|| early + was_in), None, "its next turn");
        }
    }

    #[test]
    fn at_full_speed_no_time_is_taken_nor_looked_at() {
        let start = Instant::now();
        let mut turns = Turns::new(start);
        assert_eq!(turns.out(|| unreachable!("no clock")), None);
        turns.slow(50, start);
        assert!(turns.out(|| start + BOTH).is_some());
        turns.slow(0, start);
        assert_eq!(turns.out(|| unreachable!("no clock")), None);
    }
}
