//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use evertwin_replicator::NodeId;

use crate::bench;
use crate::config::{
    self, AfterEnd, ConfigError, DiskConfig, NetConfig, Protection, ReplicationConfig, VmConfig,
};

/// Virtual machines that survive the death of their host.
///
/// A protected VM runs on two hosts at once, one step apart: when one host dies, the VM
/// goes on from the other, with its memory, disks and network connections, without a
/// reboot.
#[derive(Debug, Parser)]
#[command(name = "evertwin", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How log lines on standard error look.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// How much to log: error, warn, info, debug, trace, or a filter such as
    /// `info,evertwin=debug`.
    #[arg(long, global = true, default_value = "info", env = "EVERTWIN_LOG")]
    pub log: String,
}

const EXAMPLES: &str = "\
Examples:
  evertwin demo                         see a VM survive kill -9, on this machine
  evertwin bench                        measure what that costs on this machine
  evertwin keys keys --node a --node b  make the keys by which two twins know each other
  evertwin run vm.toml --node a         one twin of a protected VM (the other: --node b)
  evertwin status                       what the twins on this host are doing
  evertwin switchover vm.toml --node a  exchange the twins' roles: maintenance without downtime
  evertwin scrub vm.toml --node a       compare both hosts' disks, and repair what differs
  evertwin grow vm.toml --node a --size 20G
                                        have a disk grow while the guest runs
  evertwin run --kernel vmlinux --memory 512M \\
      --disk path=root.img --net tap=tap0,mac=52:54:00:12:34:56
                                        a plain microVM; Ctrl-A x ends it, Ctrl-A p asks
                                        the guest to shut down
  evertwin run --kernel pico --cmdline 'workload=cpu' --memory 64M
                                        the guest that is built in";

/// Text for people, JSON for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per line.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a VM: a twin of a protected one from a file, or a plain one from options.
    Run(Box<RunArgs>),
    /// Show what a protected VM's twin on this host is doing; without a name, all of them.
    Status(TwinArgs),
    /// Exchange the roles of the twins: asked of the primary. Nothing is lost, clients hardly notice.
    Switchover(TwinArgs),
    /// Run the guest here without asking anybody: only where there is no arbiter and the other host is dead.
    Promote(PromoteArgs),
    /// End this twin without harm to the guest: a primary hands it over first.
    Leave(TwinArgs),
    /// Compare both twins' disks while the guest runs, and repair what differs: asked of the primary.
    Scrub(ScrubArgs),
    /// Have a disk grow under the running guest: asked of the primary.
    #[command(after_help = ABOUT_GROWTH)]
    Grow(GrowArgs),
    /// Take over the level of protection that the configuration has now, be it none, without a restart: asked of a twin whose standby has left.
    #[command(after_help = ABOUT_LEVELS)]
    Level(TwinArgs),
    /// Make the keys by which the twins of a protected VM know each other.
    Keys(KeysArgs),
    /// See a VM survive kill -9: two hosts and a client in network namespaces, on this machine.
    Demo(SlowArgs),
    /// Measure on this machine what protection costs: pause, delay, throughput, blackout. All rows take a minute.
    #[command(after_help = ABOUT_BENCH)]
    Bench(BenchArgs),
}

/// Which twin of this host is meant.
#[derive(Debug, Args)]
pub struct TwinArgs {
    /// Configuration file of the VM.
    #[arg(conflicts_with = "socket")]
    pub config: Option<PathBuf>,
    /// Which node of the configuration this host is.
    #[arg(long, requires = "config")]
    pub node: Option<String>,
    /// The twin's control socket, as in the configuration's `control`.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Answer with one line of JSON.
    #[arg(long)]
    pub json: bool,
}

const ABOUT_LEVELS: &str = "\
To raise or lower the level of a guest that runs on host a, with its standby on host b:

  evertwin leave vm.toml --node b       the standby ends
  set `protection` in vm.toml on both hosts to \"ft\" (all of the guest is replicated) or \"ha\" (its disks are)
  evertwin level vm.toml --node a       the guest runs on, unprotected for the moment
  evertwin run vm.toml --node b         protected again, at the new level

To have it go on without protection, and to protect it again later:

  evertwin leave vm.toml --node b       the standby ends
  set `protection` in vm.toml to \"none\", on host a only
  evertwin level vm.toml --node a       the guest runs on, and no standby is admitted: one that is started waits
  set `protection` to what it was, or to another level and then on both hosts
  evertwin level vm.toml --node a       a standby is waited for
  evertwin run vm.toml --node b         protected again, if it does not wait already

