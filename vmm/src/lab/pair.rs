//! A protected VM in the lab: one config file, two twins.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::LabError;
use super::process::Process;
use super::topology::{Node, TAP, Topology};
use crate::config::FastPath;
use crate::keys;

/// The guest's MAC address.
pub const GUEST_MAC: &str = "52:54:00:12:34:56";

/// Where the twins' keys are, beside the config file.
pub const KEYS: &str = "keys";

/// What the pair's config file says. The default is what the demo runs.
#[derive(Clone, Debug)]
pub struct PairConfig {
    /// The guest's kernel: `pico` or a path.
    pub kernel: String,
    /// Its command line.
    pub cmdline: String,
    /// Its memory, as in the config file.
    pub memory: String,
    /// How many vCPUs it has.
    pub vcpus: u8,
    /// Size of the disk in bytes, if it has one.
    pub disk: Option<u64>,
    /// Size of a second disk in bytes, if there is one: `disk2-NODE.img`.
    pub second_disk: Option<u64>,
    /// Which way requests reach the disks, as in the config file.
    pub cache: Option<String>,
    /// The uplink of the guest's card, as in the config file, if there is one.
    pub uplink: Option<String>,
    /// The level of protection as in the config file, if it says one.
    pub protection: Option<String>,
    /// The arbiter as in the config file, if there is one.
    pub arbiter: Option<String>,
    /// Longest epoch.
    pub epoch: Duration,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// Silence after which the peer counts as dead.
    pub timeout: Duration,
    /// What a copy may take of the link, as in the config file.
    pub resync_rate: Option<String>,
    /// How fast disks are compared, as in the config file.
    pub scrub_rate: Option<String>,
    /// What is done to make epochs cheap.
    pub fast_path: FastPath,
}

impl Default for PairConfig {
    fn default() -> Self {
        Self {
            kernel: "pico".to_owned(),
            cmdline: "workload=kv ip=10.77.0.2/24 log=vda".to_owned(),
            memory: "128M".to_owned(),
            vcpus: 1,
            disk: Some(64 << 20),
            second_disk: None,
            cache: None,
            uplink: None,
            protection: None,
            arbiter: Some("file:arbiter".to_owned()),
            epoch: Duration::from_millis(20),
            heartbeat: Duration::from_millis(50),
            timeout: Duration::from_millis(500),
            resync_rate: None,
            scrub_rate: None,
            fast_path: FastPath::default(),
        }
    }
}

impl PairConfig {
    /// The same for a machine that is `times` as slow: epochs and timeouts last so many times as long.
    #[must_use]
    pub fn slowed(&self, times: u32) -> Self {
        Self {
            epoch: self.epoch * times,
            heartbeat: self.heartbeat * times,
            timeout: self.timeout * times,
            ..self.clone()
        }
    }

    /// Arguments of `evertwin` that run the same guest alone, without its disks.
    #[must_use]
    pub fn bare_arguments(&self) -> Vec<String> {
        let net = format!("tap={TAP},mac={GUEST_MAC}");
        let options = [
            ("--kernel", &self.kernel),
            ("--cmdline", &self.cmdline),
            ("--memory", &self.memory),
            ("--net", &net),
        ];
        let options = options.into_iter().flat_map(|(name, value)| [name, value]);
        ["run"]
            .into_iter()
            .chain(options)
            .map(String::from)
            .collect()
    }

    /// How the names of its disks' images begin, and their sizes in bytes.
    fn disks(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let disks = [("disk", self.disk), ("disk2", self.second_disk)];
        disks
            .into_iter()
            .filter_map(|(name, bytes)| Some((name, bytes?)))
    }

    /// The text of `vm.toml`.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = format!(
            "name = \"demo\"\ncontrol = \"{{node}}.sock\"\nkernel = \"{}\"\ncmdline = \"{}\"\nmemory = \"{}\"\n",
            self.kernel, self.cmdline, self.memory
        );
        if self.vcpus != 1 {
            text += &format!("vcpus = {}\n", self.vcpus);
        }
        if let Some(protection) = &self.protection {
            text += &format!("protection = \"{protection}\"\n");
        }
        for (name, _) in self.disks() {
            text += &format!("\n[[disk]]\npath = \"{name}-{{node}}.img\"\n");
            if let Some(cache) = &self.cache {
                text += &format!("cache = \"{cache}\"\n");
            }
        }
        text += &format!("\n[[net]]\ntap = \"{TAP}\"\nmac = \"{GUEST_MAC}\"\n");
        if let Some(uplink) = &self.uplink {
            text += &format!("uplink = \"{uplink}\"\n");
        }
        text += &format!("\n[replication]\nkeys = \"{KEYS}/{{node}}\"\n");
        if let Some(arbiter) = &self.arbiter {
            text += &format!("arbiter = \"{arbiter}\"\n");
        }
        let milliseconds =
            |name: &str, time: Duration| format!("{name} = \"{}ms\"\n", time.as_millis());
        text += &milliseconds("epoch", self.epoch);
        text += &milliseconds("heartbeat", self.heartbeat);
        text += &milliseconds("timeout", self.timeout);
        if let Some(rate) = &self.resync_rate {
            text += &format!("resync_rate = \"{rate}\"\n");
        }
        if let Some(rate) = &self.scrub_rate {
            text += &format!("scrub_rate = \"{rate}\"\n");
        }
        if self.fast_path != FastPath::default() {
            let FastPath {
                copy_ahead,
                poll,
                deltas,
                pack,
            } = self.fast_path;
            text += &format!(
                "fast_path = {{ copy_ahead = {copy_ahead}, poll = {poll}, deltas = {deltas}, pack = {pack} }}\n"
            );
        }
        for node in [Node::A, Node::B] {
            text += &format!(
                "\n[node.{}]\naddress = \"{}\"\n",
                node.name(),
                node.address()
            );
        }
        text
    }
}

