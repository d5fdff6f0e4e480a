//! The check that only one machine at a time spoke for the guest (I2), from the frames that the switch saw.

use std::fmt;
use std::time::Instant;

use crate::lab::HostName;

/// A frame with the guest's address as its source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spoken {
    /// When the switch received it.
    pub(crate) at: Instant,
    /// The host it came from.
    pub(crate) from: HostName,
}

/// A right to speak for the guest, as the twin that won it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Releaser {
    /// The right's generation.
    pub generation: u64,
    /// The host that holds it.
    pub host: HostName,
}

/// A stretch of frames from one host.
#[derive(Clone, Copy, Debug)]
pub struct Period {
    /// The host.
    pub host: HostName,
    /// Its first frame.
    pub began: Instant,
    /// Its last one.
    pub ended: Instant,
    /// How many.
    pub frames: u64,
}

/// More than one machine spoke for the guest in a generation.
#[derive(Debug)]
pub struct Violation {
    periods: Vec<Period>,
    releasers: Vec<Releaser>,
    at: usize,
}

impl std::error::Error for Violation {}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.periods.first() else {
            return write!(f, "nobody spoke for the guest");
        };
        write!(f, "more than one machine spoke for the guest:")?;
        for (number, period) in self.periods.iter().enumerate() {
            let mark = if number == self.at {
                " (not allowed)"
            } else {
                ""
            };
            write!(
                f,
                " {} from {:.3} s to {:.3} s, {} frames{mark};",
                period.host,
                (period.began - first.began).as_secs_f64(),
                (period.ended - first.began).as_secs_f64(),
                period.frames
            )?;
        }
        write!(f, " the right was held by")?;
        for releaser in &self.releasers {
            write!(f, " {} (generation {})", releaser.host, releaser.generation)?;
        }
        Ok(())
    }
}

/// Divides the frames, in the order in which they came, into the hosts' speaking periods.
pub(crate) fn periods(frames: impl IntoIterator<Item = Spoken>) -> Vec<Period> {
    let mut periods: Vec<Period> = Vec::new();
    for frame in frames {
        match periods.last_mut() {
            Some(last) if last.host == frame.from => {
                last.ended = frame.at;
                last.frames += 1;
            }
            _ => periods.push(Period {
                host: frame.from,
                began: frame.at,
                ended: frame.at,
                frames: 1,
            }),
        }
    }
    periods
}

/// Checks that each speaking period is backed by a right of its own, in the order of their generations.
///
/// # Errors
/// The first period that is not.
pub fn check_one_speaker(
    periods: Vec<Period>,
    mut releasers: Vec<Releaser>,
) -> Result<(), Violation> {
    releasers.sort_by_key(|releaser| releaser.generation);
    // A right may pass without a frame, but it is never used again once a later one was.
    let mut left = releasers.iter();
    for (at, period) in periods.iter().enumerate() {
        if !left.any(|releaser| releaser.host == period.host) {
            return Err(Violation {
                periods,
                releasers,
                at,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use HostName::{A, B};

    fn spoken(hosts: &[HostName]) -> Vec<Period> {
        let start = Instant::now();
        periods(hosts.iter().zip(0..).map(|(&from, ms)| Spoken {
            at: start + Duration::from_millis(ms),
            from,
        }))
    }

    fn rights(hosts: &[HostName]) -> Vec<Releaser> {
        let number = |(&host, generation)| Releaser { generation, host };
        hosts.iter().zip(1..).map(number).collect()
    }

    #[test]
    fn one_after_the_other_is_fine() {
        check_one_speaker(spoken(&[A, A, B, B]), rights(&[A, B])).unwrap();
        check_one_speaker(spoken(&[A, B, A]), rights(&[A, B, A])).unwrap();
        check_one_speaker(spoken(&[B]), rights(&[A, B])).unwrap();
        check_one_speaker(spoken(&[]), rights(&[A])).unwrap();
        // Going solo is a right of the same host's.
        check_one_speaker(spoken(&[A, A, B]), rights(&[A, A, B])).unwrap();
    }

    #[test]
    fn an_interleaving_is_found() {
        let violation = check_one_speaker(spoken(&[A, A, B, A]), rights(&[A, B])).unwrap_err();
        assert_eq!(violation.at, 2);
        let text = violation.to_string();
        assert!(
            text.contains("a from 0.003 s to 0.003 s, 1 frames (not allowed)"),
            "{text}"
        );
        assert!(text.contains("b (generation 2)"), "{text}");
        check_one_speaker(spoken(&[A, B, A, B]), rights(&[A, B])).unwrap_err();
    }

    #[test]
    fn speaking_without_a_right_is_found() {
        check_one_speaker(spoken(&[A, B]), rights(&[A])).unwrap_err();
        check_one_speaker(spoken(&[B, A]), rights(&[A, B])).unwrap_err();
        check_one_speaker(spoken(&[A]), rights(&[])).unwrap_err();
    }

    #[test]
    fn rights_count_by_generation_not_by_who_told_first() {
        let mut told = rights(&[A, B, A]);
        told.swap(0, 2);
        check_one_speaker(spoken(&[A, B, A]), told).unwrap();
    }
}
