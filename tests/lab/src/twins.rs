//! The guest and its two monitors.

use evertwin::lab::events::Line;
use evertwin::lab::pair::{KEYS, make_keys};
use evertwin_replicator::tls::{AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::error::{LabError, demand};
use crate::host::{Ended, RemoteProcess};
use crate::lab::{HostName, Lab};
use crate::network::{ARBITER, GUEST, GUEST_MAC};

/// Where a host keeps the guest's own disk, and how Debian's tools see it.
const DATA_DISK: &str = "/disk/data.img";
pub(crate) const DATA_DISK_FOR_TOOLS: &str = "/mnt/data.img";

/// Where a host has the keys of its node.
const HOST_KEYS: &str = "/keys";

/// Where a host has the guest's vsock, and how Debian's tools see it.
const VSOCK: &str = "/debian/tmp/vm.vsock";
pub(crate) const VSOCK_FOR_TOOLS: &str = "/tmp/vm.vsock";

/// What the guest boots.
#[derive(Clone, Debug)]
pub enum Kernel {
    /// The built-in guest, with this command line.
    Pico(String),
    /// Debian with the services that `evertwin.start=` names, or with systemd if none are given.
    Debian(Option<&'static str>),
}

/// The guest's configuration, as `vm.toml` has it.
#[derive(Clone, Debug)]
pub struct VmFile {
    /// What it boots.
    pub kernel: Kernel,
    /// Its memory.
    pub memory_mib: u32,
    /// Its processors.
    pub vcpus: u32,
    /// Size of its own disk, if it has one.
    pub data_mib: Option<u32>,
    /// Whether it has a vsock.
    pub vsock: bool,
    /// Whether the twins may meet on the management network, too.
    pub second_path: bool,
    /// Whether it is protected.
    pub protected: bool,
    /// Whether only its disks are replicated.
    pub ha: bool,
}

impl VmFile {
    /// The text of `vm.toml`.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::from("name = \"lab\"\n");
        text += &match &self.kernel {
            Kernel::Pico(cmdline) => format!("kernel = \"pico\"\ncmdline = \"{cmdline}\"\n"),
            Kernel::Debian(services) => {
                let init = services.map_or_else(String::new, |services| {
                    format!(" init=/usr/local/sbin/lab-init evertwin.start={services}")
                });
                let overlay = if self.data_mib.is_some() {
                    "/dev/vdb"
                } else {
                    "tmpfs"
                };
                format!(
                    "kernel = \"/guest/vmlinuz\"\ninitrd = \"/guest/initrd\"\n\
                     cmdline = \"console=ttyS0 quiet panic=-1 ipv6.disable=1 mitigations=off ro \
                     evertwin.overlay={overlay} evertwin.ip={GUEST}/24{init}\"\n"
                )
            }
        };
        text += &format!("memory = \"{}M\"\n", self.memory_mib);
        if self.ha {
            text += "protection = \"ha\"\n";
        }
        if self.vcpus != 1 {
            text += &format!("vcpus = {}\n", self.vcpus);
        }
        if matches!(self.kernel, Kernel::Debian(_)) {
            text += "[[disk]]\npath = \"/dev/vda\"\nreadonly = true\n";
        }
        if self.data_mib.is_some() {
            text += &format!("[[disk]]\npath = \"{DATA_DISK}\"\n");
        }
        let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        text += &format!("[[net]]\ntap = \"tap0\"\nmac = \"{mac}\"\n");
        if self.vsock {
            text += &format!("[vsock]\ncid = 3\nsocket = \"{VSOCK}\"\n");
        }
        if self.protected {
            // Emulated hosts are slow and share two processors: nothing is dead because it is late.
            text += &format!(
                "[replication]\nkeys = \"{HOST_KEYS}\"\narbiter = \"etcd:http://{ARBITER}\"\n\
                 epoch = \"200ms\"\nheartbeat = \"500ms\"\ntimeout = \"3s\"\n\
                 [node.a]\naddress = {}\n[node.b]\naddress = {}\n",
                self.addresses(1),
                self.addresses(2)
            );
        }
        text
    }

    /// The addresses of a host, by its number on each network.
    fn addresses(&self, host: u8) -> String {
        let first = format!("\"192.168.50.{host}:7700\"");
        if self.second_path {
            format!("[{first}, \"192.168.60.{host}:7700\"]")
        } else {
            first
        }
    }
}

/// The monitors of one guest, on hosts a and b.
#[derive(Debug)]
pub struct Twins {
    file: VmFile,
    /// Where the keys of both nodes were made.
    keys: TempDir,
    a: Option<RemoteProcess>,
    b: Option<RemoteProcess>,
    starts: u32,
    program: &'static str,
}

impl Twins {
    /// Starts the arbiter if one is needed, and puts `vm.toml`, the keys and the guest's disk on the hosts.
    ///
    /// # Errors
    /// A host refuses.
    pub fn prepare(lab: &Lab, file: VmFile) -> Result<Self, LabError> {
        let keys = tempfile::tempdir().map_err(LabError::io("making a directory for keys"))?;
        make_keys(keys.path())?;
        let twins = Self {
            file,
            keys,
            a: None,
            b: None,
            starts: 0,
            program: "/evertwin",
        };
        twins.place_files(lab, HostName::A)?;
        if twins.file.protected {
            start_arbiter(lab)?;
            twins.place_files(lab, HostName::B)?;
        }
        Ok(twins)
    }

    /// Puts the files of this guest on a host; what was on its disk is kept.
    ///
    /// # Errors
    /// The host refuses.
    pub fn place_files(&self, lab: &Lab, host: HostName) -> Result<(), LabError> {
        let on = lab.host(host);
        on.write("/vm.toml", &self.file.to_toml(), 0o644)?;
        if self.file.protected {
            self.place_keys(lab, host)?;
        }
        let Some(mib) = self.file.data_mib else {
            return Ok(());
        };
        if on.run(&["/bin/busybox", "ls", DATA_DISK]).is_ok() {
            return Ok(());
        }
        let size = format!("{mib}M");
        on.tool(&["truncate", "-s", &size, DATA_DISK_FOR_TOOLS])?;
        // The standby's is made a copy of the primary's.
        if matches!(self.file.kernel, Kernel::Debian(_)) && host == HostName::A {
            on.tool(&[
                "mke2fs",
                "-q",
                "-t",
                "ext4",
                "-J",
                "size=4",
                DATA_DISK_FOR_TOOLS,
            ])?;
        }
        Ok(())
    }

    fn place_keys(&self, lab: &Lab, host: HostName) -> Result<(), LabError> {
        let made = self.keys.path().join(KEYS).join(host.as_str());
        for (name, mode) in [
            (AUTHORITY_FILE, 0o644),
            (CERTIFICATE_FILE, 0o644),
            (KEY_FILE, 0o600),
        ] {
            let text = std::fs::read_to_string(made.join(name))
                .map_err(LabError::io(format!("reading the keys of {host}")))?;
            lab.host(host)
                .write(&format!("{HOST_KEYS}/{name}"), &text, mode)?;
        }
        Ok(())
    }

    /// Starts the previous monitor from now on, or this one.
    pub fn use_previous(&mut self, previous: bool) {
        self.program = if previous {
            "/evertwin-previous"
        } else {
            "/evertwin"
        };
    }

    /// Starts the monitor on a host as a user would.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(&mut self, lab: &mut Lab, host: HostName) -> Result<RemoteProcess, LabError> {
        let mut argv = vec![self.program, "run", "/vm.toml", "--log-format", "json"];
        if self.file.protected {
            argv.extend(["--node", host.as_str()]);
        }
        self.starts += 1;
        let name = format!("evertwin-{}", self.starts);
        let failpoints = std::env::var("FAILPOINTS").ok();
        let env: Vec<_> = failpoints
            .map(|points| ("FAILPOINTS".to_owned(), points))
            .into_iter()
            .collect();
        let process = lab.host(host).start(&name, &argv, &env)?;
        lab.monitors.push(process.clone());
        match host {
            HostName::A => self.a = Some(process.clone()),
            _ => self.b = Some(process.clone()),
        }
        Ok(process)
    }

    /// Starts the primary, waits until its guest says `ready`, starts the standby and waits until the pair is
    /// protected. A guest boots faster while it is alone.
    ///
    /// # Errors
    /// It is not in time.
    pub fn start_protected(&mut self, lab: &mut Lab, ready: &str) -> Result<(), LabError> {
        let a = self.start(lab, HostName::A)?;
        a.await_output(0, ready)?;
        self.start(lab, HostName::B)?;
        a.await_event("protected").map(drop)
    }

    /// The monitor that was last started on a host.
    ///
    /// # Panics
    /// If none was.
    #[must_use]
    pub fn on(&self, host: HostName) -> &RemoteProcess {
        let process = match host {
            HostName::A => &self.a,
            _ => &self.b,
        };
        process.as_ref().expect("a monitor was started on the host")
    }

    /// Kills the monitor on a host, as a crash would.
    ///
    /// # Errors
    /// It has ended before.
    pub fn crash(&self, lab: &Lab, host: HostName) -> Result<(), LabError> {
        let process = self.on(host);
        lab.host(host).signal(process.name(), Signal::KILL)?;
        let ended = process.await_end()?;
        demand!(
            ended == Ended::Signal(9),
            "evertwin on {host} ended by itself: {ended:?}"
        );
        Ok(())
    }

    /// Has the twin on a host obey an operator's command, such as `switchover`.
    ///
    /// # Errors
    /// It does not.
    pub fn operate(&self, lab: &Lab, host: HostName, command: &[&str]) -> Result<String, LabError> {
        let target = ["/vm.toml", "--node", host.as_str()];
        lab.host(host)
            .run(&[&["/evertwin"], command, &target[..]].concat())
    }

    /// Types a line on the guest's serial console.
    ///
    /// # Errors
    /// The monitor there has ended.
    pub fn type_line(&self, lab: &Lab, host: HostName, line: &str) -> Result<(), LabError> {
        lab.host(host)
            .input(self.on(host).name(), &format!("{line}\n"))
    }
}

