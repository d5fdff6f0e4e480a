//! Drawings of the report: data here, SVG from it in the parts.

mod bars;
mod lines;
mod scale;
mod svg;
pub(crate) use svg::escape;
mod timeline;

use serde::Serialize;

/// One drawing.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Plot {
    /// Bars made of parts that follow each other.
    Bars(Bars),
    /// Curves.
    Lines(Lines),
    /// Events after a first one.
    Timeline(Timeline),
}

/// Bars made of parts, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Bars {
    /// What is drawn.
    pub title: String,
    /// Names of bars, each with its parts by name.
    pub bars: Vec<(String, Vec<(String, f64)>)>,
}

/// Curves over an axis that is logarithmic.
#[derive(Debug, Clone, Serialize)]
pub struct Lines {
    /// What is drawn.
    pub title: String,
    /// What goes to the right.
    pub x: Axis,
    /// What goes up.
    pub y: Axis,
    /// Names of curves, each with its points.
    pub series: Vec<(String, Vec<(f64, f64)>)>,
}

/// An axis.
#[derive(Debug, Clone, Serialize)]
pub struct Axis {
    /// What it counts.
    pub label: String,
    /// Whether it is logarithmic.
    pub log: bool,
}

impl Axis {
    /// One from zero on.
    #[must_use]
    pub fn linear(label: &str) -> Self {
        Self {
            label: label.into(),
            log: false,
        }
    }

    /// One whose every step is ten times the one before.
    #[must_use]
    pub fn logarithmic(label: &str) -> Self {
        Self {
            label: label.into(),
            log: true,
        }
    }
}

/// When things happen after the first, in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Timeline {
    /// What is drawn.
    pub title: String,
    /// Names of events, each with its time in every run.
    pub events: Vec<(String, Vec<f64>)>,
}

impl Plot {
    /// An `svg` element.
    #[must_use]
    pub fn to_svg(&self) -> String {
        match self {
            Self::Bars(bars) => bars.to_svg(),
            Self::Lines(lines) => lines.to_svg(),
            Self::Timeline(timeline) => timeline.to_svg(),
        }
    }
}

#[cfg(test)]
mod tests;
