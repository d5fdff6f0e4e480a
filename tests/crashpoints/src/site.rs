//! A pair in a lab of its own, its control sockets and its client.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use evertwin::control::{self, Reply, Request};
use evertwin::lab::client::{Load, LoadOptions};
use evertwin::lab::events::Line;
use evertwin::lab::pair::{Pair, PairConfig};
use evertwin::lab::process::Process;
use evertwin::lab::resp;
use evertwin::lab::topology::{GUEST_KV, Node, Topology};

use crate::error::CrashError;
use crate::points::Point;

/// The longest wait for a single step.
pub(crate) const STEP: Duration = Duration::from_secs(20);

/// Silence after which a twin counts as dead. Deaths are what is judged here, and each shows at once in a closed
/// connection. On a machine that has other work to do, a twin may well be silent for seconds.
const SILENCE: Duration = Duration::from_secs(4);

/// Time between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(10);

/// How long a connection to the guest is tried before it is tried anew.
const CONNECT: Duration = Duration::from_millis(300);

/// What a standby says once it is named.
const READY: &str = "standby ready";

/// What a twin says when it changes its role.
const NEWS: [&str; 4] = [READY, "link down", "promoted", "solo"];

/// SIGKILL.
const KILLED: i32 = 9;

/// A pair and where it lives.
pub(crate) struct Site {
    pair: Pair,
    directory: PathBuf,
    broken: String,
}

impl Site {
    /// Sets up hosts and files; starts nothing.
    pub(crate) fn new(evertwin: &Path, directory: &Path, broken: &str) -> Result<Self, CrashError> {
        let config = PairConfig {
            memory: "64M".to_owned(),
            timeout: SILENCE,
            ..PairConfig::default()
        };
        Ok(Self {
            pair: Pair::new(Topology::new()?, evertwin, directory, &config)?,
            directory: directory.to_owned(),
            broken: broken.to_owned(),
        })
    }

    /// Starts a twin, with a point armed if one is given.
    pub(crate) fn start(&mut self, node: Node, armed: Option<&str>) -> Result<(), CrashError> {
        let points = format!("{};{}", self.broken, armed.unwrap_or_default());
        self.pair.set_env("FAILPOINTS", &points);
        self.pair.start(node)?;
        Ok(())
    }

    pub(crate) fn twin(&mut self, node: Node) -> &mut Process {
        self.pair.twin(node)
    }

