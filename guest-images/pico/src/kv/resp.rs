//! The Redis serialization protocol, version 2: requests in, replies out.

use alloc::vec::Vec;
use core::fmt::Write;
use core::ops::Range;

/// Longest inline command and longest length line, in bytes.
const LINE_MAX: usize = 16 * 1024;

/// Bounds of one request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a whole request.
    pub request: usize,
    /// Number of arguments, the command's name included.
    pub arguments: usize,
}

/// The client doesn't speak the protocol, or asks for too much: answer with the text, and
/// close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolError(pub &'static str);

/// What the bytes at hand hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not a whole request yet.
    Incomplete,
    /// One request, of this many bytes.
    Request(usize),
}

/// Looks for one request at the start of `input`; its arguments' places go into
/// `arguments`. An empty line is a request without arguments.
///
/// # Errors
/// Bytes that no continuation makes a request within the limits.
pub fn parse(
    input: &[u8],
    limits: Limits,
    arguments: &mut Vec<Range<usize>>,
) -> Result<Parsed, ProtocolError> {
    arguments.clear();
    match input.first() {
        None => Ok(Parsed::Incomplete),
        Some(b'*') => parse_array(input, limits, arguments),
        Some(_) => parse_inline(input, limits, arguments),
    }
}

/// The end of the line that starts at `start`: of its text, and of its line break.
fn line(input: &[u8], start: usize) -> Result<Option<(usize, usize)>, ProtocolError> {
    let rest = &input[start..];
    match rest.iter().take(LINE_MAX).position(|&byte| byte == b'\n') {
        Some(at) => {
            let text = rest[..at].strip_suffix(b"\r").unwrap_or(&rest[..at]);
            Ok(Some((start + text.len(), start + at + 1)))
        }
        None if rest.len() >= LINE_MAX => Err(ProtocolError("too big inline request")),
        None => Ok(None),
    }
}

fn length(text: &[u8]) -> Option<usize> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

fn parse_array(
    input: &[u8],
    limits: Limits,
    arguments: &mut Vec<Range<usize>>,
) -> Result<Parsed, ProtocolError> {
    let Some((end, mut at)) = line(input, 1)? else {
        return Ok(Parsed::Incomplete);
    };
    let count = match &input[1..end] {
        b"-1" => 0,
        text => length(text)
            .filter(|&count| count <= limits.arguments)
            .ok_or(ProtocolError("invalid multibulk length"))?,
    };
    for _ in 0..count {
        match input.get(at) {
            None => return Ok(Parsed::Incomplete),
            Some(b'$') => {}
            Some(_) => return Err(ProtocolError("expected '$'")),
        }
        let Some((end, start)) = line(input, at + 1)? else {
            return Ok(Parsed::Incomplete);
        };
        let length = length(&input[at + 1..end])
            .filter(|&length| start.saturating_add(length).saturating_add(2) <= limits.request)
            .ok_or(ProtocolError("invalid bulk length"))?;
        let end = start + length;
        match input.get(end..end + 2) {
            None => return Ok(Parsed::Incomplete),
            Some(b"\r\n") => {}
            Some(_) => return Err(ProtocolError("expected the end of a bulk string")),
        }
        arguments.push(start..end);
        at = end + 2;
    }
    Ok(Parsed::Request(at))
}

fn parse_inline(
    input: &[u8],
    limits: Limits,
    arguments: &mut Vec<Range<usize>>,
) -> Result<Parsed, ProtocolError> {
    let Some((end, next)) = line(input, 0)? else {
        return Ok(Parsed::Incomplete);
    };
    let mut at = 0;
    for word in input[..end].split(u8::is_ascii_whitespace) {
        if !word.is_empty() {
            arguments.push(at..at + word.len());
        }
        at += word.len() + 1;
    }
    if arguments.len() > limits.arguments {
        return Err(ProtocolError("too many arguments"));
    }
    Ok(Parsed::Request(next))
}

