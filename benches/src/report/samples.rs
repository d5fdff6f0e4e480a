//! Samples of one kind, of one round or of several.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::Unit;

/// The histogram counts thousandths of the unit: it holds whole numbers only.
const PARTS: f64 = 1e3;
const LARGEST: u64 = 1_000_000_000_000_000;

/// Figures of one kind: times unless something else is said.
#[derive(Debug, Clone)]
pub struct Samples {
    unit: Unit,
    histogram: Histogram<u64>,
    /// The median of each round.
    rounds: Vec<f64>,
}

impl Default for Samples {
    fn default() -> Self {
        Self::of(Unit::Microseconds)
    }
}

impl Samples {
    /// None yet, of this unit.
    ///
    /// # Panics
    /// Never: the bounds are valid.
    #[must_use]
    pub fn of(unit: Unit) -> Self {
        Self {
            unit,
            // Three digits, which the library accepts for any such range.
            histogram: Histogram::new_with_bounds(1, LARGEST, 3).expect("valid bounds"),
            rounds: Vec::new(),
        }
    }

    /// What they count.
    #[must_use]
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Adds a figure in the samples' unit.
    pub fn push(&mut self, figure: f64) {
        let parts = (figure.max(0.0) * PARTS) as u64;
        self.histogram.saturating_record(parts.max(1));
    }

    /// Adds a time.
    pub fn add(&mut self, time: Duration) {
        self.push(time.as_secs_f64() * 1e6);
    }

    /// Adds all samples of a round, and remembers its median.
    pub fn add_round(&mut self, round: &Self) {
        if round.count() > 0 {
            self.histogram += &round.histogram;
            self.rounds.push(round.percentile(50.0));
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The figure that `percent` of the samples do not exceed.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> f64 {
        self.histogram.value_at_percentile(percent) as f64 / PARTS
    }

    /// The median.
    #[must_use]
    pub fn p50(&self) -> f64 {
        self.percentile(50.0)
    }

    /// The same, shown.
    #[must_use]
    pub fn show_p50(&self) -> String {
        self.unit.show(self.p50())
    }

    /// Other figures made of these, one of each, and of the rounds' medians.
    #[must_use]
    pub fn map(&self, of: impl Fn(f64) -> f64) -> Self {
        let mut mapped = Self::of(self.unit);
        for step in self.histogram.iter_recorded() {
            let figure = of(step.value_iterated_to() as f64 / PARTS);
            let parts = ((figure.max(0.0) * PARTS) as u64).max(1);
            let count = step.count_at_value();
            mapped.histogram.saturating_record_n(parts, count);
        }
        mapped.rounds = self.rounds.iter().map(|figure| of(*figure)).collect();
        mapped
    }

    /// Points of the distribution: a figure, and how many percent of the samples do not exceed it.
    #[must_use]
    pub fn distribution(&self) -> Vec<(f64, f64)> {
        let percents = (0..50).map(|step| f64::from(step) * 2.0);
        let percents = percents.chain([99.0, 99.5, 99.9, 100.0]);
        percents.map(|p| (self.percentile(p), p)).collect()
    }

    /// What the report says of them.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let medians = || self.rounds.iter().copied();
        Figures {
            p50: self.p50(),
            p99: self.percentile(99.0),
            max: self.percentile(100.0),
            count: self.count(),
            rounds_p50: (self.rounds.len() > 1).then(|| {
                let least = medians().fold(f64::INFINITY, f64::min);
                (least, medians().fold(0.0, f64::max))
            }),
        }
    }
}

/// Samples in short, in their unit.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Figures {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Worst.
    pub max: f64,
    /// How many.
    pub count: u64,
    /// The least and the largest median of a round, if there was more than one.
    pub rounds_p50: Option<(f64, f64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_merged_and_their_medians_kept() {
        let round = |us: &[f64]| {
            let mut samples = Samples::default();
            us.iter().for_each(|us| samples.push(*us));
            samples
        };
        let mut all = Samples::default();
        all.add_round(&round(&[10.0, 20.0, 30.0]));
        all.add_round(&round(&[40.0, 50.0, 60.0]));
        all.add_round(&round(&[]));
        let figures = all.figures();
        let near = |figure: f64, expected: f64| (figure / expected - 1.0).abs() < 0.002;
        assert_eq!(figures.count, 6);
        assert!(near(figures.p50, 30.0) && near(figures.max, 60.0));
        let (least, largest) = figures.rounds_p50.unwrap();
        assert!(near(least, 20.0) && near(largest, 50.0));
    }

    #[test]
    fn small_and_large_figures_keep_three_digits() {
        for figure in [0.05, 0.31, 1.25, 7.77, 123.0, 45_600.0, 8.5e9] {
            let mut samples = Samples::of(Unit::Ratio);
            samples.push(figure);
            assert!((samples.p50() / figure - 1.0).abs() < 0.002, "{figure}");
        }
    }
}
