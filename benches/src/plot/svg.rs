//! The few SVG elements that the drawings are made of (SVG 1.1).

use std::fmt::Write as _;

use super::scale::{Scale, short};

/// Width of every drawing.
pub(super) const WIDTH: f64 = 720.0;
/// Room at the left for the names and numbers of the vertical axis.
pub(super) const LEFT: f64 = 70.0;
/// Room at the right.
pub(super) const RIGHT: f64 = 20.0;
/// Room at the top for the title and the name of the vertical axis.
pub(super) const TOP: f64 = 46.0;

const COLOURS: [&str; 8] = [
    "#3b6ea5", "#d1773c", "#4c9a6a", "#a64d79", "#8a7f3c", "#5b5ba8", "#b94a48", "#5f9ea0",
];

/// Of the series with that number.
pub(super) fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

/// An `svg` element that grows.
pub(super) struct Svg {
    body: String,
    height: f64,
}

/// On which side of a point a text is.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    pub(super) fn new(height: f64, title: &str) -> Self {
        let mut svg = Self {
            body: String::new(),
            height,
        };
        svg.styled_text((LEFT, 18.0), Anchor::Start, " class=\"title\"", title);
        svg
    }

    pub(super) fn rectangle(&mut self, at: (f64, f64), size: (f64, f64), fill: &str, says: &str) {
        let ((x, y), (width, height)) = (at, size);
        self.add(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"><title>{}</title></rect>",
            escape(says)
        ));
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.add(format_args!(
            "<line class=\"grid\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    pub(super) fn curve(&mut self, points: &[(f64, f64)], stroke: &str) {
        let points = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}"));
        let points = points.collect::<Vec<_>>().join(" ");
        self.add(format_args!(
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"2\"/>"
        ));
    }

    pub(super) fn dot(&mut self, at: (f64, f64), radius: f64, fill: &str, says: &str) {
        let (x, y) = at;
        self.add(format_args!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{fill}\" fill-opacity=\"0.7\"><title>{}</title></circle>",
            escape(says)
        ));
    }

    /// Lines across the drawing down to `bottom`, with their numbers and the unit below.
    pub(super) fn horizontal_axis(&mut self, axis: &Scale, bottom: f64, unit: &str) {
        for tick in axis.ticks() {
            let at = axis.place(tick);
            self.line((at, TOP), (at, bottom));
            let number = format!("{}{unit}", short(tick));
            self.text((at, bottom + 15.0), Anchor::Middle, &number);
        }
    }

    pub(super) fn text(&mut self, at: (f64, f64), anchor: Anchor, text: &str) {
        self.styled_text(at, anchor, "", text);
    }

    fn styled_text(&mut self, at: (f64, f64), anchor: Anchor, style: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.add(format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\"{style}>{}</text>",
            at.0,
            at.1,
            escape(text)
        ));
    }

    /// Names with their colours, in a line.
    pub(super) fn legend(&mut self, y: f64, names: &[String]) {
        let mut x = LEFT;
        for (number, name) in names.iter().enumerate() {
            self.rectangle((x, y - 9.0), (10.0, 10.0), colour(number), name);
            self.text((x + 14.0, y), Anchor::Start, name);
            // Letters of the report's font are about so wide.
            x += 30.0 + 6.6 * name.chars().count() as f64;
        }
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing into a string does not fail.
        let _ = writeln!(self.body, "{element}");
    }

    pub(super) fn finish(self) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {0}\" width=\"{WIDTH}\" height=\"{0}\" role=\"img\">\n{1}</svg>\n",
            self.height, self.body
        )
    }
}

/// The text without anything that has a meaning in XML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
