//! How long a sync goes on in rounds, and when its guest has to be slowed.

use std::time::Duration;

use crate::config::Config;
use crate::time::Time;

/// What of a guest's time is taken first, then in addition, and at most, in percent.
const FIRST: u8 = 20;
const MORE: u8 = 10;
const MOST: u8 = 99;

/// What follows a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Another one.
    Send,
    /// Another one, with the guest kept from running for this share of its time, in percent.
    SendSlowed(u8),
    /// The first epoch, which carries the rest.
    Epoch,
}

/// The rounds of one sync. The first sends all memory, each of the others what was dirtied
/// during the one before it.
///
/// Rounds shrink if the guest dirties pages slower than the link takes them. If they don't, and
/// what is left would keep the first epoch on its way for long, the guest gets less and less of
/// its time until they do.
#[derive(Debug)]
pub(crate) struct Rounds {
    over: u32,
    /// What the last round sent; none if that was all memory, of which zeroes cost nothing.
    sent: Option<u64>,
    began: Time,
    /// How long the link took it.
    took: Duration,
    /// What is taken of the guest's time, in percent.
    slowed: u8,
}

impl Rounds {
    pub(crate) fn begin(now: Time) -> Self {
        Self {
            over: 0,
            sent: None,
            began: now,
            took: Duration::ZERO,
            slowed: 0,
        }
    }

    pub(crate) fn slowed(&self) -> bool {
        self.slowed > 0
    }

    /// The round's pages are on their way.
    pub(crate) fn sent(&mut self, now: Time) {
        self.took = now - self.began;
    }

    /// So many pages were dirtied meanwhile.
    pub(crate) fn found(&mut self, now: Time, pages: u64, config: &Config) -> Step {
        self.over += 1;
        let stuck = self.over >= 3 && self.sent.is_some_and(|sent| pages > sent / 4 * 3);
        let done = pages <= config.last_round_pages
            || self.over >= config.rounds
            || stuck && (self.slowed == MOST || self.span(pages) <= config.first_epoch);
        if done {
            return Step::Epoch;
        }
        self.sent = Some(pages);
        self.began = now;
        if !stuck {
            return Step::Send;
        }
        self.slowed = match self.slowed {
            0 => FIRST,
            slowed => slowed.saturating_add(MORE).min(MOST),
        };
        Step::SendSlowed(self.slowed)
    }

    /// The time that the link takes for so many pages, as it did in the last round.
    fn span(&self, pages: u64) -> Duration {
        let nanos =
            self.took.as_nanos() * u128::from(pages) / u128::from(self.sent.unwrap_or(1).max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}
