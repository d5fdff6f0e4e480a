//! Events after a first one, each run's as a dot.

use super::Timeline;
use super::scale::Scale;
use super::svg::{Anchor, LEFT, RIGHT, Svg, TOP, WIDTH, colour};

const STEP: f64 = 32.0;
/// Room for the names of the events.
const NAMES: f64 = 170.0;

impl Timeline {
    pub(super) fn to_svg(&self) -> String {
        let bottom = TOP + 8.0 + STEP * self.events.len() as f64;
        let mut svg = Svg::new(bottom + 36.0, &self.title);
        let times = self
            .events
            .iter()
            .flat_map(|(_, times)| times.iter().copied());
        let x = Scale::new(false, times, (LEFT + NAMES, WIDTH - RIGHT));
        svg.horizontal_axis(&x, bottom, " ms");
        for (number, (name, times)) in self.events.iter().enumerate() {
            let middle = TOP + 8.0 + STEP * (number as f64 + 0.5);
            svg.line((LEFT + NAMES, middle), (WIDTH - RIGHT, middle));
            svg.text((LEFT + NAMES - 8.0, middle + 4.0), Anchor::End, name);
            for time in times {
                let says = format!("{name}: {time:.2} ms");
                svg.dot((x.place(*time), middle), 5.0, colour(number), &says);
            }
        }
        svg.finish()
    }
}
