//! A client that asks one thing after the other.

use std::io::{self, BufReader, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::resp::{self, Reply};

/// A server that says nothing for so long has died.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends commands for so long, each once the one before is answered, and gives the time of every round trip. `command` appends
/// the next one, as [`resp::encode`] does.
///
/// # Errors
/// The socket's, and what the server answers if it refuses a command.
pub fn round_trips(
    mut stream: &TcpStream,
    time: Duration,
    mut command: impl FnMut(&mut Vec<u8>),
) -> io::Result<Vec<Duration>> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answers = BufReader::new(stream);
    let (mut request, mut times) = (Vec::new(), Vec::new());
    let until = Instant::now() + time;
    while Instant::now() < until {
        request.clear();
        command(&mut request);
        let begun = Instant::now();
        stream.write_all(&request)?;
        let reply = resp::read(&mut answers).map_err(in_words)?;
        times.push(begun.elapsed());
        if let Reply::Error(text) = reply {
            return Err(io::Error::other(text));
        }
    }
    Ok(times)
}

/// A socket's own word for a time that is over says nothing to people.
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer for {} s", PATIENCE.as_secs()),
        ),
        _ => error,
    }
}
