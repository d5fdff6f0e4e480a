//! What is demanded of a figure, and whether it is so.

use serde::Serialize;

use super::Unit;

/// On which side of the limit a figure has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// At the limit or below.
    AtMost,
    /// At the limit or above.
    AtLeast,
}

/// One figure of a row with the limit that it has to keep.
#[derive(Debug, Clone, Serialize)]
pub struct Demand {
    /// Which figure.
    pub what: String,
    /// What it and the limit count.
    pub unit: Unit,
    /// The figure.
    pub measured: f64,
    /// The limit's side.
    pub bound: Bound,
    /// The limit.
    pub limit: f64,
    /// Whether it is kept.
    pub reached: bool,
}

impl Demand {
    /// A figure that must not be larger.
    #[must_use]
    pub fn at_most(what: impl Into<String>, unit: Unit, measured: f64, limit: f64) -> Self {
        Self::new(what.into(), unit, measured, Bound::AtMost, limit)
    }

    /// A figure that must not be smaller.
    #[must_use]
    pub fn at_least(what: impl Into<String>, unit: Unit, measured: f64, limit: f64) -> Self {
        Self::new(what.into(), unit, measured, Bound::AtLeast, limit)
    }

    fn new(what: String, unit: Unit, measured: f64, bound: Bound, limit: f64) -> Self {
        // A quotient by nothing is no figure at all, and keeps no limit.
        let reached = measured.is_finite()
            && match bound {
                Bound::AtMost => measured <= limit,
                Bound::AtLeast => measured >= limit,
            };
        Self {
            what,
            unit,
            measured,
            bound,
            limit,
            reached,
        }
    }

    /// The limit in words.
    #[must_use]
    pub fn target(&self) -> String {
        let sign = match self.bound {
            Bound::AtMost => "<=",
            Bound::AtLeast => ">=",
        };
        format!("{} {sign} {}", self.what, self.unit.show(self.limit))
    }

    /// Whether it is kept, in words.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        if self.reached {
            "reached"
        } else {
            "NOT reached"
        }
    }
}