fn start_arbiter(lab: &Lab) -> Result<(), LabError> {
    // It is linked to Debian's libraries, so it runs where they are.
    lab.client
        .run(&["/bin/busybox", "cp", "/etcd", "/debian/tmp/etcd"])?;
    let url = format!("http://{ARBITER}");
    let etcd = lab.client.start_tool(
        "etcd",
        &[
            "/tmp/etcd",
            "--data-dir",
            "/tmp/etcd-data",
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
            "--listen-peer-urls",
            "http://127.0.0.1:2380",
        ],
    )?;
    // Its log's words for "the door is open".
    etcd.await_log("serving insecure client requests").map(drop)
}

/// The judging client on the client's host: it loads a key-value server over one connection.
#[derive(Debug)]
pub struct Judge(RemoteProcess);

impl Judge {
    /// Starts the load on the guest's Redis, or pico's.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn start(lab: &Lab, depth: u32) -> Result<Self, LabError> {
        let (to, depth) = (format!("{GUEST}:6379"), depth.to_string());
        let argv = ["/init", "judge", &to, "--depth", &depth];
        let judge = Self(lab.client.start("judge", &argv, &[])?);
        judge.await_more(1)?;
        Ok(judge)
    }

    /// Acknowledged writes so far.
    #[must_use]
    pub fn acked(&self) -> u64 {
        let lines = self.0.console().lines();
        lines.last().map_or(0, acked)
    }

    /// Waits until `more` further writes are acknowledged.
    ///
    /// # Errors
    /// They are not in time.
    pub fn await_more(&self, more: u64) -> Result<(), LabError> {
        let goal = self.acked() + more;
        let from = self.0.console().len();
        let what = format!("{more} answers more");
        let found = self.0.await_line(from, &what, |line| acked(line) >= goal);
        found.map(drop)
    }

    /// Stops it for a while: what is under way is answered, and nothing new is asked.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&self, lab: &Lab) -> Result<(), LabError> {
        lab.client.signal("judge", Signal::STOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It has ended.
    pub fn resume(&self, lab: &Lab) -> Result<(), LabError> {
        lab.client.signal("judge", Signal::CONT)
    }

    /// Ends the load, has everything read back over the same connection, and demands that nothing was lost,
    /// duplicated or wrong.
    ///
    /// # Errors
    /// Something was.
    pub fn demand_clean(self, lab: &Lab) -> Result<String, LabError> {
        lab.client.input("judge", "finish\n")?;
        let ended = self.0.await_end()?;
        let is_verdict = |line: &Line| line.message().as_deref() == Some("verdict");
        let verdict = self.0.await_line(0, "a verdict", is_verdict)?;
        demand!(
            ended == Ended::Code(0),
            "the client's verdict: {}",
            verdict.text
        );
        let summary = verdict.field("summary");
        Ok(summary
            .as_ref()
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned())
    }
}

