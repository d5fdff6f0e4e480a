//! A child process whose output is followed, and that never outlives its owner.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::LabError;
use super::events::{Line, LineLog, NoLine};

/// How long a killed process may take to be gone.
const END_OF_KILLED: Duration = Duration::from_secs(10);

/// A running process of the lab. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    who: String,
    child: Child,
    handle: Handle,
    log_path: PathBuf,
    /// Its standard output: the guest's serial console.
    console: Arc<LineLog>,
    /// Its standard error: the log.
    log: Arc<LineLog>,
    followers: Vec<JoinHandle<()>>,
}

/// Names one process for good: unlike a process id it is never reused.
#[derive(Clone, Debug)]
pub struct Handle(Arc<OwnedFd>);

impl Handle {
    /// Sends a signal; a process that has ended does not mind.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(self.0.as_fd(), signal);
    }

    /// Waits for the process's end; false if it takes longer than `timeout`.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let time = Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&time)) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(ready) => return ready > 0,
                Err(_) => return false,
            }
        }
    }
}

impl Process {
    /// Starts `command` with no input, following its outputs into `<name>.console` and `<name>.log` in `directory`
    /// (appended to, if the process has run before).
    ///
    /// # Errors
    /// [`LabError::Io`] naming the program or file.
    pub fn start(mut command: Command, name: &str, directory: &Path) -> Result<Self, LabError> {
        let log_path = directory.join(format!("{name}.log"));
        let open = |path: &Path| {
            let opened = OpenOptions::new().create(true).append(true).open(path);
            opened.map_err(LabError::io(format!("opening {}", path.display())))
        };
        let console_copy = open(&directory.join(format!("{name}.console")))?;
        let log_copy = open(&log_path)?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .spawn()
            .map_err(LabError::io(format!("starting {program}")))?;
        let handle = open_handle(&child).inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        });
        let handle = handle.map_err(LabError::io(format!("watching {program}")))?;
        let (Some(output), Some(error)) = (child.stdout.take(), child.stderr.take()) else {
            unreachable!("both outputs are piped above");
        };
        let (console, console_follower) = LineLog::follow(output, console_copy);
        let (log, log_follower) = LineLog::follow(error, log_copy);
        let followers = vec![console_follower, log_follower];
        Ok(Self {
            who: name.to_owned(),
            child,
            handle,
            log_path,
            console,
            log,
            followers,
        })
    }

    /// The process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A handle that outlives a borrow of this.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The serial console's lines.
    #[must_use]
    pub fn console(&self) -> &LineLog {
        &self.console
    }

    /// The log's lines.
    #[must_use]
    pub fn log(&self) -> &LineLog {
        &self.log
    }

    /// Waits for a log event by its message, from the process's start on.
    ///
    /// # Errors
    /// [`LabError::Timeout`], or [`LabError::Ended`] if the process ends first.
    pub fn wait_for_event(&mut self, message: &str, timeout: Duration) -> Result<Line, LabError> {
        let wanted = |line: &Line| line.message().as_deref() == Some(message);
        let found = self.log.wait(0, timeout, wanted);
        found.map_err(|why| self.no_line(why, message, timeout))
    }

    /// Waits for a console line that contains `text`.
    ///
    /// # Errors
    /// [`LabError::Timeout`], or [`LabError::Ended`] if the process ends first.
    pub fn wait_for_console(&mut self, text: &str, timeout: Duration) -> Result<Line, LabError> {
        let found = self
            .console
            .wait(0, timeout, |line| line.text.contains(text));
        found.map_err(|why| self.no_line(why, text, timeout))
    }

    /// Whether this log event has been seen, from line number `from` of the log on.
    #[must_use]
    pub fn has_event_since(&self, from: usize, message: &str) -> bool {
        let wanted = |line: &Line| line.message().as_deref() == Some(message);
        self.log.lines().iter().skip(from).any(wanted)
    }

    /// Ends the process at once, as a power cut would (SIGKILL).
    pub fn kill(&mut self) {
        self.handle.signal(Signal::KILL);
        if self.handle.wait(END_OF_KILLED) {
            let _ = self.child.wait();
        }
    }

    /// Freezes the process (SIGSTOP).
    pub fn freeze(&self) {
        self.handle.signal(Signal::STOP);
    }

    /// Thaws a frozen process (SIGCONT).
    pub fn thaw(&self) {
        self.handle.signal(Signal::CONT);
    }

    /// Asks the process to end (SIGTERM).
    pub fn terminate(&self) {
        self.handle.signal(Signal::TERM);
    }

    /// Whether the process still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.handle.wait(Duration::ZERO)
    }

    /// Waits for the process to end by itself, and for the rest of its output.
    ///
    /// # Errors
    /// [`LabError::Timeout`] if it goes on running.
    pub fn wait_for_exit(&mut self, timeout: Duration) -> Result<ExitStatus, LabError> {
        if !self.handle.wait(timeout) {
            return Err(self.no_line(NoLine::Timeout, "end of the process", timeout));
        }
        let status = self
            .child
            .wait()
            .map_err(LabError::io(format!("waiting for {}", self.who)))?;
        self.join_followers();
        Ok(status)
    }

    fn join_followers(&mut self) {
        for follower in self.followers.drain(..) {
            let _ = follower.join();
        }
    }

    fn no_line(&mut self, why: NoLine, what: &str, after: Duration) -> LabError {
        let (who, what, log) = (self.who.clone(), what.to_owned(), self.log_path.clone());
        if why == NoLine::Ended && self.handle.wait(END_OF_KILLED) {
            let status = self
                .child
                .wait()
                .map_or_else(|error| error.to_string(), |status| status.to_string());
            let last = self
                .log
                .lines()
                .pop()
                .map(|line| line.text)
                .unwrap_or_default();
            return LabError::Ended {
                who,
                status,
                what,
                last,
                log,
            };
        }
        LabError::Timeout {
            who,
            what,
            after,
            log,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        self.join_followers();
    }
}

fn open_handle(child: &Child) -> io::Result<Handle> {
    Ok(Handle(Arc::new(pidfd_open(
        Pid::from_child(child),
        PidfdFlags::empty(),
    )?)))
}
