//! The operator's end.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Reply, Request, default_directory};

/// Longest answer in bytes.
const MAX_REPLY: u64 = 64 << 10;

/// Longer than a twin takes to answer anything.
const PATIENCE: Duration = Duration::from_secs(70);

/// A twin could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no twin.
    #[error("no twin answers at {}: {source}; is it running, and on this host?", path.display())]
    NoTwin {
        /// Its socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It did not answer, or in no way that is understood.
    #[error("the twin at {} gave no usable answer: {source}; is it of the same release?", path.display())]
    NoAnswer {
        /// Its socket.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// Asks the twin whose socket is at `path`.
///
/// # Errors
/// Nobody is there, or the answer is none.
pub fn ask(path: &Path, request: Request) -> Result<Reply, ClientError> {
    let stream = UnixStream::connect(path).map_err(|source| ClientError::NoTwin {
        path: path.into(),
        source,
    })?;
    converse(&stream, request).map_err(|source| ClientError::NoAnswer {
        path: path.into(),
        source,
    })
}

fn converse(mut stream: &UnixStream, request: Request) -> io::Result<Reply> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = serde_json::to_string(&request)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_REPLY)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// The sockets of all twins of this host that have theirs in the usual place.
pub fn sockets() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(default_directory()).into_iter().flatten();
    let mut sockets: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .collect();
    sockets.sort();
    sockets
}
