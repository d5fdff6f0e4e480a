//! What a process says, line by line, with a way to wait for a line.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The longest line that is kept whole; what follows is cut off.
const LONGEST_LINE: u64 = 64 << 10;

/// One line of output.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it was read.
    pub at: Instant,
    /// The text without its line end.
    pub text: String,
}

impl Line {
    /// The `message` of a JSON log line.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        self.field("message").map(|value| {
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        })
    }

    /// A field of a JSON log line.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<Value> {
        let mut line: Value = serde_json::from_str(&self.text).ok()?;
        let found = match line
            .get_mut("fields")
            .and_then(|fields| fields.get_mut(name))
        {
            Some(field) => field,
            None => line.get_mut(name)?,
        };
        Some(found.take())
    }
}

/// All lines that a process has written to one of its outputs.
#[derive(Debug, Default)]
pub struct LineLog {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    ended: bool,
}

/// Why a wait for a line ended without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLine {
    /// The output was closed.
    Ended,
    /// The time was over.
    Timeout,
}

impl LineLog {
    /// Follows `source` on a thread of its own until its end, and keeps a copy of every byte in `copy`.
    pub fn follow(source: impl Read + Send + 'static, copy: File) -> (Arc<Self>, JoinHandle<()>) {
        let log = Arc::new(Self::default());
        let follower = Arc::clone(&log);
        let thread = std::thread::spawn(move || {
            // A read error is the end of the output as well.
            let _ = follower.read_all(source, copy);
            follower.lock().ended = true;
            follower.grown.notify_all();
        });
        (log, thread)
    }

    fn read_all(&self, source: impl Read, mut copy: File) -> io::Result<()> {
        let mut source = BufReader::new(source);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            if (&mut source)
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut bytes)?
                == 0
            {
                return Ok(());
            }
            let at = Instant::now();
            // Waiting for the line matters more than the copy of it on a full disk.
            let _ = copy.write_all(&bytes);
            let text = String::from_utf8_lossy(&bytes)
                .trim_end_matches(['\r', '\n'])
                .to_owned();
            self.lock().lines.push(Line { at, text });
            self.grown.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.lock().lines.clone()
    }

    /// Number of lines so far; a place to start a later [`LineLog::wait`] from.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().lines.len()
    }

    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for the first line from line number `from` on that `wanted` accepts.
    ///
    /// # Errors
    /// [`NoLine`] if the output ends or `timeout` passes first.
    pub fn wait(
        &self,
        from: usize,
        timeout: Duration,
        wanted: impl Fn(&Line) -> bool,
    ) -> Result<Line, NoLine> {
        let deadline = Instant::now() + timeout;
        let mut seen = from;
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.iter().skip(seen).find(|line| wanted(line)) {
                return Ok(line.clone());
            }
            seen = seen.max(state.lines.len());
            if state.ended {
                return Err(NoLine::Ended);
            }
            let Some(left) = deadline
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())
            else {
                return Err(NoLine::Timeout);
            };
            (state, _) = self
                .grown
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_gives_its_message_and_fields() {
        let line = |text: &str| Line {
            at: Instant::now(),
            text: text.into(),
        };
        let nested =
            line(r#"{"level":"INFO","fields":{"message":"protected","epoch":7},"target":"x"}"#);
        assert_eq!(nested.message().as_deref(), Some("protected"));
        assert_eq!(nested.field("epoch"), Some(7.into()));
        let flat = line(r#"{"level":"INFO","message":"solo"}"#);
        assert_eq!(flat.message().as_deref(), Some("solo"));
        assert_eq!(line("no json").message(), None);
    }

    #[test]
    fn waiting_ends_with_the_line_the_end_or_the_time() {
        let (reader, mut writer) = io::pipe().unwrap();
        let (log, follower) = LineLog::follow(reader, tempfile::tempfile().unwrap());
        writer.write_all(b"one\r\ntwo\n").unwrap();
        let second = log
            .wait(0, Duration::from_secs(5), |line| line.text == "two")
            .unwrap();
        assert_eq!(second.text, "two");
        let short = Duration::from_millis(20);
        assert_eq!(log.wait(2, short, |_| true).unwrap_err(), NoLine::Timeout);
        drop(writer);
        assert_eq!(
            log.wait(2, Duration::from_secs(5), |_| true).unwrap_err(),
            NoLine::Ended
        );
        follower.join().unwrap();
        assert_eq!(log.lines().len(), 2);
    }
}
