//! The user's terminal: raw while a guest's console is on it, restored on every exit.

use std::io;
use std::sync::Mutex;

use rustix::stdio::stdin;
use rustix::termios::{self, OptionalActions, Termios};

/// The settings to go back to; a static, since a panic hook and `exit` need them too.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// While it lives the terminal is raw: keys go to the guest as they are typed.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw if it is a terminal, and does nothing if it is not.
    ///
    /// # Errors
    /// The terminal does not take the settings.
    pub fn enter() -> io::Result<Option<Self>> {
        if !termios::isatty(stdin()) {
            return Ok(None);
        }
        let original = termios::tcgetattr(stdin())?;
        let mut raw = original.clone();
        raw.make_raw();
        // Newlines of logs and guest still need their carriage return.
        raw.output_modes |= termios::OutputModes::OPOST | termios::OutputModes::ONLCR;
        if let Ok(mut slot) = ORIGINAL.lock() {
            *slot = Some(original);
        }
        termios::tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            before(info);
        }));
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Ok(mut slot) = ORIGINAL.lock()
        && let Some(original) = slot.take()
    {
        let _ = termios::tcsetattr(stdin(), OptionalActions::Now, &original);
    }
}

/// What typed bytes mean.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// Bytes for the guest.
    Input(Vec<u8>),
    /// Ctrl-A x: end the VM.
    Quit,
    /// Ctrl-A p: press the guest's power button.
    PowerButton,
}

/// Finds Ctrl-A x and Ctrl-A p in what is typed; Ctrl-A twice sends one Ctrl-A.
#[derive(Debug, Default)]
pub struct EscapeKeys {
    escaped: bool,
}

const CTRL_A: u8 = 1;

impl EscapeKeys {
    /// Sorts the next bytes typed.
    pub fn feed(&mut self, bytes: &[u8]) -> Typed {
        let mut input = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, CTRL_A) => self.escaped = true,
                (true, b'x') => return Typed::Quit,
                (true, b'p') => return Typed::PowerButton,
                (true, CTRL_A) | (false, _) => input.push(byte),
                (true, _) => input.extend([CTRL_A, byte]),
            }
        }
        Typed::Input(input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_keys() {
        let mut keys = EscapeKeys::default();
        assert_eq!(keys.feed(b"ab\x01"), Typed::Input(b"ab".into()));
        assert_eq!(keys.feed(b"\x01c"), Typed::Input(b"\x01c".into()));
        assert_eq!(keys.feed(b"\x01yx"), Typed::Input(b"\x01yx".into()));
        assert_eq!(keys.feed(b"\x01"), Typed::Input(vec![]));
        assert_eq!(keys.feed(b"x"), Typed::Quit);
        assert_eq!(keys.feed(b"\x01p"), Typed::PowerButton);
    }
}
