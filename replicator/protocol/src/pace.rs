//! When an epoch ends.

use std::time::Duration;

use crate::config::Config;
use crate::time::Time;

/// What the pace asks for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Capture,
    Peek,
}

/// Paces the epochs of one protected guest.
///
/// A busy guest's epochs last as long as configured. Waiting output ends one early, but a
/// guest is never paused for more than about half of the time. An idle guest is looked at
/// less and less often.
#[derive(Debug)]
pub(crate) struct Pace {
    /// When the guest last resumed.
    resumed: Time,
    /// When the running capture began.
    began: Time,
    /// Cost of the last capture, from the request to the guest's resumption.
    cost: Duration,
    /// Time to the next look without output.
    wait: Duration,
    output: bool,
    idle: bool,
}

impl Pace {
    pub(crate) fn new(now: Time, config: &Config) -> Self {
        Self {
            resumed: now,
            began: now,
            cost: Duration::ZERO,
            wait: config.longest_epoch(),
            output: false,
            idle: false,
        }
    }

    pub(crate) fn output_waits(&mut self) {
        self.output = true;
    }

    /// The moment at which the running epoch ends, or is looked at.
    pub(crate) fn due(&self, config: &Config) -> Time {
        if self.output {
            self.resumed + self.cost.min(config.epoch)
        } else {
            self.resumed + self.wait
        }
    }

    pub(crate) fn step(&self, now: Time, config: &Config) -> Option<Step> {
        if now < self.due(config) {
            None
        } else if self.idle && !self.output && config.lease.is_none() {
            Some(Step::Peek)
        } else {
            Some(Step::Capture)
        }
    }

    pub(crate) fn begins(&mut self, now: Time) {
        self.began = now;
        // Output that comes while the capture runs belongs to the next epoch, and says so.
        self.output = false;
    }

    pub(crate) fn captured(&mut self, now: Time, idle: bool, config: &Config) {
        self.cost = now - self.began;
        self.resumed = now;
        self.wait = config.longest_epoch();
        self.idle = idle;
    }

    /// A failed capture is tried again after a whole epoch; its output still waits.
    pub(crate) fn failed(&mut self, now: Time, config: &Config) {
        self.resumed = now;
        self.wait = config.epoch;
        self.idle = false;
    }

    pub(crate) fn looked(&mut self, now: Time, config: &Config) {
        self.resumed = now;
        self.wait = (self.wait * 2).min(config.idle.max(config.epoch));
    }

    pub(crate) fn found_dirty(&mut self) {
        self.idle = false;
    }
}
