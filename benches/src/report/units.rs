//! What figures count, and how they are shown to people.

use serde::Serialize;

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Time.
    Microseconds,
    /// Memory, or data.
    Bytes,
    /// Events in a second.
    PerSecond,
    /// Hundredths of a processor.
    Percent,
    /// Things.
    Count,
    /// A quotient of two figures of the same unit.
    Ratio,
}

impl Unit {
    /// The figure with its unit.
    #[must_use]
    pub fn show(self, figure: f64) -> String {
        match self {
            Self::Microseconds => show_us(figure),
            Self::Bytes => show_bytes(figure),
            Self::PerSecond => format!("{figure:.0}/s"),
            Self::Percent => format!("{figure:.2} %"),
            Self::Count => format!("{figure:.0}"),
            Self::Ratio => show_ratio(figure),
        }
    }
}

fn show_us(us: f64) -> String {
    if us >= 1e6 {
        format!("{:.2} s", us / 1e6)
    } else if us >= 1e3 {
        format!("{:.2} ms", us / 1e3)
    } else {
        format!("{us:.1} us")
    }
}

/// Close to one, where most limits are, the third digit decides.
fn show_ratio(ratio: f64) -> String {
    match ratio {
        _ if ratio < 2.0 => format!("{ratio:.3}x"),
        _ if ratio < 100.0 => format!("{ratio:.2}x"),
        _ => format!("{ratio:.0}x"),
    }
}

fn show_bytes(bytes: f64) -> String {
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
    fn figures_are_shown_in_units_of_their_size() {
        let shown = |unit: Unit, figure| unit.show(figure);
        assert_eq!(shown(Unit::Microseconds, 12.34), "12.3 us");
        assert_eq!(shown(Unit::Microseconds, 1500.0), "1.50 ms");
        assert_eq!(shown(Unit::Microseconds, 2.5e6), "2.50 s");
        assert_eq!(shown(Unit::Bytes, 2048.0), "2.0 KiB");
        assert_eq!(shown(Unit::Bytes, 3.0 * 1024.0 * 1024.0), "3.00 MiB");
        assert_eq!(shown(Unit::Ratio, 0.9791), "0.979x");
        assert_eq!(shown(Unit::Ratio, 2.5), "2.50x");
    }
}
