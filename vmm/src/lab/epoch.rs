//! What a primary logs of each epoch.

use super::events::Line;

/// The filter of the log (`EVERTWIN_LOG`) with which it does.
pub const LOG: &str = "info,evertwin::epoch=debug";

/// Parts of a pause in the order in which they come. Others are drawn behind them.
const IN_TIME: [&str; 6] = ["kick", "quiesce", "capture", "harvest", "copy", "resume"];

/// What the primary logs of an epoch.
#[derive(Debug, Clone)]
pub struct Epoch {
    /// Pages in it.
    pub pages: u64,
    /// How long the guest stood still, in microseconds.
    pub pause_us: f64,
    /// The parts of that, by name, in microseconds.
    pub phases_us: Vec<(String, f64)>,
}

impl Epoch {
    /// None: the line is not about an epoch's capture.
    #[must_use]
    pub fn of(line: &Line) -> Option<Self> {
        // Most lines are none of these, and need not be read.
        if !line.text.contains("\"pause_us\"") {
            return None;
        }
        let fields: serde_json::Value = serde_json::from_str(&line.text).ok()?;
        let phases = fields.as_object()?.iter().filter_map(|(name, value)| {
            let phase = name.strip_suffix("_us").filter(|name| *name != "pause")?;
            Some((phase.to_owned(), value.as_f64()?))
        });
        let mut phases_us: Vec<_> = phases.collect();
        let order = |phase: &str| IN_TIME.iter().position(|known| *known == phase);
        phases_us.sort_by_key(|(phase, _)| order(phase).unwrap_or(IN_TIME.len()));
        Some(Self {
            pages: fields["pages"].as_u64()?,
            pause_us: fields["pause_us"].as_f64()?,
            phases_us,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line {
            at: std::time::Instant::now(),
            text: text.into(),
        }
    }

    #[test]
    fn an_epoch_is_read_with_its_phases_in_time() {
        let text = r#"{"message":"epoch captured","pages":64,"copy_us":40.5,"kick_us":3,"later_us":1,"harvest_us":9,"pause_us":53.5}"#;
        let epoch = Epoch::of(&line(text)).unwrap();
        assert_eq!((epoch.pages, epoch.pause_us), (64, 53.5));
        let names: Vec<_> = epoch
            .phases_us
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["kick", "harvest", "copy", "later"]);
        assert!(Epoch::of(&line(r#"{"message":"protected"}"#)).is_none());
    }
}
