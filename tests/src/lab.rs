//! One test's lab: hosts, a directory, and the `evertwin` binary under test.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use evertwin::lab::process::Process;
use evertwin::lab::topology::{Node, Topology};
use evertwin::lab::{namespace::NetNamespace, preflight};
use tempfile::TempDir;

/// How many times as long everything takes as on a machine with its own `/dev/kvm`: `EVERTWIN_SLOW` at build time.
/// Emulated hosts are slow.
pub const SLOW: u32 = match option_env!("EVERTWIN_SLOW") {
    Some(times) => match u32::from_str_radix(times, 10) {
        Ok(times) => times,
        Err(_) => panic!("EVERTWIN_SLOW is not a number"),
    },
    None => 1,
};

/// The longest wait for a single step of a test.
pub const STEP: Duration = Duration::from_secs(20 * SLOW as u64);

/// The longest that a client's tool may take, in seconds.
const TOOL_SECONDS: u32 = 90 * SLOW;

/// Labs use both cores of a small machine, so the tests of one binary take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Hosts, a directory and a turn. A failed test keeps its directory and prints the ends of the logs.
#[derive(Debug)]
pub struct TestLab {
    /// The hosts.
    pub topology: Topology,
    directory: Option<TempDir>,
    /// None: another lab, which is there as long, has it.
    _turn: Option<MutexGuard<'static, ()>>,
}

impl TestLab {
    /// Waits for the turn and sets the hosts up.
    ///
    /// # Panics
    /// If something the lab needs is missing; the message says what.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "a lab is not a value that anything should make by default"
    )]
    pub fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Self::set_up(Some(turn))
    }

    /// One more in the turn of this one, which has to outlive it.
    ///
    /// # Panics
    /// As [`TestLab::new`].
    #[must_use]
    pub fn another(&self) -> Self {
        Self::set_up(None)
    }

    fn set_up(turn: Option<MutexGuard<'static, ()>>) -> Self {
        preflight::check().unwrap_or_else(|error| panic!("{error}"));
        let topology = Topology::new().unwrap_or_else(|error| panic!("{error}"));
        let directory = tempfile::Builder::new()
            .prefix("evertwin-test-")
            .tempdir()
            .unwrap();
        Self {
            topology,
            directory: Some(directory),
            _turn: turn,
        }
    }

    /// The lab's directory.
    ///
    /// # Panics
    /// Never while the lab exists.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.as_ref().unwrap().path()
    }

    /// A path in the lab's directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Makes a sparse file.
    ///
    /// # Panics
    /// If it can't be made.
    pub fn make_disk(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::File::create(&path)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        path
    }

    /// Starts `evertwin` with these arguments on host a.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn evertwin<S: AsRef<OsStr>>(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Process {
        let mut command = self.topology.host(Node::A).command(evertwin_binary());
        command.args(arguments).current_dir(self.directory());
        Process::start(command, name, self.directory()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts pico on host a, unprotected.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn pico(&self, name: &str, cmdline: &str, memory: &str) -> Process {
        let arguments = ["run", "--kernel", "pico", "--cmdline", cmdline];
        self.evertwin(name, arguments.into_iter().chain(["--memory", memory]))
    }

    /// Runs `evertwin` on host a to its end and returns its status and log.
    ///
    /// # Panics
    /// If it does not end by itself.
    pub fn evertwin_to_end(&self, name: &str, arguments: &[&str]) -> (ExitStatus, Vec<String>) {
        let mut process = self.evertwin(name, arguments);
        let status = process
            .wait_for_exit(STEP)
            .unwrap_or_else(|error| panic!("{error}"));
        (
            status,
            process
                .log()
                .lines()
                .into_iter()
                .map(|line| line.text)
                .collect(),
        )
    }

    /// Runs a tool on the client's host to its end, for at most 90 seconds.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn client_tool(&self, program: &str, arguments: &[&str]) -> Output {
        bounded_tool(&self.topology.client, program, arguments)
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}: run `make deps`"))
    }

    /// Runs `redis-cli` against the guest and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn redis(&self, words: &[&str]) -> String {
        let arguments = [&["-h", "10.77.0.2"], words].concat();
        let output = self.client_tool("redis-cli", &arguments);
        let text = String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned();
        assert!(
            output.status.success(),
            "redis-cli {words:?}: {text} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(directory) = self.directory.take()
        {
            let kept = directory.keep();
            eprintln!("kept for a look: {}", kept.display());
            for entry in std::fs::read_dir(&kept).into_iter().flatten().flatten() {
                if entry
                    .path()
                    .extension()
                    .is_some_and(|end| end == "log" || end == "console")
                {
                    let text = std::fs::read(entry.path()).unwrap_or_default();
                    let text = String::from_utf8_lossy(&text);
                    let lines: Vec<&str> = text.lines().collect();
                    eprintln!("--- end of {}", entry.file_name().display());
                    lines[lines.len().saturating_sub(25)..]
                        .iter()
                        .for_each(|line| eprintln!("  {line}"));
                }
            }
        }
    }
}

/// A tool's command on a host of the lab, ended if it takes longer than 90 seconds.
#[must_use]
pub fn bounded_tool(host: &NetNamespace, program: &str, arguments: &[&str]) -> Command {
    let seconds = TOOL_SECONDS.to_string();
    let limited = [&[&seconds, program], arguments].concat();
    tool(host, "timeout", &limited)
}

/// A tool's command on a host of the lab.
#[must_use]
pub fn tool(host: &NetNamespace, program: &str, arguments: &[&str]) -> Command {
    let mut command = host.command(program);
    command.args(arguments);
    command
}

/// The binary under test: `EVERTWIN_BIN`, or the workspace's release build.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn evertwin_binary() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/x86_64-unknown-linux-gnu/release/evertwin");
    let path = std::env::var_os("EVERTWIN_BIN").map_or(built, PathBuf::from);
    path.canonicalize().unwrap_or_else(|error| {
        panic!(
            "{}: {error}: run `make build`, or set EVERTWIN_BIN",
            path.display()
        )
    })
}
