//! How long a guest may run whose memory nobody else holds (PROTOCOL.md §12).
//!
//! Its output is not gated, so a standby that takes over must know that it has stopped. A named
//! standby lends time: while it acknowledges epochs it has not asked for the right, so whoever
//! wins the right does so after the last acknowledged epoch was captured. From that moment on the
//! guest may run for one lease, and who won the right waits for a longer time before it boots.
//! Only lengths of time are compared, never readings of two clocks.

use std::collections::VecDeque;
use std::time::Duration;

use crate::bug::Bug;
use crate::context::Context;
use crate::event::{Action, Report};
use crate::time::Time;

/// The part of the lease that the winner waits in addition. A third of it is for clocks, which may
/// each go wrong by one part in a hundred (those of Linux do by a thousandth); the rest is for what was
/// about to leave when the lease ran out.
const MARGIN: u32 = 16;

/// How long the winner of the right waits before it runs the guest, given the lease.
pub fn lease_wait(lease: Duration) -> Duration {
    lease + lease / MARGIN
}

/// The lease of a primary's guest. Of no effect without [`Config::lease`](crate::Config::lease).
#[derive(Debug, Default)]
pub(crate) struct Lease {
    /// Epochs that are not acknowledged, and when their capture began.
    captured: VecDeque<(u64, Time)>,
    /// None: nobody else can take the right.
    until: Option<Time>,
    /// The guest stands still.
    stopped: bool,
}

impl Lease {
    /// When it runs out, if that has to be acted on.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.until.filter(|_| !self.stopped)
    }
}

impl Context {
    /// A sync is over: what was captured before is of no use.
    pub(crate) fn begin_lease(&mut self) {
        self.lease.captured.clear();
    }

    /// The capture of this epoch begins now.
    pub(crate) fn lease_captures(&mut self, epoch: u64) {
        if self.config.lease.is_some() {
            self.lease.captured.push_back((epoch, self.now));
        }
    }

    /// A standby that may be named has acknowledged all epochs up to this one.
    pub(crate) fn extend_lease(&mut self, epoch: u64) {
        let Some(lease) = self.config.lease else {
            return;
        };
        let mut began = None;
        while let Some((_, at)) = self.lease.captured.pop_front_if(|(at, _)| *at <= epoch) {
            began = Some(at);
        }
        let Some(began) = began else {
            return;
        };
        let until = began + lease;
        self.lease.until = Some(until);
        self.act(Action::Lease(Some(until)));
        if until > self.now {
            self.continue_guest();
        }
    }

    /// Nobody else can take the right any more.
    pub(crate) fn end_lease(&mut self) {
        if self.lease.until.take().is_some() {
            self.act(Action::Lease(None));
        }
        self.continue_guest();
    }

    /// Stops the guest if its time is over.
    pub(crate) fn look_at_lease(&mut self) {
        let over = self.lease.until.is_some_and(|until| until <= self.now);
        if over && !self.config.has(Bug::LeaseIgnored) {
            self.stop_guest();
        }
    }

    /// A guest that nothing keeps from speaking must not run while it is unclear whose it is.
    pub(crate) fn stop_guest(&mut self) {
        if self.config.lease.is_some() && !self.lease.stopped {
            self.lease.stopped = true;
            self.act(Action::StopGuest);
            self.report(Report::Stopped);
        }
    }

    fn continue_guest(&mut self) {
        if std::mem::take(&mut self.lease.stopped) {
            self.act(Action::ContinueGuest);
            self.report(Report::Continued);
        }
    }
}
