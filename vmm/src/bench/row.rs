//! Figures of a row, for people and for programs.

use serde_json::{Map, Value, json};

/// A figure by a name that ends in its unit.
pub(super) type Figure = (&'static str, f64);

/// What was measured.
#[derive(Debug)]
pub(super) struct Row {
    figures: Vec<Figure>,
    reference: Figure,
    /// What the figures are.
    pub(super) explained: &'static str,
}

impl Row {
    /// `figures` has at least one, which is compared with the reference.
    pub(super) fn new<const N: usize>(
        figures: [Figure; N],
        reference: Figure,
        explained: &'static str,
    ) -> Self {
        Self {
            figures: figures.into(),
            reference,
            explained,
        }
    }

    fn ratio(&self) -> f64 {
        let first = self.figures.first().map_or(f64::NAN, |(_, first)| *first);
        first / self.reference.1
    }

    fn all(&self) -> impl Iterator<Item = &Figure> {
        self.figures.iter().chain([&self.reference])
    }
}

/// What became of a row.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) name: String,
    /// Its figures, or why there are none.
    pub(super) measured: Result<Row, String>,
}

impl Outcome {
    /// `delay: added_p50_us=341 added_p99_us=820 bare_p50_us=112 ratio=3.04`
    pub(super) fn line(&self) -> String {
        match &self.measured {
            Ok(row) => {
                let figures = row.all().map(|(name, figure)| show(name, *figure));
                let figures: Vec<_> = figures.collect();
                let ratio = row.ratio();
                format!("{}: {} ratio={ratio:.3}", self.name, figures.join(" "))
            }
            Err(error) => format!("{}: FAILED {error}", self.name),
        }
    }

    fn value(&self) -> Value {
        let map = |figures: &[Figure]| -> Map<String, Value> {
            let figures = figures.iter();
            figures
                .map(|(name, figure)| ((*name).to_owned(), json!(figure)))
                .collect()
        };
        match &self.measured {
            Ok(row) => json!({
                "name": self.name,
                "measured": map(&row.figures),
                "reference": map(&[row.reference]),
                "ratio": row.ratio(),
                "explained": row.explained,
            }),
            Err(error) => json!({ "name": self.name, "error": error }),
        }
    }
}

/// Small figures with a digit behind the point.
fn show(name: &str, figure: f64) -> String {
    match figure < 100.0 {
        true => format!("{name}={figure:.1}"),
        false => format!("{name}={figure:.0}"),
    }
}

/// All of them as a JSON document.
pub(super) fn document(outcomes: &[Outcome]) -> String {
    let rows: Vec<_> = outcomes.iter().map(Outcome::value).collect();
    format!("{:#}", json!({ "rows": rows }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes() -> [Outcome; 2] {
        let row = Row::new(
            [("p50_us", 300.4), ("p99_us", 900.0)],
            ("bare_us", 20.0),
            "x",
        );
        [("delay", Ok(row)), ("link", Err("no socket".to_owned()))].map(|(name, measured)| {
            Outcome {
                name: name.into(),
                measured,
            }
        })
    }

    #[test]
    fn a_row_is_one_line() {
        let [delay, link] = outcomes();
        let line = "delay: p50_us=300 p99_us=900 bare_us=20.0 ratio=15.020";
        assert_eq!(delay.line(), line);
        assert_eq!(link.line(), "link: FAILED no socket");
    }

    #[test]
    fn the_document_has_every_row() {
        let parsed: Value = serde_json::from_str(&document(&outcomes())).unwrap();
        assert_eq!(parsed["rows"][0]["measured"]["p99_us"], 900.0);
        assert_eq!(parsed["rows"][0]["reference"]["bare_us"], 20.0);
        assert_eq!(parsed["rows"][1]["error"], "no socket");
    }
}
