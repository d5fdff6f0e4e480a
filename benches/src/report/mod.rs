//! Rows: figures, their floors, what is demanded of them, and how they are shown.

mod demand;
mod samples;
mod table;
mod units;

use std::time::Duration;

use serde::Serialize;

pub use demand::{Bound, Demand};
pub use samples::{Figures, Samples};
pub use table::{print_row, print_table};
pub use units::Unit;

use crate::plot::Plot;

/// Figures of something beside the row's own: an arm of the comparison, a part of the whole.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// What it is.
    pub name: String,
    /// What its figures count.
    pub unit: Unit,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
}

impl Part {
    fn new(name: &str, samples: &Samples) -> Self {
        Self {
            name: name.into(),
            unit: samples.unit(),
            figures: samples.figures(),
        }
    }
}

/// One row of the report.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name on the command line.
    pub name: String,
    /// What was measured.
    pub what: String,
    /// The figures; none if the row failed.
    pub measured: Option<Part>,
    /// What they are compared with: the same work at its least, measured in the same run.
    pub floor: Option<Part>,
    /// All of them must be met.
    pub demands: Vec<Demand>,
    /// Figures beside these.
    pub parts: Vec<Part>,
    /// More, in words.
    pub detail: Vec<String>,
    /// The commands that were measured.
    pub commands: Vec<String>,
    /// Why there are no figures.
    pub failure: Option<String>,
    /// Drawn in the report for people.
    pub plots: Vec<Plot>,
}

impl Row {
    /// A row without demands yet.
    #[must_use]
    pub fn new(what: &str, samples: &Samples) -> Self {
        Self {
            measured: Some(Part::new(what, samples)),
            ..Self::empty(what)
        }
    }

    /// A row that could not be measured.
    #[must_use]
    pub fn failed(what: &str, why: &str) -> Self {
        Self {
            failure: Some(why.into()),
            ..Self::empty(what)
        }
    }

    fn empty(what: &str) -> Self {
        Self {
            name: String::new(),
            what: what.into(),
            measured: None,
            floor: None,
            demands: vec![],
            parts: vec![],
            detail: vec![],
            commands: vec![],
            failure: None,
            plots: vec![],
        }
    }

    /// Sets what the figures are compared with.
    #[must_use]
    pub fn floor(mut self, what: &str, samples: &Samples) -> Self {
        self.floor = Some(Part::new(what, samples));
        self
    }

    /// Adds a demand.
    #[must_use]
    pub fn demand(mut self, demand: Demand) -> Self {
        self.demands.push(demand);
        self
    }

    /// Demands that the median is at most this, in the row's unit.
    #[must_use]
    pub fn p50_at_most(self, limit: f64) -> Self {
        let (unit, figure) = self.figure(|figures| figures.p50);
        self.demand(Demand::at_most("p50", unit, figure, limit))
    }

    /// The same of the 99th percentile.
    #[must_use]
    pub fn p99_at_most(self, limit: f64) -> Self {
        let (unit, figure) = self.figure(|figures| figures.p99);
        self.demand(Demand::at_most("p99", unit, figure, limit))
    }

    /// Demands that the median time is at most this.
    #[must_use]
    pub fn p50_within(self, time: Duration) -> Self {
        self.p50_at_most(time.as_secs_f64() * 1e6)
    }

    /// The same of the 99th percentile.
    #[must_use]
    pub fn p99_within(self, time: Duration) -> Self {
        self.p99_at_most(time.as_secs_f64() * 1e6)
    }

    /// Demands that the median is at most so many times the floor's.
    #[must_use]
    pub fn times_floor_at_most(self, limit: f64) -> Self {
        let ratio = self.ratio().unwrap_or(f64::NAN);
        self.demand(Demand::at_most("p50 / floor", Unit::Ratio, ratio, limit))
    }

    /// Demands that the median is at least so many times the floor's: of rates.
    #[must_use]
    pub fn times_floor_at_least(self, limit: f64) -> Self {
        let ratio = self.ratio().unwrap_or(f64::NAN);
        self.demand(Demand::at_least("p50 / floor", Unit::Ratio, ratio, limit))
    }

    /// Demands that a median time is so short that it goes at least so many times as fast as the floor.
    #[must_use]
    pub fn speed_at_least(self, limit: f64) -> Self {
        let speed = self.ratio().map_or(f64::NAN, f64::recip);
        self.demand(Demand::at_least(
            "speed / floor's",
            Unit::Ratio,
            speed,
            limit,
        ))
    }

    /// Adds the figures of a part or an arm.
    #[must_use]
    pub fn part(mut self, name: &str, samples: &Samples) -> Self {
        self.parts.push(Part::new(name, samples));
        self
    }

    /// Adds a line.
    #[must_use]
    pub fn detail(mut self, line: impl Into<String>) -> Self {
        self.detail.push(line.into());
        self
    }

    /// Adds commands that were measured.
    #[must_use]
    pub fn commands(mut self, commands: impl IntoIterator<Item = String>) -> Self {
        for command in commands {
            if !self.commands.contains(&command) {
                self.commands.push(command);
            }
        }
        self
    }

    /// Adds a drawing.
    #[must_use]
    pub fn plot(mut self, plot: Plot) -> Self {
        self.plots.push(plot);
        self
    }

    /// Median by median of the floor.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let (measured, floor) = (self.measured.as_ref()?, self.floor.as_ref()?);
        let counts = measured.figures.count.min(floor.figures.count);
        let comparable = measured.unit == floor.unit && counts > 0;
        comparable.then(|| measured.figures.p50 / floor.figures.p50)
    }

    /// Whether it has figures, and all that is demanded of them is so.
    #[must_use]
    pub fn reached(&self) -> bool {
        let measured = self.measured.as_ref();
        measured.is_some_and(|part| part.figures.count > 0)
            && self.failure.is_none()
            && !self.demands.is_empty()
            && self.demands.iter().all(|demand| demand.reached)
    }

    /// The row's verdict in words.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match self.failure {
            Some(_) => "FAILED",
            None if self.reached() => "reached",
            None => "NOT reached",
        }
    }

    fn figure(&self, of: impl Fn(&Figures) -> f64) -> (Unit, f64) {
        match &self.measured {
            Some(part) if part.figures.count > 0 => (part.unit, of(&part.figures)),
            Some(part) => (part.unit, f64::NAN),
            None => (Unit::Ratio, f64::NAN),
        }
    }
}

#[cfg(test)]
mod tests;
