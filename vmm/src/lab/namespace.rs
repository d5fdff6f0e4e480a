//! Network namespaces without names: each lives as long as its descriptor or a process inside it.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::LabError;

/// A network namespace of our own.
#[derive(Clone, Debug)]
pub struct NetNamespace {
    name: String,
    fd: Arc<OwnedFd>,
}

impl NetNamespace {
    /// Makes an empty network namespace. `name` is only used in messages.
    ///
    /// # Errors
    /// [`LabError::Namespace`] where the kernel refuses it (no CAP_SYS_ADMIN).
    pub fn new(name: &str) -> Result<Self, LabError> {
        // Only this short-lived thread moves into the new namespace; the descriptor then keeps it alive.
        let made = thread::scope(|scope| scope.spawn(make).join());
        let fd = made
            .unwrap_or_else(|_| Err(io::Error::other("the helper thread panicked")))
            .map_err(|source| LabError::Namespace {
                kind: "network",
                source,
            })?;
        Ok(Self {
            name: name.to_owned(),
            fd: Arc::new(fd),
        })
    }

    /// The name given to [`NetNamespace::new`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path by which other programs (`nsenter --net=...`, `ip link set ... netns`) reach the namespace while
    /// this process lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()).into()
    }

    /// A command that will run inside the namespace, in a process group of its own (Ctrl-C in a terminal reaches
    /// the lab alone, which then tidies up), and that dies with the thread that spawns it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let fd = Arc::clone(&self.fd);
        let parent = rustix::process::getpid();
        command.process_group(0);
        let enter = move || {
            move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))?;
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::ErrorKind::NotFound.into())
            }
        };
        // SAFETY: `enter` runs between fork and exec. It makes three system calls and neither allocates nor locks.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(enter);
        }
        command
    }

    /// Runs `work` on a helper thread inside the namespace. Sockets made there stay in the namespace.
    ///
    /// # Errors
    /// [`LabError::Io`] if the namespace can't be entered.
    ///
    /// # Panics
    /// If `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let entered = thread::scope(|scope| {
            let helper = scope.spawn(|| {
                move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok::<_, io::Error>(work())
            });
            helper
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        entered.map_err(LabError::io(format!(
            "entering the network namespace of {}",
            self.name
        )))
    }

    /// Opens a TCP connection from inside the namespace.
    ///
    /// # Errors
    /// [`LabError::Io`] naming the address.
    pub fn connect(&self, to: SocketAddr, timeout: Duration) -> Result<TcpStream, LabError> {
        self.enter(|| TcpStream::connect_timeout(&to, timeout))?
            .map_err(LabError::io(format!(
                "connecting to {to} from {}",
                self.name
            )))
    }

    /// Bytes that have left by a network device so far, with all headers.
    ///
    /// # Errors
    /// [`LabError::Io`] if there is no such device.
    pub fn sent(&self, device: &str) -> Result<u64, LabError> {
        let table = self.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
        let failed = || format!("reading what {device} of {} has sent", self.name);
        let table = table.map_err(LabError::io(failed()))?;
        let line = table.lines().find_map(|line| {
            let (name, rest) = line.trim_start().split_once(':')?;
            (name == device).then_some(rest)
        });
        // Eight fields of what was received come first (proc_net_dev(5)).
        let field = line.and_then(|line| line.split_whitespace().nth(8));
        let bytes = field.and_then(|field| field.parse().ok());
        let missing = || LabError::io(failed())(io::ErrorKind::NotFound.into());
        bytes.ok_or_else(missing)
    }

    /// Runs lines of the `ip` command (without the leading `ip`) inside the namespace.
    ///
    /// # Errors
    /// [`LabError::NoProgram`] without iproute2; [`LabError::Command`] with what `ip` said.
    pub fn ip(&self, lines: &[String]) -> Result<(), LabError> {
        self.batch("ip", lines)
    }

    /// Lets nothing more leave through a network device. What comes in by it still does.
    ///
    /// # Errors
    /// As [`NetNamespace::ip`]: `tc` is of iproute2, too.
    pub fn cut_outbound(&self, device: &str) -> Result<(), LabError> {
        self.batch(
            "tc",
            &[format!("qdisc replace dev {device} root blackhole")],
        )
    }

    /// Lets so many megabits a second leave through a network device, at most.
    ///
    /// # Errors
    /// As [`NetNamespace::cut_outbound`].
    pub fn limit_outbound(&self, device: &str, megabits: u32) -> Result<(), LabError> {
        // The bucket holds what comes at once, the queue behind it what a few milliseconds bring.
        let limit = format!("rate {megabits}mbit burst 256kb latency 50ms");
        self.batch(
            "tc",
            &[format!("qdisc replace dev {device} root tbf {limit}")],
        )
    }

    /// Undoes [`NetNamespace::cut_outbound`] and [`NetNamespace::limit_outbound`].
    ///
    /// # Errors
    /// The same.
    pub fn heal_outbound(&self, device: &str) -> Result<(), LabError> {
        self.batch("tc", &[format!("qdisc del dev {device} root")])
    }

    fn batch(&self, program: &str, lines: &[String]) -> Result<(), LabError> {
        let mut command = self.command(program);
        command
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => LabError::NoProgram {
                program: program.to_owned(),
                package: "iproute2",
            },
            _ => LabError::Io {
                what: format!("starting `{program}`"),
                source,
            },
        })?;
        if let Some(mut stdin) = child.stdin.take() {
            // A broken pipe here means that it stopped at a bad line; its own message says which.
            let _ = stdin.write_all(lines.join("\n").as_bytes());
        }
        let done = child
            .wait_with_output()
            .map_err(LabError::io(format!("waiting for `{program}`")))?;
        if done.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&done.stderr)
            .trim()
            .replace('\n', "; ");
        Err(LabError::Command {
            command: format!("{program} {}", lines.join(&format!("; {program} "))),
            message,
        })
    }
}

/// Moves the calling thread into a new network namespace and returns a descriptor of it.
fn make() -> io::Result<OwnedFd> {
    // SAFETY: NEWNET changes this thread's network namespace only; no descriptor table is unshared.
    #[allow(unsafe_code)]
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)?;
    }
    // No router solicitations or other chatter of the kernel's on the lab's links. A kernel without IPv6 lacks
    // the file and the chatter.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}
