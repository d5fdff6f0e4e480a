//! Samples of one kind.

use std::time::Duration;

/// Figures, of which percentiles are asked.
#[derive(Debug, Default)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    /// The figure that `percent` of them do not exceed; NaN if there are none.
    pub(super) fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        let place = rank.saturating_sub(1);
        sorted.get(place).copied().unwrap_or(f64::NAN)
    }

    pub(super) fn p50(&self) -> f64 {
        self.percentile(50.0)
    }

    pub(super) fn p99(&self) -> f64 {
        self.percentile(99.0)
    }

    pub(super) fn max(&self) -> f64 {
        self.percentile(100.0)
    }

    pub(super) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// Adds times in microseconds.
    pub(super) fn add_us(&mut self, times: &[Duration]) {
        self.0
            .extend(times.iter().map(|time| time.as_secs_f64() * 1e6));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples = Samples::default();
        assert!(samples.p50().is_nan());
        for figure in (1..=200).rev() {
            samples.push(f64::from(figure));
        }
        let found = (samples.p50(), samples.p99(), samples.max());
        assert_eq!(found, (100.0, 198.0, 200.0));
    }
}
