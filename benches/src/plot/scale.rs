//! From figures to places, and the numbers at an axis.

/// Maps a range of figures to a range of places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    log: bool,
    figures: (f64, f64),
    places: (f64, f64),
}

impl Scale {
    /// One on which all the figures have a place. An axis that is not logarithmic begins at 0.
    pub(super) fn new(log: bool, figures: impl Iterator<Item = f64>, places: (f64, f64)) -> Self {
        let usable = figures.filter(|figure| figure.is_finite() && (!log || *figure > 0.0));
        let (mut least, mut largest) = (f64::INFINITY, 0.0_f64);
        usable.for_each(|figure| {
            least = least.min(figure);
            largest = largest.max(figure);
        });
        if largest <= 0.0 {
            (least, largest) = (1.0, 1.0);
        }
        let figures = if log {
            (tens_below(least), tens_above(largest.max(least * 1.01)))
        } else {
            (0.0, largest)
        };
        Self {
            log,
            figures,
            places,
        }
    }

    pub(super) fn place(&self, figure: f64) -> f64 {
        let (from, to) = self.figures;
        let part = if self.log {
            (figure.max(from) / from).ln() / (to / from).ln()
        } else {
            (figure - from) / (to - from)
        };
        self.places.0 + part.clamp(0.0, 1.0) * (self.places.1 - self.places.0)
    }

    /// Figures to write at the axis.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let (from, to) = self.figures;
        if self.log {
            let tens = std::iter::successors(Some(from), |tick| Some(tick * 10.0));
            let tens: Vec<f64> = tens.take_while(|tick| *tick <= to * 1.001).collect();
            let between = |tick: &f64| [1.0, 2.0, 5.0].map(|times| tick * times);
            return match tens.len() {
                // Tens alone would be too few to read a figure by.
                0..=3 => tens
                    .iter()
                    .flat_map(between)
                    .filter(|tick| *tick <= to * 1.001)
                    .collect(),
                _ => tens,
            };
        }
        let step = tens_below(to / 2.0);
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * step);
        let step = step.into_iter().find(|step| to / step <= 6.0).unwrap_or(to);
        let ticks = std::iter::successors(Some(0.0), |tick| Some(tick + step));
        ticks.take_while(|tick| *tick <= to * 1.001).collect()
    }
}

fn tens_below(figure: f64) -> f64 {
    10.0_f64.powf(figure.log10().floor())
}

fn tens_above(figure: f64) -> f64 {
    10.0_f64.powf(figure.log10().ceil())
}

/// A figure in a few letters.
pub(super) fn short(figure: f64) -> String {
    match figure {
        0.0 => "0".into(),
        _ if figure >= 1e6 => format!("{}M", tidy(figure / 1e6)),
        _ if figure >= 1e4 => format!("{}k", tidy(figure / 1e3)),
        _ => tidy(figure),
    }
}

fn tidy(figure: f64) -> String {
    let text = if figure < 10.0 {
        format!("{figure:.2}")
    } else {
        format!("{figure:.1}")
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_places_in_order() {
        for log in [false, true] {
            let scale = Scale::new(log, [3.0, 40.0, 500.0].into_iter(), (0.0, 100.0));
            let places = [3.0, 40.0, 500.0].map(|figure| scale.place(figure));
            assert!(places.is_sorted() && places[0] >= 0.0 && places[2] <= 100.0);
            assert!(scale.ticks().len() >= 3, "{:?}", scale.ticks());
        }
    }

    #[test]
    fn an_axis_of_nothing_or_of_one_figure_is_still_one() {
        for figures in [vec![], vec![0.0], vec![7.0], vec![f64::NAN]] {
            for log in [false, true] {
                let scale = Scale::new(log, figures.iter().copied(), (0.0, 1.0));
                assert!(scale.place(7.0).is_finite() && !scale.ticks().is_empty());
            }
        }
    }

    #[test]
    fn figures_are_short() {
        let shown = [0.0, 0.5, 12.0, 123.4, 20_000.0, 3e6].map(short);
        assert_eq!(shown, ["0", "0.5", "12", "123.4", "20k", "3M"]);
    }
}
