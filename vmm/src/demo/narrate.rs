//! How the demo speaks.

use std::io::Write as _;
use std::time::Instant;

/// Tells the story on the standard output, with the time since its start.
#[derive(Debug)]
pub(super) struct Narrator {
    began: Instant,
}

impl Narrator {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
        }
    }

    pub(super) fn title(&self, text: &str) {
        say(&format!("{text}\n"));
    }

    /// Something happens.
    pub(super) fn step(&self, text: &str) {
        say(&format!(
            "[{:4.1}s] {text}",
            self.began.elapsed().as_secs_f32()
        ));
    }

    /// More about the step before.
    pub(super) fn detail(&self, text: &str) {
        say(&format!("          {text}"));
    }

    /// What a user would type for the step before.
    pub(super) fn command(&self, text: &str) {
        say(&format!("          $ {text}"));
    }

    /// The last line.
    pub(super) fn verdict(&self, text: &str) {
        say(text);
    }
}

/// Writes a line. A reader that has gone away (`evertwin demo | head`) must not end the demo before it tidies up.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// `12345` as `12,345`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(super::grouped(number), text);
        }
    }
}