fn acked(line: &Line) -> u64 {
    line.field("acked")
        .and_then(|value| value.as_u64())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_guest_has_no_replication_and_systemd_no_init() {
        let file = VmFile {
            kernel: Kernel::Debian(None),
            memory_mib: 256,
            vcpus: 2,
            data_mib: None,
            vsock: false,
            second_path: false,
            protected: false,
            ha: false,
        };
        let parsed: toml::Table = file.to_toml().parse().unwrap();
        assert_eq!(parsed["vcpus"].as_integer(), Some(2));
        assert!(parsed.get("replication").is_none() && parsed.get("node").is_none());
        assert!(parsed.get("vsock").is_none());
        let cmdline = parsed["cmdline"].as_str().unwrap();
        assert!(
            cmdline.contains("overlay=tmpfs") && !cmdline.contains("init="),
            "{cmdline}"
        );
    }

    #[test]
    fn a_protected_guest_writes_to_its_own_disk_only() {
        let file = VmFile {
            kernel: Kernel::Debian(Some("redis")),
            memory_mib: 256,
            vcpus: 1,
            data_mib: Some(128),
            vsock: true,
            second_path: false,
            protected: true,
            ha: false,
        };
        let parsed: toml::Table = file.to_toml().parse().unwrap();
        assert_eq!(parsed["disk"][0]["readonly"].as_bool(), Some(true));
        assert_eq!(parsed["disk"][1]["path"].as_str(), Some(DATA_DISK));
        assert_eq!(parsed["vsock"]["socket"].as_str(), Some(VSOCK));
        assert!(
            parsed["replication"]["arbiter"]
                .as_str()
                .unwrap()
                .starts_with("etcd:")
        );
    }
}
