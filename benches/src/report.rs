//! Samples, rows and how they are shown.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Times of one kind of event, or sizes of one kind of thing.
#[derive(Debug, Clone)]
pub struct Samples(Histogram<u64>);

impl Default for Samples {
    fn default() -> Self {
        // Three digits, up to 1000 seconds in nanoseconds: a range the library always accepts.
        Self(Histogram::new_with_bounds(1, 1_000_000_000_000, 3).expect("valid bounds"))
    }
}

impl Samples {
    /// Adds a time; those above 1000 s count as 1000 s.
    pub fn add(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(ns.max(1));
    }

    /// Adds a time given in microseconds.
    pub fn add_us(&mut self, us: f64) {
        self.add(Duration::from_secs_f64(us.max(0.0) / 1e6));
    }

    /// Adds a size.
    pub fn add_bytes(&mut self, bytes: u64) {
        self.0.saturating_record(bytes.max(1));
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

    /// The size, in bytes, that `percent` of the samples do not exceed.
    #[must_use]
    pub fn bytes(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64
    }

    /// The figure, in the unit that they have, that `percent` of the samples do not exceed.
    fn figure(&self, unit: Unit, percent: f64) -> f64 {
        match unit {
            Unit::Microseconds => self.us(percent),
            Unit::Bytes => self.bytes(percent),
        }
    }
}

/// What a row's figures count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Time.
    Microseconds,
    /// Memory.
    Bytes,
}

/// The median that a row is to reach.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// A time.
    Within(Duration),
    /// A size in bytes.
    Bytes(u64),
    /// A time at which it is this part of the floor as fast.
    Speed(f64),
    /// This part of the floor's time.
    Part(f64),
}

impl Target {
    fn unit(self) -> Unit {
        match self {
            Self::Within(_) | Self::Speed(_) | Self::Part(_) => Unit::Microseconds,
            Self::Bytes(_) => Unit::Bytes,
        }
    }

    /// The figure, given the floor's median.
    fn figure(self, floor: f64) -> f64 {
        match self {
            Self::Within(time) => time.as_secs_f64() * 1e6,
            Self::Bytes(bytes) => bytes as f64,
            Self::Speed(part) => floor / part,
            Self::Part(part) => floor * part,
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// What the figures count.
    pub unit: Unit,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Worst.
    pub max: f64,
    /// How many samples.
    pub samples: u64,
    /// What the floor is.
    pub floor: String,
    /// The floor's median.
    pub floor_p50: f64,
    /// Median over floor.
    pub ratio: f64,
    /// The median to reach.
    pub target: f64,
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
        target: Target,
        detail: Vec<String>,
    ) -> Self {
        let unit = target.unit();
        let (p50, floor_p50) = (samples.figure(unit, 50.0), floor.1.figure(unit, 50.0));
        let target = target.figure(floor_p50);
        Self {
            name: name.into(),
            unit,
            p50,
            p99: samples.figure(unit, 99.0),
            max: samples.figure(unit, 100.0),
            samples: samples.count(),
            floor: floor.0.into(),
            floor_p50,
            ratio: p50 / floor_p50,
            target,
            reached: samples.count() > 0 && p50 <= target,
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
        let show = |figure: f64| match self.unit {
            Unit::Microseconds => show(figure),
            Unit::Bytes => show_bytes(figure),
        };
        println!(
            "{:<44} p50 {:>9}  p99 {:>9}  max {:>9}  n={}",
            self.name,
            show(self.p50),
            show(self.p99),
            show(self.max),
            self.samples
        );
        println!(
            "{:<44} floor {} ({}), ratio {:.2}; target p50 {}: {verdict}",
            "",
            show(self.floor_p50),
            self.floor,
            self.ratio,
            show(self.target)
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

/// Bytes in a readable unit.
#[must_use]
pub fn show_bytes(bytes: f64) -> String {
    if bytes >= 1024.0 * 1024.0 {
        format!("{:.2} MiB", bytes / (1024.0 * 1024.0))
    } else {
        format!("{:.1} KiB", bytes / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_may_depend_on_the_floor() {
        let of = |ms| {
            let mut samples = Samples::default();
            samples.add(Duration::from_millis(ms));
            samples
        };
        let reached = |ms, target| Row::new("", &of(ms), ("", &of(80)), target, vec![]).reached;
        assert!(reached(99, Target::Speed(0.8)) && !reached(102, Target::Speed(0.8)));
        assert!(reached(7, Target::Part(0.1)) && !reached(9, Target::Part(0.1)));
        let none = Samples::default();
        assert!(!Row::new("", &none, ("", &of(80)), Target::Speed(0.8), vec![]).reached);
    }
}