A twin that is started with \"none\" in its file is a plain VM: it takes no commands. It is refused where the arbiter says that the other host may have the guest.";

const ABOUT_GROWTH: &str = "\
Images that are files need nothing else than the new size; both hosts' are made larger:

  evertwin grow vm.toml --node a --size 20G

Of other images, and where you do it yourself, make both hosts' larger first (`lvextend -L 20G vg/disk`, or `truncate -s 20G disk.img`):

  evertwin grow vm.toml --node a        as large as the primary's image is by now

What is behind a disk's old end becomes zeroes: a block device is overwritten there, and a file with something there is refused. Disks
don't shrink. The guest is told, and sees a larger disk; its file system is the guest's to grow (`growpart`, `resize2fs`).";

/// Options of `evertwin grow`.
#[derive(Debug, Args)]
pub struct GrowArgs {
    /// Which twin.
    #[command(flatten)]
    pub twin: TwinArgs,
    /// Number of the disk: the first [[disk]] of the configuration is 0.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub disk: u32,
    /// Its new size, such as 20G, or in bytes. Without: the size that the primary's image has.
    #[arg(long)]
    pub size: Option<String>,
}

/// Options of `evertwin scrub`.
#[derive(Debug, Args)]
pub struct ScrubArgs {
    /// Which twin.
    #[command(flatten)]
    pub twin: TwinArgs,
    /// Compare both twins' memories as well.
    #[arg(long)]
    pub memory: bool,
}

/// Options of `evertwin promote`.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// Which twin.
    #[command(flatten)]
    pub twin: TwinArgs,
    /// The other host is powered off, or its evertwin has ended. If that is not so, the guest runs twice.
    #[arg(long)]
    pub peer_is_dead: bool,
}

/// Options of commands that make hosts on this machine.
#[derive(Debug, Clone, Copy, Args)]
pub struct SlowArgs {
    /// For slow machines, such as emulated ones: epochs, timeouts and waits last so many times as long.
    #[arg(long, value_name = "TIMES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub slow: u32,
}

/// Options of `evertwin bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What is measured; everything, unless something is named.
    #[arg(value_enum)]
    pub rows: Vec<bench::Name>,
    /// Name every row, with a line on what it is.
    #[arg(long)]
    pub list: bool,
    /// Print the figures as one JSON document; the progress goes to standard error.
    #[arg(long)]
    pub json: bool,
    /// How slow the machine is.
    #[command(flatten)]
    pub slow: SlowArgs,
}

const ABOUT_BENCH: &str = "\
The twins, the built-in guest and its clients all run on this machine, on hosts made of network namespaces, and nothing is left behind:
two hosts of their own would share neither processors nor caches, but have a real network between them.

  evertwin bench --list           every row, with a line on what it is
  evertwin bench delay blackout   two of them

Each row ends with a line such as

  delay: added_p50_us=341 added_p99_us=820 bare_p50_us=112 ratio=3.04

Figures have their units at the ends of their names. The last one is what they are compared with, measured in the same run, and `ratio` is the
first by the last. A row that can't be measured says FAILED and why; the others are measured all the same, and the exit code is 1.";

/// Options of `evertwin keys`.
#[derive(Debug, Args)]
#[command(after_help = ABOUT_KEYS)]
pub struct KeysArgs {
    /// Directory to make them in, on a machine that you trust; it need not be one of the hosts.
    pub directory: PathBuf,
    /// Name of a node, as in the VM's configuration. May be given several times.
    #[arg(long, required = true, value_name = "NAME")]
    pub node: Vec<NodeId>,
    /// Replace keys that these nodes have already. The CA stays.
    #[arg(long)]
    pub renew: bool,
}

const ABOUT_KEYS: &str = "\
The twins talk TLS 1.3, and each proves who it is by a certificate. It is signed by a CA that is made here for them alone;
nobody else's certificate is accepted.

  evertwin keys keys --node a --node b
      makes keys/ca.crt and keys/ca.key, the CA, and for each node a directory: keys/a, keys/b
  scp -r keys/a host-a:/etc/evertwin/keys/   (and keys/b to host b)
      brings each host its own keys: ca.crt, node.crt, node.key
  keys = \"/etc/evertwin/keys/{node}\"
      in the section [replication] of vm.toml tells the twins where they are

One set of keys serves all VMs of the same two hosts. Keep ca.key away from the hosts: it is needed for other nodes, and for
new certificates (--renew) before the old ones expire after ten years; twins that start warn a month before.";

