//! The processes that the lab has an agent start.

use std::collections::HashMap;
use std::io::{self, Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use super::Voice;
use crate::wire::{Answer, FromAgent};

/// Most bytes of output that are told at once.
const CHUNK: usize = 4096;

/// Runs a command to its end.
pub(super) fn run(argv: &[String]) -> io::Result<Answer> {
    let output = command(argv)?.stdin(Stdio::null()).output()?;
    Ok(Answer::Ended {
        code: output.status.code(),
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        error: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The running ones, by name.
#[derive(Debug)]
pub(super) struct Processes {
    voice: Voice,
    running: Arc<Mutex<HashMap<String, Running>>>,
}

#[derive(Debug)]
struct Running {
    pid: Pid,
    input: ChildStdin,
}

impl Processes {
    pub(super) fn new(voice: Voice) -> Self {
        Self {
            voice,
            running: Arc::default(),
        }
    }

    pub(super) fn start(
        &self,
        name: &str,
        argv: &[String],
        env: &[(String, String)],
    ) -> io::Result<Answer> {
        let mut running = lock(&self.running);
        if running.contains_key(name) {
            return Err(io::Error::other(format!("{name} runs already")));
        }
        let mut child = command(argv)?
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (Some(input), Some(output), Some(error)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            unreachable!("all three are piped above");
        };
        let pid = Pid::from_child(&child);
        running.insert(name.to_owned(), Running { pid, input });
        drop(running);
        let followers = [
            self.follow(name, false, output),
            self.follow(name, true, error),
        ];
        let (name, voice, all) = (name.to_owned(), self.voice.clone(), self.running.clone());
        thread::spawn(move || await_end(name, child, followers, &voice, &all));
        Ok(Answer::Done)
    }

    fn follow(
        &self,
        name: &str,
        error: bool,
        mut source: impl Read + Send + 'static,
    ) -> thread::JoinHandle<()> {
        let (name, voice) = (name.to_owned(), self.voice.clone());
        thread::spawn(move || {
            let mut bytes = [0; CHUNK];
            // A read error is the end of the output as well.
            while let Ok(length @ 1..) = source.read(&mut bytes) {
                voice.say(&FromAgent::Output {
                    name: name.clone(),
                    error,
                    text: String::from_utf8_lossy(&bytes[..length]).into_owned(),
                });
            }
        })
    }

    pub(super) fn input(&self, name: &str, text: &str) -> io::Result<Answer> {
        let mut running = lock(&self.running);
        let process = running.get_mut(name).ok_or_else(|| not_running(name))?;
        process.input.write_all(text.as_bytes())?;
        process.input.flush()?;
        Ok(Answer::Done)
    }

    pub(super) fn signal(&self, name: &str, signal: i32) -> io::Result<Answer> {
        let signal = Signal::from_named_raw(signal)
            .ok_or_else(|| io::Error::other(format!("there is no signal {signal}")))?;
        // The lock keeps the process from being waited for, and its number from being used again, meanwhile.
        let running = lock(&self.running);
        let process = running.get(name).ok_or_else(|| not_running(name))?;
        kill_process(process.pid, signal)?;
        Ok(Answer::Done)
    }
}

fn await_end(
    name: String,
    mut child: Child,
    followers: [thread::JoinHandle<()>; 2],
    voice: &Voice,
    running: &Mutex<HashMap<String, Running>>,
) {
    // The output ends with the process, or with the last of its children that holds it.
    for follower in followers {
        let _ = follower.join();
    }
    let mut all = lock(running);
    all.remove(&name);
    let status = child.wait();
    drop(all);
    voice.say(&FromAgent::Exit {
        name,
        code: status.as_ref().ok().and_then(|status| status.code()),
        signal: status.as_ref().ok().and_then(|status| status.signal()),
    });
}

fn command(argv: &[String]) -> io::Result<Command> {
    let (program, arguments) = argv
        .split_first()
        .ok_or_else(|| io::Error::other("no program is named"))?;
    let mut command = Command::new(program);
    command.args(arguments).env(
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    Ok(command)
}

fn not_running(name: &str) -> io::Error {
    io::Error::other(format!("{name} is not running"))
}

fn lock(running: &Mutex<HashMap<String, Running>>) -> MutexGuard<'_, HashMap<String, Running>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}
