//! Bars made of parts.

use super::Bars;
use super::scale::Scale;
use super::svg::{Anchor, LEFT, RIGHT, Svg, TOP, WIDTH, colour};
use crate::report::Unit;

const BAR: f64 = 26.0;
const STEP: f64 = 40.0;
/// Room for the names of the bars.
const NAMES: f64 = 130.0;

impl Bars {
    pub(super) fn to_svg(&self) -> String {
        let bottom = TOP + 8.0 + STEP * self.bars.len() as f64;
        let mut svg = Svg::new(bottom + 56.0, &self.title);
        let mut parts: Vec<String> = Vec::new();
        for (part, _) in self.bars.iter().flat_map(|(_, parts)| parts) {
            if !parts.contains(part) {
                parts.push(part.clone());
            }
        }
        let sum = |bar: &[(String, f64)]| bar.iter().map(|(_, us)| us).sum::<f64>();
        let sums = self.bars.iter().map(|(_, bar)| sum(bar));
        let x = Scale::new(false, sums, (LEFT + NAMES, WIDTH - RIGHT - 60.0));
        svg.horizontal_axis(&x, bottom, " us");
        for (number, (name, bar)) in self.bars.iter().enumerate() {
            let top = TOP + 8.0 + STEP * number as f64;
            let middle = top + BAR / 2.0 + 4.0;
            svg.text((LEFT + NAMES - 8.0, middle), Anchor::End, name);
            let mut before = 0.0;
            for (part, us) in bar {
                let (from, to) = (x.place(before), x.place(before + us));
                let fill = colour(parts.iter().position(|known| known == part).unwrap_or(0));
                let says = format!("{name}, {part}: {}", Unit::Microseconds.show(*us));
                svg.rectangle((from, top), (to - from, BAR), fill, &says);
                before += us;
            }
            let shown = Unit::Microseconds.show(before);
            svg.text((x.place(before) + 6.0, middle), Anchor::Start, &shown);
        }
        svg.legend(bottom + 42.0, &parts);
        svg.finish()
    }
}
