//! What a VM is made of, from a file or from the command line.

mod file;
mod parse;

pub use file::{load, load_operated};
pub use parse::{
    check_vcpus, parse_disk, parse_disk_size, parse_mac, parse_net, parse_size, parse_vsock,
};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
pub use evertwin_devices::virtio::block::CacheMode;
use evertwin_devices::virtio::block::DiskSerial;
use evertwin_devices::virtio::vsock::SocketPath;
use serde::Deserialize;

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {path}: {source}; check the path")]
    Unreadable {
        /// As given.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Not TOML, or not of this form.
    #[error("{path} is not a valid configuration: {reason}")]
    Syntax {
        /// As given.
        path: PathBuf,
        /// Line, column and cause, in one line.
        reason: String,
    },
    /// A value that makes no sense; says which and what would.
    #[error("{0}")]
    Value(String),
}

/// Where the kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSource {
    /// The built-in pico guest.
    Pico,
    /// An ELF vmlinux or a bzImage.
    File(PathBuf),
}

impl From<PathBuf> for KernelSource {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "pico" {
            Self::Pico
        } else {
            Self::File(path)
        }
    }
}

/// One virtio-block disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Raw image.
    pub path: PathBuf,
    /// The guest may not write.
    pub read_only: bool,
    /// What the guest reads as its serial number, if not the usual one.
    pub serial: Option<DiskSerial>,
    /// Whether the guest's requests go past the host's page cache.
    pub cache: CacheMode,
}

/// One virtio-net card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Name of an existing TAP device.
    pub tap: String,
    /// The card's address.
    pub mac: [u8; 6],
    /// The host's interface without which the card reaches nobody, if its carrier is watched.
    pub uplink: Option<UplinkConfig>,
}

/// An interface of the host whose carrier matters to a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkConfig {
    /// Its name.
    pub name: String,
    /// What is done when its carrier is lost.
    pub on_lost_carrier: OnLostCarrier,
}

/// What a twin does when an uplink of its guest's has lost its carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLostCarrier {
    /// The guest goes on at the other host, if the uplink is good there.
    Switchover,
    /// It is told.
    Ignore,
}

/// The virtio-vsock device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockConfig {
    /// Address of the guest.
    pub cid: u32,
    /// Unix socket by which programs of the host reach the guest; with `_PORT` added, those that
    /// the guest reaches.
    pub socket: SocketPath,
}

/// What to do with the VM when its guest has ended itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AfterEnd {
    /// End the process.
    Exit,
    /// Boot the guest again.
    Restart,
}

/// Most vCPUs of a VM.
pub const MAX_VCPUS: u8 = 8;

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// Name; twins must agree on it.
    pub name: String,
    /// What it boots.
    pub kernel: KernelSource,
    /// Initial RAM disk, for Linux.
    pub initrd: Option<PathBuf>,
    /// Kernel command line, before the devices are added.
    pub cmdline: String,
    /// RAM in bytes.
    pub memory: u64,
    /// Virtual CPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// When it resets itself.
    pub on_reboot: AfterEnd,
    /// When its kernel panics.
    pub on_panic: AfterEnd,
    /// Disks, in order.
    pub disks: Vec<DiskConfig>,
    /// Network cards, in order.
    pub nets: Vec<NetConfig>,
    /// Streams between the guest and programs of the host.
    pub vsock: Option<VsockConfig>,
}

impl VmConfig {
    /// A VM with so many bytes of RAM, one vCPU and no devices. It ends when its guest does.
    pub fn alone(name: &str, kernel: KernelSource, memory: u64) -> Self {
        Self {
            name: name.into(),
            kernel,
            initrd: None,
            cmdline: String::new(),
            memory,
            vcpus: 1,
            on_reboot: AfterEnd::Exit,
            on_panic: AfterEnd::Exit,
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: None,
        }
    }
}

/// What protects a VM from the death of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// All of the guest is replicated: it goes on at the other host.
    Ft,
    /// Its disks are: the other host boots it.
    Ha,
    /// Nothing.
    None,
}

/// Protection of a VM by a twin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationConfig {
    /// This process's node name.
    pub node: String,
    /// The other one.
    pub peer: String,
    /// Addresses of the lower-named node, which listens: one for each path between the hosts.
    pub addresses: Vec<SocketAddr>,
    /// Where this node's keys are; none for a plaintext link, which stays on this host.
    pub keys: Option<PathBuf>,
    /// The level of protection. A VM of none is plain, but its operators may ask for that while it runs as a twin.
    pub protection: Protection,
    /// The arbiter, if there is one.
    pub arbiter: Option<ArbiterConfig>,
    /// Where only the disks are replicated: how long the guest may run on the standby's last word.
    /// None: all of the guest is replicated.
    pub lease: Option<Duration>,
    /// Longest epoch.
    pub epoch: Duration,
    /// How often a quiet link is proven alive.
    pub heartbeat: Duration,
    /// Silence after which the peer counts as dead.
    pub timeout: Duration,
    /// How long twins wait for each other after their link broke; zero: not at all. None: half of
    /// `timeout`.
    pub reconnect: Option<Duration>,
    /// Bytes per second that a copy of disks and memory may send. None: as many as the link takes.
    pub resync_rate: Option<u64>,
    /// Time from the end of one comparison of both disks to the next one. None: only who asks for one gets it.
    pub scrub_every: Option<Duration>,
    /// Bytes per second of a disk that are compared at most.
    pub scrub_rate: u64,
    /// The Unix socket by which operators reach this twin.
    pub control: PathBuf,
    /// After so long a silence it is looked whether the peer's host is there. None: nobody looks.
    pub suspect: Option<Duration>,
    /// How many bytes of pages that were sent are kept, to tell what changed in them.
    pub delta_cache: usize,
    /// What is done to make epochs cheap.
    pub fast_path: FastPath,
}

/// What is done to make epochs cheap. Nothing of it changes what is replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FastPath {
    /// Most dirty pages are copied before the guest is paused, and only those that it wrote to meanwhile in the pause.
    pub copy_ahead: bool,
    /// A standby looks for the next epoch for half a millisecond before it sleeps: a processor that sleeps takes its
    /// time to wake up.
    pub poll: bool,
    /// Pages and state that were sent before travel as what changed in them since.
    pub deltas: bool,
    /// Over a link that carries less than 1.6 Gbit/s, what is large travels packed.
    pub pack: bool,
}

impl Default for FastPath {
    fn default() -> Self {
        Self {
            copy_ahead: true,
            poll: true,
            deltas: true,
            pack: true,
        }
    }
}

/// Which arbiter decides who may speak for the guest (I2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArbiterConfig {
    /// A locked file, for twins on one host or on shared storage.
    File(PathBuf),
    /// The operator; what each host knows is noted in a file on a disk of its own.
    Manual(PathBuf),
    /// The endpoints of an etcd cluster, for twins on hosts of their own.
    Etcd(Vec<SocketAddr>),
}
