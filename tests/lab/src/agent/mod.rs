//! The agent: process 1 of every host of the lab. It sets the host up, then does what the lab asks over a
//! virtio-serial port.

mod judge;
mod processes;
mod setup;

pub use judge::judge;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::wire::{Answer, FromAgent, Numbered, Request};
use processes::Processes;

/// Where an agent's words to the lab go; every thread of it has one.
#[derive(Clone, Debug)]
struct Voice(Arc<Mutex<File>>);

impl Voice {
    fn say(&self, what: &FromAgent) {
        let Ok(mut line) = serde_json::to_vec(what) else {
            return;
        };
        line.push(b'\n');
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Without the lab there is nobody left to tell.
        let _ = port.write_all(&line);
    }
}

/// Runs the agent. Returns only if the host is unusable or the lab has gone; process 1 must not return, so the
/// caller stops the machine.
///
/// # Errors
/// What could not be set up.
pub fn serve() -> io::Result<()> {
    println!("lab-agent: begins");
    let port = setup::prepare()?;
    let voice = Voice(Arc::new(Mutex::new(port.try_clone()?)));
    if let Err(error) = setup::mount_tools() {
        voice.say(&FromAgent::Failed {
            reason: error.to_string(),
        });
        return Err(error);
    }
    voice.say(&FromAgent::Hello);
    let processes = Processes::new(voice.clone());
    for line in BufReader::new(port).lines() {
        let line = line?;
        match serde_json::from_str::<Numbered>(&line) {
            Ok(Numbered { id, request }) => answer(id, request, &processes, &voice),
            Err(error) => eprintln!("agent: not a request: {error}: {line}"),
        }
    }
    Ok(())
}

fn answer(id: u64, request: Request, processes: &Processes, voice: &Voice) {
    let result = match request {
        // Answered when the command has ended; others are not kept waiting for that.
        Request::Run { argv } => {
            let voice = voice.clone();
            std::thread::spawn(move || {
                let result = processes::run(&argv).map_err(|error| error.to_string());
                voice.say(&FromAgent::Answer { id, result });
            });
            return;
        }
        Request::Start { name, argv, env } => processes.start(&name, &argv, &env),
        Request::Input { name, text } => processes.input(&name, &text),
        Request::Signal { name, signal } => processes.signal(&name, signal),
        Request::Write { path, text, mode } => write(Path::new(&path), &text, mode),
        Request::Read { path } => fs::read_to_string(path).map(Answer::Contents),
    };
    voice.say(&FromAgent::Answer {
        id,
        result: result.map_err(|error| error.to_string()),
    });
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<Answer> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(Answer::Done)
}

/// Opens the port that leads to the lab.
fn open_port(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}
