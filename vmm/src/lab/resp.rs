//! As much of the Redis protocol (RESP2) as a judging client needs.

use std::io::{self, BufRead, Read as _};

/// The longest bulk string or array that a server may answer with.
const LIMIT: usize = 1 << 20;

/// One answer of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Simple(String),
    /// `-ERR ...`
    Error(String),
    /// `:42`
    Integer(i64),
    /// `$3`, or none for a key that does not exist.
    Bulk(Option<Vec<u8>>),
    /// `*2`
    Array(Vec<Reply>),
}

/// Appends one command to `out` as an array of bulk strings.
pub fn encode(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// Reads one answer.
///
/// # Errors
/// Those of the reader; `UnexpectedEof` if the server closed the connection; `InvalidData` for bytes that are no
/// answer.
pub fn read(input: &mut impl BufRead) -> io::Result<Reply> {
    read_nested(input, 0)
}

fn read_nested(input: &mut impl BufRead, depth: u32) -> io::Result<Reply> {
    let line = read_line(input)?;
    let (kind, text) = line
        .split_at_checked(1)
        .ok_or_else(|| invalid("an empty line"))?;
    match kind {
        "+" => Ok(Reply::Simple(text.to_owned())),
        "-" => Ok(Reply::Error(text.to_owned())),
        ":" => Ok(Reply::Integer(text.parse().map_err(|_| invalid(&line))?)),
        "$" if text == "-1" => Ok(Reply::Bulk(None)),
        "$" => {
            let mut bytes = vec![0; parse_length(text)? + 2];
            input.read_exact(&mut bytes)?;
            if !bytes.ends_with(b"\r\n") {
                return Err(invalid("a bulk string without its end"));
            }
            bytes.truncate(bytes.len() - 2);
            Ok(Reply::Bulk(Some(bytes)))
        }
        "*" if depth == 0 => (0..parse_length(text)?)
            .map(|_| read_nested(input, depth + 1))
            .collect::<io::Result<_>>()
            .map(Reply::Array),
        _ => Err(invalid(&line)),
    }
}

fn read_line(input: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    input.take(LIMIT as u64).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the server closed the connection",
        ));
    }
    let text = line
        .strip_suffix(b"\r\n")
        .ok_or_else(|| invalid("a line without its end"))?;
    String::from_utf8(text.to_vec()).map_err(|_| invalid("a line that is not UTF-8"))
}

fn parse_length(text: &str) -> io::Result<usize> {
    text.parse()
        .ok()
        .filter(|length| *length <= LIMIT)
        .ok_or_else(|| invalid(text))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("not a Redis answer: {what:?}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_answer_is_read() {
        let bytes = b"+OK\r\n-ERR no\r\n:42\r\n$3\r\na\r\n\r\n$-1\r\n*2\r\n$1\r\nx\r\n$-1\r\n";
        let mut input = &bytes[..];
        let expected = [
            Reply::Simple("OK".into()),
            Reply::Error("ERR no".into()),
            Reply::Integer(42),
            Reply::Bulk(Some(b"a\r\n".to_vec())),
            Reply::Bulk(None),
            Reply::Array(vec![Reply::Bulk(Some(b"x".to_vec())), Reply::Bulk(None)]),
        ];
        for reply in expected {
            assert_eq!(read(&mut input).unwrap(), reply);
        }
        assert_eq!(
            read(&mut input).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn rubbish_is_refused_and_bounded() {
        for bytes in [
            &b"?\r\n"[..],
            b"\r\n",
            b":x\r\n",
            b"$99999999\r\n",
            b"$1\r\nabc\r\n",
            b"*1\r\n*1\r\n:1\r\n",
            b"+half",
        ] {
            let kind = read(&mut &bytes[..]).unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let mut out = Vec::new();
        encode(&mut out, &[b"SET", b"k", b"\r\n"]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\r\n\r\n");
    }
}
