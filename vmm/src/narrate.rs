//! How commands speak that have much to tell.

use std::io::{self, Write};
use std::time::Instant;

/// Tells a story, with the time since its start.
#[derive(Debug)]
pub(crate) struct Narrator {
    began: Instant,
    out: Out,
}

#[derive(Debug)]
enum Out {
    Standard,
    Error,
}

impl Narrator {
    /// On the standard output.
    pub(crate) fn on_stdout() -> Self {
        Self::on(Out::Standard)
    }

    /// On standard error: the standard output is for something else.
    pub(crate) fn on_stderr() -> Self {
        Self::on(Out::Error)
    }

    fn on(out: Out) -> Self {
        Self {
            began: Instant::now(),
            out,
        }
    }

    pub(crate) fn title(&self, text: &str) {
        self.say(&format!("{text}\n"));
    }

    /// Something happens.
    pub(crate) fn step(&self, text: &str) {
        self.say(&format!(
            "[{:4.1}s] {text}",
            self.began.elapsed().as_secs_f32()
        ));
    }

    /// More about the step before.
    pub(crate) fn detail(&self, text: &str) {
        self.say(&format!("          {text}"));
    }

    /// What a user would type for the step before.
    pub(crate) fn command(&self, text: &str) {
        self.say(&format!("          $ {text}"));
    }

    /// The last line.
    pub(crate) fn verdict(&self, text: &str) {
        self.say(text);
    }

    /// Writes a line. A reader that has gone away (`evertwin demo | head`) must not end the command before it tidies up.
    fn say(&self, line: &str) {
        let mut out: Box<dyn Write> = match self.out {
            Out::Standard => Box::new(io::stdout().lock()),
            Out::Error => Box::new(io::stderr().lock()),
        };
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// `12345` as `12,345`.
pub(crate) fn grouped(number: u64) -> String {
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