/// Makes the keys of both nodes in a directory, as its config file has it.
///
/// # Errors
/// [`LabError::Io`] naming the directory.
pub fn make_keys(directory: &Path) -> Result<(), LabError> {
    let directory = directory.join(KEYS);
    let made = |error: keys::MakeKeysError| LabError::Io {
        what: format!("making keys in {}", directory.display()),
        source: std::io::Error::other(error),
    };
    let nodes = [Node::A, Node::B].map(Node::id);
    keys::make(&directory, &nodes, true).map_err(made)
}

/// Two twins of one VM on the two hosts of a [`Topology`].
#[derive(Debug)]
pub struct Pair {
    /// The network that the twins run in.
    pub topology: Topology,
    evertwin: PathBuf,
    directory: PathBuf,
    environment: Vec<(String, String)>,
    twins: [Option<Process>; 2],
}

impl Pair {
    /// Writes `vm.toml`, keys and both disks into `directory`; starts nothing. `evertwin` is the binary to run.
    ///
    /// # Errors
    /// [`LabError::Io`] naming the file.
    pub fn new(
        topology: Topology,
        evertwin: &Path,
        directory: &Path,
        config: &PairConfig,
    ) -> Result<Self, LabError> {
        let written = |path: &Path| LabError::io(format!("writing {}", path.display()));
        let file = directory.join("vm.toml");
        fs::write(&file, config.to_toml()).map_err(written(&file))?;
        make_keys(directory)?;
        for node in [Node::A, Node::B] {
            for (name, length) in config.disks() {
                let path = directory.join(format!("{name}-{}.img", node.name()));
                // Sparse: only what the guest writes takes room.
                File::create(&path)
                    .and_then(|disk| disk.set_len(length))
                    .map_err(written(&path))?;
            }
        }
        Ok(Self {
            topology,
            evertwin: evertwin.to_owned(),
            directory: directory.to_owned(),
            environment: Vec::new(),
            twins: [None, None],
        })
    }

    /// Sets an environment variable for twins started from now on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Where the config, the disks and the logs are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts the twin of a node as a user would, with its log as JSON lines. A twin that still runs is killed first.
    ///
    /// # Errors
    /// Those of [`Process::start`].
    pub fn start(&mut self, node: Node) -> Result<&mut Process, LabError> {
        self.twins[node as usize] = None;
        let mut command = self.topology.host(node).command(&self.evertwin);
        command
            .arg("run")
            .arg(self.directory.join("vm.toml"))
            .args(["--node", node.name(), "--log-format", "json"]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let twin = Process::start(command, node.name(), &self.directory)?;
        Ok(self.twins[node as usize].insert(twin))
    }

    /// A twin that was started.
    ///
    /// # Panics
    /// If it was not.
    pub fn twin(&mut self, node: Node) -> &mut Process {
        self.twins[node as usize]
            .as_mut()
            .expect("the twin was started before it is used")
    }

    /// Starts both twins and waits until the pair is protected.
    ///
    /// # Errors
    /// Those of [`Pair::start`] and [`Process::wait_for_event`].
    pub fn start_protected(&mut self, timeout: Duration) -> Result<(), LabError> {
        self.start(Node::A)?;
        self.start(Node::B)?;
        self.twin(Node::A)
            .wait_for_event("protected", timeout)
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_file_is_toml_and_says_what_was_asked() {
        let config = PairConfig {
            arbiter: None,
            disk: None,
            fast_path: FastPath {
                poll: false,
                ..FastPath::default()
            },
            ..PairConfig::default()
        };
        let parsed: toml::Table = config.to_toml().parse().unwrap();
        assert_eq!(parsed["replication"]["epoch"].as_str(), Some("20ms"));
        assert_eq!(
            parsed["node"]["b"]["address"].as_str(),
            Some("192.168.50.2:7700")
        );
        assert!(parsed.get("disk").is_none() && parsed["replication"].get("arbiter").is_none());
        let switches = &parsed["replication"]["fast_path"];
        assert_eq!(switches["poll"].as_bool(), Some(false));
        assert_eq!(switches["deltas"].as_bool(), Some(true));
        let full: toml::Table = PairConfig::default().to_toml().parse().unwrap();
        assert_eq!(full["disk"][0]["path"].as_str(), Some("disk-{node}.img"));
        assert_eq!(
            full["replication"]["arbiter"].as_str(),
            Some("file:arbiter")
        );
    }
}
