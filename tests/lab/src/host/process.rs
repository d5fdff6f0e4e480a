//! A process on a host, as the lab sees it.

use std::fs::OpenOptions;
use std::io::{self, PipeWriter, Write as _};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use evertwin::lab::events::{Line, LineLog, NoLine};

use crate::error::LabError;
use crate::lab::HostName;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// Its host's power went.
    WithItsHost,
}

/// A process that was started on a host. It is not killed when this is dropped, but with its host.
#[derive(Clone, Debug)]
pub struct RemoteProcess {
    host: HostName,
    name: String,
    patience: Duration,
    console: Arc<LineLog>,
    log: Arc<LineLog>,
    ended: Arc<(Mutex<Option<Ended>>, Condvar)>,
}

/// Where a process's output and end are told to; the followers end when this goes.
#[derive(Debug)]
pub(super) struct Sinks {
    console: PipeWriter,
    log: PipeWriter,
    ended: Arc<(Mutex<Option<Ended>>, Condvar)>,
}

impl Sinks {
    pub(super) fn write(&mut self, error: bool, text: &str) {
        let sink = if error {
            &mut self.log
        } else {
            &mut self.console
        };
        // The follower reads until the end, so there is always a reader.
        let _ = sink.write_all(text.as_bytes());
    }

    pub(super) fn end(self, how: Ended) {
        let (state, changed) = &*self.ended;
        *state.lock().unwrap_or_else(PoisonError::into_inner) = Some(how);
        changed.notify_all();
    }
}

impl RemoteProcess {
    /// A process whose waits last no longer than `patience`.
    pub(super) fn new(
        host: HostName,
        name: &str,
        logs: &Path,
        patience: Duration,
    ) -> Result<(Self, Sinks), LabError> {
        let follow = |kind: &str| -> Result<_, LabError> {
            let path = logs.join(format!("host-{host}.{name}.{kind}"));
            let what = format!("making {}", path.display());
            let open = || -> io::Result<_> {
                let copy = OpenOptions::new().create(true).append(true).open(&path)?;
                Ok((io::pipe()?, copy))
            };
            let ((reader, writer), copy) = open().map_err(LabError::io(what))?;
            // Its thread ends with the writer.
            let (log, _follower) = LineLog::follow(reader, copy);
            Ok((log, writer))
        };
        let (console, console_sink) = follow("out")?;
        let (log, log_sink) = follow("log")?;
        let ended = Arc::default();
        let sinks = Sinks {
            console: console_sink,
            log: log_sink,
            ended: Arc::clone(&ended),
        };
        let process = Self {
            host,
            name: name.to_owned(),
            patience,
            console,
            log,
            ended,
        };
        Ok((process, sinks))
    }

    /// The host it runs on.
    #[must_use]
    pub fn host(&self) -> HostName {
        self.host
    }

    /// What the lab calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its standard output; of a monitor, the guest's serial console.
    #[must_use]
    pub fn console(&self) -> &LineLog {
        &self.console
    }

    /// Its standard error; of a monitor, the log.
    #[must_use]
    pub fn log(&self) -> &LineLog {
        &self.log
    }

    /// Waits for an event of a monitor's log by its message, from the process's start on.
    ///
    /// # Errors
    /// It does not come in time, or the process ends before.
    pub fn await_event(&self, message: &str) -> Result<Line, LabError> {
        self.await_event_since(0, message)
    }

    /// Waits for an event from line `from` of the log on.
    ///
    /// # Errors
    /// It does not come in time, or the process ends before.
    pub fn await_event_since(&self, from: usize, message: &str) -> Result<Line, LabError> {
        self.await_one_of_since(from, &[message])
    }

    /// Waits for one of these events, whichever comes first, from line `from` of the log on.
    ///
    /// # Errors
    /// None comes in time, or the process ends before.
    pub fn await_one_of_since(&self, from: usize, messages: &[&str]) -> Result<Line, LabError> {
        let wanted = |line: &Line| {
            let message = line.message();
            message.is_some_and(|message| messages.contains(&&*message))
        };
        let found = self.log.wait(from, self.patience, wanted);
        found.map_err(|why| self.no_line(&self.log, why, &messages.join("\" or \"")))
    }

    /// Waits for a line of its log that contains `text`.
    ///
    /// # Errors
    /// It does not come in time, or the process ends before.
    pub fn await_log(&self, text: &str) -> Result<Line, LabError> {
        let found = self
            .log
            .wait(0, self.patience, |line| line.text.contains(text));
        found.map_err(|why| self.no_line(&self.log, why, text))
    }

    /// Waits for a line of its output that contains `text`, from line `from` on.
    ///
    /// # Errors
    /// It does not come in time, or the process ends before.
    pub fn await_output(&self, from: usize, text: &str) -> Result<Line, LabError> {
        self.await_line(from, text, |line| line.text.contains(text))
    }

    /// Waits for a line of its output, from line `from` on; `what` says which.
    ///
    /// # Errors
    /// It does not come in time, or the process ends before.
    pub fn await_line(
        &self,
        from: usize,
        what: &str,
        wanted: impl Fn(&Line) -> bool,
    ) -> Result<Line, LabError> {
        let found = self.console.wait(from, self.patience, wanted);
        found.map_err(|why| self.no_line(&self.console, why, what))
    }

    /// Whether an event has been seen from line `from` of the log on.
    #[must_use]
    pub fn has_event_since(&self, from: usize, message: &str) -> bool {
        let wanted = |line: &Line| line.message().as_deref() == Some(message);
        self.log.lines().iter().skip(from).any(wanted)
    }

    /// How it ended; none while it runs.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        *self.ended.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It goes on running.
    pub fn await_end(&self) -> Result<Ended, LabError> {
        let (state, changed) = &*self.ended;
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) = changed
            .wait_timeout_while(state, self.patience, |ended| ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        state.ok_or_else(|| self.no_line(&self.log, NoLine::Timeout, "its end"))
    }

    fn no_line(&self, log: &LineLog, why: NoLine, what: &str) -> LabError {
        let (who, what) = (format!("{} on {}", self.name, self.host), what.to_owned());
        let last = log.lines().pop().map(|line| line.text).unwrap_or_default();
        match why {
            NoLine::Timeout => LabError::Timeout {
                who,
                what,
                after: self.patience,
                last,
            },
            NoLine::Ended => LabError::Gone { who, what, last },
        }
    }
}
