//! Samples, rows and how they are shown.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Times of one kind of event.
#[derive(Debug, Clone)]
pub struct Samples(Histogram<u64>);

impl Default for Samples {
    fn default() -> Self {
        // Three digits, nanoseconds up to a minute: a range the library always accepts.
        Self(Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds"))
    }
}

impl Samples {
    /// Adds one; times above a minute count as a minute.
    pub fn add(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(ns.max(1));
    }

    /// Adds one given in microseconds.
    pub fn add_us(&mut self, us: f64) {
        self.add(Duration::from_secs_f64(us.max(0.0) / 1e6));
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time, in microseconds, that `percent` of the samples do not exceed.
    #[must_use]
    pub fn us(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64 / 1e3
    }
}

/// One figure of the report. All times in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// Worst.
    pub max_us: f64,
    /// How many samples.
    pub samples: u64,
    /// What the floor is.
    pub floor: String,
    /// The floor's median.
    pub floor_us: f64,
    /// Median over floor.
    pub ratio: f64,
    /// The median to reach.
    pub target_us: f64,
    /// Whether it was.
    pub reached: bool,
    /// Anything worth knowing beside it.
    pub detail: Vec<String>,
}

impl Row {
    /// A row from its samples and those of its floor.
    #[must_use]
    pub fn new(
        name: &str,
        samples: &Samples,
        floor: (&str, &Samples),
        target: Duration,
        detail: Vec<String>,
    ) -> Self {
        let (p50_us, floor_us) = (samples.us(50.0), floor.1.us(50.0));
        let target_us = target.as_secs_f64() * 1e6;
        Self {
            name: name.into(),
            p50_us,
            p99_us: samples.us(99.0),
            max_us: samples.us(100.0),
            samples: samples.count(),
            floor: floor.0.into(),
            floor_us,
            ratio: p50_us / floor_us,
            target_us,
            reached: samples.count() > 0 && p50_us <= target_us,
            detail,
        }
    }

    /// Prints the row for people.
    pub fn print(&self) {
        let verdict = if self.reached {
            "reached"
        } else {
            "NOT reached"
        };
        println!(
            "{:<44} p50 {:>9}  p99 {:>9}  max {:>9}  n={}",
            self.name,
            show(self.p50_us),
            show(self.p99_us),
            show(self.max_us),
            self.samples
        );
        println!(
            "{:<44} floor {} ({}), ratio {:.2}; target p50 {}: {verdict}",
            "",
            show(self.floor_us),
            self.floor,
            self.ratio,
            show(self.target_us)
        );
        for line in &self.detail {
            println!("{:<44} {line}", "");
        }
    }
}

/// Microseconds in a readable unit.
#[must_use]
pub fn show(us: f64) -> String {
    if us >= 1e6 {
        format!("{:.2} s", us / 1e6)
    } else if us >= 1e3 {
        format!("{:.2} ms", us / 1e3)
    } else {
        format!("{us:.1} us")
    }
}
