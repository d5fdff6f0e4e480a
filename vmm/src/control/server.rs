//! The twin's end.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use evertwin_replicator::control::{Command, Controller, Level, Outcome, TwinStatus};

use super::{Reply, Request, VmStatus};

/// Longest request in bytes.
const MAX_REQUEST: u64 = 4096;

/// Most connections served at a time.
const MAX_CONNECTIONS: usize = 16;

/// How long a twin may take to say what it does.
const STATUS: Duration = Duration::from_secs(5);

/// How long it may take to obey. A switchover whose arbiter is away takes its time.
const COMMAND: Duration = Duration::from_secs(60);

/// How long a client may take to ask, and to read its answer.
const CLIENT: Duration = Duration::from_secs(5);

/// How long the end of a twin waits for the last answers to be read.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Who answers.
#[derive(Clone)]
pub struct Desk(Arc<Mutex<Clerk>>);

#[derive(Clone)]
enum Clerk {
    /// A twin that runs.
    Twin(Controller),
    /// What there is to say while none does, and why none does.
    Nobody(Box<TwinStatus>, String),
}

impl Desk {
    /// This twin answers.
    pub fn new(controller: Controller) -> Self {
        Self(Arc::new(Mutex::new(Clerk::Twin(controller))))
    }

    /// From now on this one does.
    pub fn hand_to(&self, controller: Controller) {
        *self.lock() = Clerk::Twin(controller);
    }

    /// From now on the status is this, and commands are refused for this reason.
    pub fn leave_note(&self, status: TwinStatus, why: &str) {
        *self.lock() = Clerk::Nobody(Box::new(status), why.to_owned());
    }

    fn lock(&self) -> MutexGuard<'_, Clerk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clerk(&self) -> Clerk {
        self.lock().clone()
    }
}

/// A socket that goes when this does.
#[derive(Debug)]
pub struct Serving {
    path: PathBuf,
    /// Connections that are being served.
    open: Arc<AtomicUsize>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Another twin may have cleared it away.
        let _ = std::fs::remove_file(&self.path);
        // Who asked this twin to leave is to hear that it did.
        let until = Instant::now() + LAST_WORDS;
        while self.open.load(Ordering::Acquire) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Serves a twin's control at `path` on threads of its own, for this user only.
///
/// # Errors
/// The socket can't be made: its directory is missing or not writable, the path is too long, or
/// another twin serves it.
pub fn serve(path: &Path, vm: &str, desk: &Desk) -> io::Result<Serving> {
    let listener = bind(path)?;
    let vm = Arc::<str>::from(vm);
    let desk = desk.clone();
    let open = Arc::new(AtomicUsize::new(0));
    let serving = Serving {
        path: path.to_owned(),
        open: Arc::clone(&open),
    };
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                if open.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
                    open.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
                let (vm, clerk, counted) = (Arc::clone(&vm), desk.clerk(), Arc::clone(&open));
                let spawned = std::thread::Builder::new()
                    .name("control-client".into())
                    .spawn(move || {
                        if let Err(error) = converse(&stream, &vm, &clerk) {
                            tracing::debug!(%error, "a control connection ended early");
                        }
                        counted.fetch_sub(1, Ordering::AcqRel);
                    });
                if spawned.is_err() {
                    open.fetch_sub(1, Ordering::AcqRel);
                }
            }
        })?;
    Ok(serving)
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    let listener = match UnixListener::bind(path) {
        // Left behind by a twin that was killed: nobody answers.
        Err(error)
            if error.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(path).is_err() =>
        {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        bound => bound?,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn converse(stream: &UnixStream, vm: &str, clerk: &Clerk) -> io::Result<()> {
    stream.set_read_timeout(Some(CLIENT))?;
    stream.set_write_timeout(Some(CLIENT))?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_REQUEST)).read_line(&mut line)?;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => answer(request, vm, clerk),
        Err(error) => Reply::Error(format!("not a request: {error}")),
    };
    let mut text = serde_json::to_string(&reply)?;
    text.push('\n');
    (&mut &*stream).write_all(text.as_bytes())
}

fn answer(request: Request, vm: &str, clerk: &Clerk) -> Reply {
    let controller = match (clerk, &request) {
        (Clerk::Twin(controller), _) => controller,
        (Clerk::Nobody(twin, _), Request::Status) => {
            return Reply::Status(Box::new(VmStatus {
                vm: vm.to_owned(),
                twin: (**twin).clone(),
            }));
        }
        (Clerk::Nobody(_, why), _) => return Reply::Error(why.clone()),
    };
    let command = match request {
        Request::Status => {
            return match controller.status(STATUS) {
                Ok(twin) => Reply::Status(Box::new(VmStatus {
                    vm: vm.to_owned(),
                    twin,
                })),
                Err(why) => Reply::Error(why.to_string()),
            };
        }
        Request::Switchover => Command::Switchover,
        Request::Promote => Command::Promote,
        Request::Leave => Command::Leave,
        Request::Level { lease_ms } => {
            let level = lease_ms.map_or(Level::Guest, |lease_ms| Level::Disks {
                lease: Duration::from_millis(lease_ms),
            });
            return done(controller.level(level, STATUS));
        }
        Request::Unprotect => return done(controller.level(Level::Nothing, STATUS)),
        Request::Grow { disk, bytes } => {
            return match controller.grow(disk, bytes, COMMAND) {
                Ok(Ok(bytes)) => Reply::Grown { bytes },
                Ok(Err(why)) => Reply::Error(why.to_string()),
                Err(why) => Reply::Error(why.to_string()),
            };
        }
        Request::Scrub { memory } => {
            return match controller.scrub(memory, STATUS) {
                Ok(number) => Reply::Scrubbing { number },
                Err(why) => Reply::Error(why.to_string()),
            };
        }
        #[cfg(feature = "failpoints")]
        Request::Failpoint { name, actions } => {
            return match fail::cfg(name, &actions) {
                Ok(()) => Reply::Armed,
                Err(why) => Reply::Error(why),
            };
        }
    };
    done(controller.command(command, COMMAND))
}

fn done(outcome: Outcome) -> Reply {
    match outcome {
        Ok(generation) => Reply::Done { generation },
        Err(why) => Reply::Error(why.to_string()),
    }
}
