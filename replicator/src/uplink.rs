//! Uplinks of the host: interfaces of its own without which a guest's card reaches nobody.

use std::time::{Duration, Instant};

/// How long carrier has to be away before an uplink counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// How long it has to be back, without a break, before the uplink counts as good again.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// Two looks that are further apart say nothing about the time between them.
const LONGEST_GAP: Duration = Duration::from_secs(1);

/// An interface of this host, and how to see whether it has carrier.
pub struct Uplink {
    /// Name of the interface.
    pub name: String,
    /// Whether a guest is handed over when this is lost; if not, that is told only.
    pub hands_over: bool,
    /// Whether it is there, is up and has carrier. Asked ten times a second, by a thread that may not wait.
    pub has_carrier: Box<dyn Fn() -> bool + Send>,
}

/// An uplink, and what was seen of it.
pub(crate) struct Watched {
    uplink: Uplink,
    seen: Option<History>,
}

impl Watched {
    pub(crate) fn new(uplink: Uplink) -> Self {
        Self { uplink, seen: None }
    }

    pub(crate) fn name(&self) -> &str {
        &self.uplink.name
    }

    pub(crate) fn hands_over(&self) -> bool {
        self.uplink.hands_over
    }

    /// Looks at it. Gives what it counts as from now on, if that is something else than before.
    pub(crate) fn look(&mut self, now: Instant) -> Option<bool> {
        let carrier = (self.uplink.has_carrier)();
        match &mut self.seen {
            Some(history) => history.take(carrier, now).then_some(history.good),
            none => {
                *none = Some(History::new(carrier, now));
                (!carrier).then_some(false)
            }
        }
    }

    /// Whether it counts as good. One that was not looked at yet does not.
    pub(crate) fn is_good(&self) -> bool {
        self.seen.as_ref().is_some_and(|history| history.good)
    }

    /// Whether it was looked at.
    pub(crate) fn was_seen(&self) -> bool {
        self.seen.is_some()
    }

    /// Whether it had carrier when it was looked at last.
    pub(crate) fn has_carrier(&self) -> bool {
        self.seen.as_ref().is_some_and(|history| history.carrier)
    }
}

/// What was seen of an interface so far, and what it counts as.
struct History {
    good: bool,
    carrier: bool,
    /// Since when `carrier` is what it is, without a break.
    since: Instant,
    looked: Instant,
}

impl History {
    /// What an interface has at first, it counts as: nothing is known of a loss.
    fn new(carrier: bool, now: Instant) -> Self {
        Self {
            good: carrier,
            carrier,
            since: now,
            looked: now,
        }
    }

    /// Takes in what was seen. Whether it counts as something else from now on.
    fn take(&mut self, carrier: bool, now: Instant) -> bool {
        let gap = now.saturating_duration_since(self.looked) > LONGEST_GAP;
        self.looked = now;
        if gap || carrier != self.carrier {
            self.carrier = carrier;
            self.since = now;
        }
        let after = if self.good { LOST_AFTER } else { GOOD_AFTER };
        let turns = self.carrier != self.good && now.saturating_duration_since(self.since) >= after;
        if turns {
            self.good = self.carrier;
        }
        turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    /// What an interface counts as after each look, one every 100 ms.
    struct Story {
        history: History,
        now: Instant,
    }

    impl Story {
        fn begin(carrier: bool) -> Self {
            let now = Instant::now();
            Self {
                history: History::new(carrier, now),
                now,
            }
        }

        /// So many looks that find the same. The number of the first one that has changed anything, from 1 on.
        fn goes_on(&mut self, carrier: bool, looks: u32) -> Option<u32> {
            let mut changed = None;
            for look in 1..=looks {
                self.now += STEP;
                if self.history.take(carrier, self.now) {
                    assert_eq!(changed.replace(look), None, "it changes once");
                }
            }
            changed
        }
    }

    #[test]
    fn carrier_is_lost_after_a_second_and_good_again_after_ten() {
        let mut story = Story::begin(true);
        assert_eq!(story.goes_on(true, 30), None);
        assert_eq!(story.goes_on(false, 30), Some(11));
        assert!(!story.history.good);
        assert_eq!(story.goes_on(true, 100), None);
        assert_eq!(story.goes_on(true, 100), Some(1));
        assert!(story.history.good);
    }

    #[test]
    fn carrier_that_comes_and_goes_changes_nothing() {
        let mut story = Story::begin(true);
        for _ in 0..20 {
            assert_eq!(story.goes_on(false, 10), None);
            assert_eq!(story.goes_on(true, 1), None);
        }
        assert_eq!(story.goes_on(false, 20), Some(11));
        for _ in 0..5 {
            assert_eq!(story.goes_on(true, 99), None);
            assert_eq!(story.goes_on(false, 1), None);
        }
        assert!(!story.history.good);
    }

    #[test]
    fn what_nobody_has_seen_does_not_count() {
        let mut story = Story::begin(true);
        story.goes_on(false, 1);
        story.now += Duration::from_secs(5);
        assert_eq!(story.goes_on(false, 20), Some(11));
        story.goes_on(true, 90);
        story.now += Duration::from_secs(60);
        assert_eq!(story.goes_on(true, 120), Some(101));
    }

    #[test]
    fn an_interface_without_carrier_is_lost_from_the_start() {
        let uplink = Uplink {
            name: "eth0".to_owned(),
            hands_over: true,
            has_carrier: Box::new(|| false),
        };
        let mut watched = Watched::new(uplink);
        assert!(!watched.is_good());
        assert_eq!(watched.look(Instant::now()), Some(false));
        assert_eq!(watched.look(Instant::now()), None);
    }
}