/// Options of `evertwin run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Configuration file of the VM; the same on both hosts.
    #[arg(conflicts_with = "kernel")]
    pub config: Option<PathBuf>,
    /// Which node of the configuration this host is.
    #[arg(long, requires = "config", conflicts_with = "kernel")]
    pub node: Option<String>,
    /// Kernel: an x86-64 ELF vmlinux, a bzImage, or `pico`, the built-in guest.
    #[arg(long, required_unless_present = "config")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[arg(long, requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line; devices are added to it.
    #[arg(long, requires = "kernel", default_value = "console=ttyS0")]
    pub cmdline: String,
    /// RAM, for example 512M or 2G.
    #[arg(long, requires = "kernel", default_value = "256M")]
    pub memory: String,
    /// Virtual CPUs, 1 to 8.
    #[arg(long, requires = "kernel", default_value_t = 1)]
    pub vcpus: u64,
    /// What to do when the guest reboots.
    #[arg(long, requires = "kernel", value_enum, default_value_t = AfterEnd::Restart)]
    pub on_reboot: AfterEnd,
    /// What to do when the guest's kernel panics; `exit` ends with code 101.
    #[arg(long, requires = "kernel", value_enum, default_value_t = AfterEnd::Exit)]
    pub on_panic: AfterEnd,
    /// A disk: path=FILE[,readonly][,serial=TEXT][,cache=host|none]. May be given several times.
    #[arg(long, requires = "kernel", value_name = "path=FILE")]
    pub disk: Vec<String>,
    /// A network card on an existing TAP: tap=NAME,mac=ADDRESS. May be given several times.
    #[arg(long, requires = "kernel", value_name = "tap=NAME,mac=ADDRESS")]
    pub net: Vec<String>,
    /// Streams between the guest and programs of this host, by a Unix socket: cid=NUMBER,socket=PATH.
    #[arg(long, requires = "kernel", value_name = "cid=NUMBER,socket=PATH")]
    pub vsock: Option<String>,
}

impl RunArgs {
    /// How the VM would be replicated, if its file says so and its level is none.
    ///
    /// # Errors
    /// Whatever is wrong with the file, by name.
    pub fn unprotected(&self) -> Result<Option<ReplicationConfig>, ConfigError> {
        let (Some(path), Some(node)) = (&self.config, self.node.as_deref()) else {
            return Ok(None);
        };
        let found = config::load_operated(path, Some(node))?;
        Ok(found.filter(|replication| replication.protection == Protection::None))
    }

    /// The VM these options describe, and its protection.
    ///
    /// # Errors
    /// Whatever is wrong with options or file, by name.
    pub fn resolve(&self) -> Result<(VmConfig, Option<ReplicationConfig>), ConfigError> {
        if let Some(path) = &self.config {
            return config::load(path, self.node.as_deref());
        }
        let kernel = self.kernel.clone().unwrap_or_else(|| "pico".into());
        let disks = self.disk.iter().map(|text| config::parse_disk(text));
        let nets = self.net.iter().map(|text| config::parse_net(text));
        let vm = VmConfig {
            name: "vm".into(),
            kernel: kernel.into(),
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            memory: config::parse_size(&self.memory)?,
            vcpus: config::check_vcpus(self.vcpus)?,
            on_reboot: self.on_reboot,
            on_panic: self.on_panic,
            disks: disks.collect::<Result<Vec<DiskConfig>, _>>()?,
            nets: nets.collect::<Result<Vec<NetConfig>, _>>()?,
            vsock: self.vsock.as_deref().map(config::parse_vsock).transpose()?,
        };
        Ok((vm, None))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_plain_vm_from_options() {
        let cli = Cli::parse_from([
            "evertwin",
            "run",
            "--kernel",
            "vmlinux",
            "--memory",
            "1G",
            "--disk",
            "path=d.img",
            "--net",
            "tap=t0,mac=52:54:00:00:00:01",
            "--vsock",
            "cid=3,socket=vm.vsock",
        ]);
        let Command::Run(args) = cli.command else {
            panic!("`run` was parsed as something else");
        };
        let (vm, replication) = args.resolve().unwrap();
        assert_eq!(vm.memory, 1 << 30);
        assert_eq!((vm.disks.len(), vm.nets.len()), (1, 1));
        assert_eq!(vm.vsock.unwrap().cid, 3);
        assert!(replication.is_none());
    }

    #[test]
    fn a_file_and_options_exclude_each_other() {
        for args in [
            &["evertwin", "run"][..],
            &["evertwin", "run", "vm.toml", "--kernel", "k"],
            &["evertwin", "run", "--kernel", "k", "--node", "a"],
        ] {
            assert!(Cli::try_parse_from(args).is_err(), "{args:?}");
        }
    }
}