    /// Arms a point in a running twin.
    pub(crate) fn arm(&self, node: Node, point: &Point, actions: &str) -> Result<(), CrashError> {
        let path = socket(&self.directory, node);
        let request = serde_json::json!({
            "failpoint": { "name": point.name, "actions": actions },
        });
        let converse = || {
            let mut stream = UnixStream::connect(&path)?;
            stream.set_read_timeout(Some(STEP))?;
            stream.write_all(format!("{request}\n").as_bytes())?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer)?;
            Ok(answer)
        };
        let answer = converse().map_err(CrashError::io(format!("asking {}", path.display())))?;
        if answer.trim_end() == "\"armed\"" {
            Ok(())
        } else {
            Err(CrashError::NotArmed { node, answer })
        }
    }

    /// Waits until a twin has killed itself.
    pub(crate) fn wait_for_death(&mut self, node: Node) -> Result<(), CrashError> {
        let twin = self.pair.twin(node);
        let status = twin.wait_for_exit(STEP);
        let status = status.map_err(|error| CrashError::NotReached(error.to_string()))?;
        if status.signal() == Some(KILLED) {
            return Ok(());
        }
        let last = twin.log().lines().pop().map(|line| line.text);
        let last = last.unwrap_or_default();
        Err(CrashError::NotReached(format!(
            "{node:?} ended ({status}): {last}"
        )))
    }

    /// Waits until a twin does this.
    pub(crate) fn wait_for_role(&self, node: Node, wanted: &'static str) -> Result<(), CrashError> {
        let until = Instant::now() + STEP;
        loop {
            let role = role(&self.directory, node);
            if role == wanted {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(CrashError::Role {
                    node,
                    role,
                    wanted,
                    after: STEP,
                });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until one twin protects the guest and the other follows it, is named, and knows it.
    pub(crate) fn wait_until_protected(&mut self) -> Result<(), CrashError> {
        let until = Instant::now() + STEP;
        loop {
            let roles = [Node::A, Node::B].map(|node| role(&self.directory, node));
            let primary = match roles.each_ref().map(String::as_str) {
                ["protected", "standby"] => Some(Node::A),
                ["standby", "protected"] => Some(Node::B),
                _ => None,
            };
            if primary.is_some_and(|primary| self.is_named(primary.peer())) {
                return Ok(());
            }
            if Instant::now() >= until {
                let [a, b] = roles;
                let after = STEP;
                return Err(CrashError::NotProtected { a, b, after });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The standby was told that it is named, and nothing has changed since.
    fn is_named(&mut self, standby: Node) -> bool {
        let lines = self.twin(standby).log().lines();
        let mut said = lines.iter().rev().filter_map(Line::message);
        said.find(|said| NEWS.contains(&said.as_str())).as_deref() == Some(READY)
    }

    /// Has a primary exchange the roles.
    pub(crate) fn switch_over(&self, primary: Node) -> Result<(), CrashError> {
        match self.ask_for_switchover(primary)? {
            Reply::Done { .. } => Ok(()),
            other => Err(CrashError::Switchover(format!("{other:?}"))),
        }
    }

    /// The same, whatever comes of it.
    pub(crate) fn ask_for_switchover(&self, primary: Node) -> Result<Reply, CrashError> {
        let path = socket(&self.directory, primary);
        Ok(control::ask(&path, Request::Switchover)?)
    }

    /// Starts the judging client on a connection of its own.
    pub(crate) fn load(&self, depth: usize) -> Result<Load, CrashError> {
        let options = LoadOptions {
            depth,
            ..LoadOptions::default()
        };
        Ok(Load::start(self.connect()?, options)?)
    }

    /// A number that the guest holds, 0 if it has none.
    pub(crate) fn number(&self, key: &str) -> Result<u64, CrashError> {
        let asked = || {
            let mut stream = self.connect()?;
            let mut command = Vec::new();
            resp::encode(&mut command, &[b"GET", key.as_bytes()]);
            let said = stream
                .set_read_timeout(Some(STEP))
                .and_then(|()| stream.write_all(&command))
                .and_then(|()| resp::read(&mut BufReader::new(stream)));
            said.map_err(CrashError::io(format!("asking the guest for {key}")))
        };
        let number = match asked()? {
            resp::Reply::Bulk(None) => Some(0),
            resp::Reply::Bulk(Some(bytes)) => String::from_utf8_lossy(&bytes).parse().ok(),
            _ => None,
        };
        number.ok_or_else(|| CrashError::Guest(format!("{key} is no number")))
    }

    fn connect(&self) -> Result<std::net::TcpStream, CrashError> {
        let until = Instant::now() + STEP;
        loop {
            match self.pair.topology.client.connect(GUEST_KV, CONNECT) {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() >= until => return Err(error.into()),
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }
}

/// A twin's control socket.
fn socket(directory: &Path, node: Node) -> PathBuf {
    directory.join(format!("{}.sock", node.name()))
}

/// What a twin says that it does, `gone` if it says nothing.
pub(crate) fn role(directory: &Path, node: Node) -> String {
    match control::ask(&socket(directory, node), Request::Status) {
        Ok(Reply::Status(status)) => status.twin.role,
        _ => "gone".to_owned(),
    }
}

/// Waits until `more` further writes have been acknowledged.
pub(crate) fn wait_for_more(load: &Load, more: u64) -> Result<(), CrashError> {
    let target = load.progress().acked + more;
    if load.wait_until(STEP, |seen| seen.acked >= target) {
        return Ok(());
    }
    let seen = load.progress();
    let why = seen
        .broken
        .unwrap_or_else(|| format!("{} of {target} answers within {STEP:?}", seen.acked));
    Err(CrashError::Silent(why))
}
