//! The lab's end of the line to a host's agent.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};
use evertwin::lab::process::Process;

use super::process::{Ended, RemoteProcess, Sinks};
use crate::error::LabError;
use crate::lab::HostName;
use crate::wire::{Answer, FromAgent, Numbered, Request};

/// How long QEMU may take to open its end.
const CONNECT: Duration = Duration::from_secs(30);

/// The line to an agent. Dropping it hangs up.
#[derive(Debug)]
pub(super) struct Agent {
    host: HostName,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    line: UnixStream,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    transcript: File,
    last_id: u64,
    /// Who waits for which answer.
    waiting: HashMap<u64, Sender<Result<Answer, String>>>,
    processes: HashMap<String, Sinks>,
    hello: Option<Result<(), String>>,
    gone: bool,
}

impl Agent {
    /// Takes the connection that a host's QEMU makes.
    pub(super) fn accept(
        listener: &UnixListener,
        host: HostName,
        qemu: &Process,
        transcript: &Path,
    ) -> Result<Self, LabError> {
        let failed = LabError::io(format!("waiting for the machine of host {host}"));
        let line = accept(listener, qemu).map_err(failed)?;
        let what = format!("making {}", transcript.display());
        let transcript = File::options().create(true).append(true).open(transcript);
        let shared = Arc::new(Shared {
            line,
            state: Mutex::new(State {
                transcript: transcript.map_err(LabError::io(what))?,
                last_id: 0,
                waiting: HashMap::new(),
                processes: HashMap::new(),
                hello: None,
                gone: false,
            }),
            changed: Condvar::new(),
        });
        let reading = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            reading.read();
            reading.hang_up();
        });
        Ok(Self {
            host,
            shared,
            reader: Some(reader),
        })
    }

    /// Waits until the agent says that its host is set up.
    pub(super) fn await_hello(&self, timeout: Duration) -> Result<(), LabError> {
        let waiting = |state: &mut State| state.hello.is_none() && !state.gone;
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), timeout, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        match (&state.hello, state.gone) {
            (Some(Ok(())), _) => Ok(()),
            (Some(Err(reason)), _) => Err(self.broken(reason.clone())),
            (None, true) => Err(self.broken("the machine ended while it booted".to_owned())),
            (None, false) => Err(self.broken("it did not boot in time".to_owned())),
        }
    }

    /// Asks the agent and waits for its answer.
    pub(super) fn ask(&self, request: Request, timeout: Duration) -> Result<Answer, LabError> {
        let what = format!("{request:?}");
        let (sender, answer) = crossbeam_channel::bounded(1);
        let mut state = self.shared.lock();
        if state.gone {
            return Err(self.broken(format!("the machine has ended, before {what}")));
        }
        state.last_id += 1;
        let id = state.last_id;
        state.waiting.insert(id, sender);
        let mut line = serde_json::to_vec(&Numbered { id, request })
            .map_err(|error| self.broken(error.to_string()))?;
        line.push(b'\n');
        let _ = state.transcript.write_all(&line);
        let sent = (&self.shared.line).write_all(&line);
        drop(state);
        sent.map_err(|error| self.broken(format!("{what}: {error}")))?;
        match answer.recv_timeout(timeout) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(reason)) => Err(self.broken(format!("{what}: {reason}"))),
            Err(RecvTimeoutError::Timeout) => {
                Err(self.broken(format!("{what}: no answer within {} s", timeout.as_secs())))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(self.broken(format!("the machine ended during {what}")))
            }
        }
    }

    /// Has the agent start a process, whose outputs are followed from its first byte on.
    pub(super) fn start(
        &self,
        name: &str,
        argv: Vec<String>,
        env: Vec<(String, String)>,
        logs: &Path,
        patience: Duration,
    ) -> Result<RemoteProcess, LabError> {
        let (process, sinks) = RemoteProcess::new(self.host, name, logs, patience)?;
        self.shared.lock().processes.insert(name.to_owned(), sinks);
        let request = Request::Start {
            name: name.to_owned(),
            argv,
            env,
        };
        self.ask(request, super::ANSWER)?;
        Ok(process)
    }

    /// The agent answered something else than was asked for.
    pub(super) fn confused(&self, what: &str) -> LabError {
        self.broken(format!("its agent's answer is not about {what}"))
    }

    fn broken(&self, reason: String) -> LabError {
        LabError::Host {
            host: self.host.as_str(),
            reason,
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.shared.line.shutdown(std::net::Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) {
        let mut source = BufReader::new(&self.line);
        let mut line = Vec::new();
        while let Ok(1..) = source.read_until(b'\n', &mut line) {
            let mut state = self.lock();
            let _ = state.transcript.write_all(&line);
            if let Ok(said) = serde_json::from_slice(&line) {
                state.take(said);
            }
            drop(state);
            self.changed.notify_all();
            line.clear();
        }
    }

    /// The machine has ended: nobody waits any longer, and all its processes are gone.
    fn hang_up(&self) {
        let mut state = self.lock();
        state.gone = true;
        state.waiting.clear();
        for (_, sinks) in state.processes.drain() {
            sinks.end(Ended::WithItsHost);
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl State {
    fn take(&mut self, said: FromAgent) {
        match said {
            FromAgent::Hello => self.hello = Some(Ok(())),
            FromAgent::Failed { reason } => self.hello = Some(Err(reason)),
            FromAgent::Answer { id, result } => {
                if let Some(waiting) = self.waiting.remove(&id) {
                    let _ = waiting.send(result);
                }
            }
            FromAgent::Output { name, error, text } => {
                if let Some(sinks) = self.processes.get_mut(&name) {
                    sinks.write(error, &text);
                }
            }
            FromAgent::Exit { name, code, signal } => {
                if let Some(sinks) = self.processes.remove(&name) {
                    sinks.end(match (code, signal) {
                        (Some(code), _) => Ended::Code(code),
                        (None, signal) => Ended::Signal(signal.unwrap_or(0)),
                    });
                }
            }
        }
    }
}

/// Accepts a connection, unless QEMU ends before it makes one: a mistake on its command line.
fn accept(listener: &UnixListener, qemu: &Process) -> std::io::Result<UnixStream> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let deadline = Instant::now() + CONNECT;
    let moment = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    while poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&moment))? == 0 {
        if !qemu.is_running() {
            let last = qemu.log().lines().pop().map(|line| line.text);
            return Err(std::io::Error::other(format!(
                "QEMU has ended: {}",
                last.unwrap_or_default()
            )));
        }
        if Instant::now() > deadline {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
    }
    Ok(listener.accept()?.0)
}
