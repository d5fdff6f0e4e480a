//! The serial console: output by polling, no input.

use core::fmt::{self, Write};

use super::port;

const DATA: u16 = 0x3f8;
const FIFO_CONTROL: u16 = DATA + 2;
const LINE_CONTROL: u16 = DATA + 3;
const LINE_STATUS: u16 = DATA + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// Depth of a 16550A's transmit FIFO in bytes.
const FIFO_DEPTH: usize = 16;

/// Sets the line to 8N1 and turns the FIFO on.
pub(crate) fn init() {
    port::write(LINE_CONTROL, 0x03);
    port::write(FIFO_CONTROL, 0x07);
}

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for chunk in text.as_bytes().chunks(FIFO_DEPTH) {
            while port::read(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
            for &byte in chunk {
                port::write(DATA, byte);
            }
        }
        Ok(())
    }
}

/// A line is put together first, so that it reaches the wire in few pieces.
struct Line {
    bytes: [u8; 256],
    used: usize,
}

impl Line {
    fn flush(&mut self) {
        if let Ok(text) = core::str::from_utf8(&self.bytes[..self.used]) {
            let _ = Console.write_str(text);
        }
        self.used = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.used + text.len() > self.bytes.len() {
            self.flush();
        }
        if text.len() > self.bytes.len() {
            return Console.write_str(text);
        }
        self.bytes[self.used..self.used + text.len()].copy_from_slice(text.as_bytes());
        self.used += text.len();
        Ok(())
    }
}

/// Prints one line, with `pico: ` before it.
pub(crate) fn print_line(arguments: fmt::Arguments<'_>) {
    let mut line = Line {
        bytes: [0; 256],
        used: 0,
    };
    let _ = write!(line, "pico: {arguments}\r\n");
    line.flush();
}

/// Prints one line on the serial console.
macro_rules! say {
    ($($argument:tt)*) => { $crate::hardware::console::print_line(format_args!($($argument)*)) };
}
pub(crate) use say;