/// A simple string, such as "OK".
pub fn simple(out: &mut Vec<u8>, text: &str) {
    out.push(b'+');
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// An error; line breaks in it become blanks.
pub fn error(out: &mut Vec<u8>, text: &str) {
    out.push(b'-');
    out.extend(
        text.bytes()
            .map(|byte| if byte.is_ascii_control() { b' ' } else { byte }),
    );
    out.extend_from_slice(b"\r\n");
}

/// An integer.
pub fn integer(out: &mut Vec<u8>, value: i64) {
    header(out, b':', value);
}

/// A bulk string; `None` is the null bulk string.
pub fn bulk(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        None => out.extend_from_slice(b"$-1\r\n"),
        Some(value) => {
            header(out, b'$', value.len() as i64);
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// The start of an array of `count` replies, which follow.
pub fn array(out: &mut Vec<u8>, count: usize) {
    header(out, b'*', count as i64);
}

fn header(out: &mut Vec<u8>, kind: u8, value: i64) {
    out.push(kind);
    // Writing into a Vec can't fail.
    let _ = write!(Text(out), "{value}\r\n");
}

/// Lets numbers be formatted straight into a reply.
pub struct Text<'a>(pub &'a mut Vec<u8>);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        request: 1000,
        arguments: 4,
    };

    fn parsed(input: &[u8]) -> Result<(Parsed, Vec<Vec<u8>>), ProtocolError> {
        let mut places = Vec::new();
        let result = parse(input, LIMITS, &mut places)?;
        Ok((
            result,
            places
                .into_iter()
                .map(|place| input[place].to_vec())
                .collect(),
        ))
    }

    #[test]
    fn arrays_may_hold_any_bytes() {
        let input = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\r\n\0\xff\r\n*1\r\n";
        let (result, arguments) = parsed(input).unwrap();
        assert_eq!(result, Parsed::Request(input.len() - 4));
        assert_eq!(arguments, [&b"SET"[..], b"k", b"\r\n\0\xff"]);
    }

    #[test]
    fn every_prefix_of_a_request_is_incomplete() {
        let input = b"*2\r\n$3\r\nGET\r\n$10\r\n0123456789\r\n";
        for length in 0..input.len() {
            assert_eq!(
                parsed(&input[..length]).unwrap().0,
                Parsed::Incomplete,
                "{length} bytes"
            );
        }
        assert_eq!(parsed(input).unwrap().0, Parsed::Request(input.len()));
    }

    #[test]
    fn inline_commands_are_split_at_blanks() {
        let (result, arguments) = parsed(b" SET  a b\r\nrest").unwrap();
        assert_eq!(result, Parsed::Request(11));
        assert_eq!(arguments, [&b"SET"[..], b"a", b"b"]);
        assert_eq!(parsed(b"\r\n").unwrap(), (Parsed::Request(2), vec![]));
    }

    #[test]
    fn what_exceeds_the_limits_is_refused_before_it_is_there() {
        for input in [
            &b"*5\r\n"[..],
            b"*-7\r\n",
            b"*x\r\n",
            b"*1\r\n$2000\r\n",
            b"*1\r\n$18446744073709551615\r\n",
            b"*1\r\n$-1\r\n",
            b"*1\r\n:1\r\n",
            b"*1\r\n$1\r\nabc",
            b"a b c d e\r\n",
        ] {
            assert!(parsed(input).is_err(), "{}", input.escape_ascii());
        }
        assert!(parsed(&[b'x'; LINE_MAX]).is_err());
        assert!(parsed(&[b'*'; LINE_MAX + 1]).is_err());
    }

    #[test]
    fn replies_have_their_form() {
        let mut out = Vec::new();
        simple(&mut out, "OK");
        error(&mut out, "ERR a\r\nb");
        integer(&mut out, i64::MIN);
        bulk(&mut out, None);
        bulk(&mut out, Some(b"xy"));
        array(&mut out, 2);
        let expected = "+OK\r\n-ERR a  b\r\n:-9223372036854775808\r\n$-1\r\n$2\r\nxy\r\n*2\r\n";
        assert_eq!(out, expected.as_bytes());
    }
}
