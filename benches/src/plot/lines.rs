//! Curves.

use super::Lines;
use super::scale::{Scale, short};
use super::svg::{Anchor, LEFT, RIGHT, Svg, TOP, WIDTH, colour};

const HEIGHT: f64 = 380.0;
/// Room for the horizontal axis's numbers and name, and the legend.
const BOTTOM: f64 = 66.0;

impl Lines {
    pub(super) fn to_svg(&self) -> String {
        let mut svg = Svg::new(HEIGHT, &self.title);
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        let x = Scale::new(self.x.log, points().map(|(x, _)| *x), (LEFT, right));
        let y = Scale::new(self.y.log, points().map(|(_, y)| *y), (bottom, TOP));
        svg.horizontal_axis(&x, bottom, "");
        for tick in y.ticks() {
            let at = y.place(tick);
            svg.line((LEFT, at), (right, at));
            svg.text((LEFT - 6.0, at + 4.0), Anchor::End, &short(tick));
        }
        svg.text((right, bottom + 31.0), Anchor::End, &self.x.label);
        svg.text((8.0, TOP - 8.0), Anchor::Start, &self.y.label);
        for (number, (name, points)) in self.series.iter().enumerate() {
            let places = points.iter().map(|(px, py)| (x.place(*px), y.place(*py)));
            let places: Vec<_> = places.collect();
            svg.curve(&places, colour(number));
            // A distribution has too many points to look at each.
            if points.len() <= 12 {
                for ((px, py), place) in points.iter().zip(&places) {
                    let says = format!("{name}: {} at {}", short(*py), short(*px));
                    svg.dot(*place, 3.5, colour(number), &says);
                }
            }
        }
        let names: Vec<_> = self.series.iter().map(|(name, _)| name.clone()).collect();
        svg.legend(HEIGHT - 12.0, &names);
        svg.finish()
    }
}
