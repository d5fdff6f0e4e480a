//! A third machine that runs etcd, reachable from both hosts until it is cut off.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use evertwin::lab::namespace::NetNamespace;
use evertwin::lab::process::Process;
use evertwin::lab::topology::{Node, Topology};
use evertwin_replicator::arbiter::{EtcdArbiter, Record};

use crate::lab::{STEP, TestLab};

/// Members' addresses on the network that joins them with the hosts.
const ADDRESSES: [&str; 3] = ["192.168.60.3", "192.168.60.4", "192.168.60.5"];

/// The hosts' end of that network.
const DEVICE: &str = "etcd0";

/// etcd on a machine of its own: one member, or three.
#[derive(Debug)]
pub struct EtcdHost {
    /// The members; frozen or killed at will.
    pub members: Vec<Process>,
    host: NetNamespace,
    directory: PathBuf,
}

impl EtcdHost {
    /// Connects a third machine to the lab's hosts and starts etcd there.
    ///
    /// # Panics
    /// If etcd is missing or does not answer in time.
    #[must_use]
    pub fn start(lab: &TestLab) -> Self {
        Self::with_members(lab, 1)
    }

    /// The same with three members.
    ///
    /// # Panics
    /// If etcd is missing or does not answer in time.
    #[must_use]
    pub fn cluster(lab: &TestLab) -> Self {
        Self::with_members(lab, ADDRESSES.len())
    }

    fn with_members(lab: &TestLab, members: usize) -> Self {
        let topology = &lab.topology;
        let host = NetNamespace::new("etcd").unwrap_or_else(|error| panic!("{error}"));
        let port = |node: Node| {
            format!(
                "link add {} type veth peer name {DEVICE} netns {}",
                port(node),
                topology.host(node).path().display()
            )
        };
        let addresses = ADDRESSES.iter().take(members);
        let mut lines = vec![
            "link set lo up".to_owned(),
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned(),
            port(Node::A),
            port(Node::B),
            "link set host-a master br0 up".to_owned(),
            "link set host-b master br0 up".to_owned(),
            "link set br0 up".to_owned(),
        ];
        lines.extend(addresses.map(|address| format!("address add {address}/24 dev br0")));
        host.ip(&lines).unwrap_or_else(|error| panic!("{error}"));
        for (node, last) in [(Node::A, 1), (Node::B, 2)] {
            topology
                .host(node)
                .ip(&[
                    format!("address add 192.168.60.{last}/24 dev {DEVICE}"),
                    format!("link set {DEVICE} up"),
                ])
                .unwrap_or_else(|error| panic!("{error}"));
        }
        let mut etcd = Self {
            members: Vec::new(),
            host,
            directory: lab.directory().to_owned(),
        };
        for index in 0..members {
            etcd.members.push(etcd.member(index, members));
        }
        etcd.wait();
        etcd
    }

    fn member(&self, index: usize, of: usize) -> Process {
        let name = |index: usize| format!("etcd-{index}");
        let peer = |index: usize| format!("http://{}:2380", ADDRESSES[index]);
        let all: Vec<String> = (0..of)
            .map(|index| format!("{}={}", name(index), peer(index)))
            .collect();
        let url = format!("http://{}:2379", ADDRESSES[index]);
        let mut command = self.host.command("etcd");
        command
            .args(["--name", &name(index), "--data-dir"])
            .arg(self.directory.join(name(index)))
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .args(["--listen-peer-urls", &peer(index)])
            .args(["--initial-advertise-peer-urls", &peer(index)])
            .args(["--initial-cluster", &all.join(",")]);
        Process::start(command, &name(index), &self.directory)
            .unwrap_or_else(|error| panic!("{error}: run `make deps`"))
    }

    /// Starts a member that was killed on the data that it has.
    pub fn restart(&mut self, index: usize) {
        self.members[index] = self.member(index, self.members.len());
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// If it does not come to that in time.
    pub fn wait(&self) {
        let deadline = Instant::now() + STEP;
        while let Err(error) = self.load("probe") {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What `vm.toml` says about it.
    #[must_use]
    pub fn arbiter(&self) -> String {
        let urls: Vec<String> = self
            .addresses()
            .iter()
            .map(|address| format!("http://{address}"))
            .collect();
        format!("etcd:{}", urls.join(","))
    }

    /// The record of a VM.
    ///
    /// # Panics
    /// If there is none, or etcd gives no answer.
    #[must_use]
    pub fn record(&self, vm: &str) -> Record {
        let record = self.load(vm).unwrap_or_else(|error| panic!("{error}"));
        record.expect("the VM was claimed")
    }

    /// Lets nothing more pass between a node and etcd in one direction, or lets it pass again.
    ///
    /// # Panics
    /// If that is refused.
    pub fn set_path(&self, topology: &Topology, node: Node, direction: Direction, up: bool) {
        let (end, port) = (topology.host(node), port(node));
        let (end, device) = match direction {
            Direction::ToEtcd => (end, DEVICE),
            Direction::FromEtcd => (&self.host, port.as_str()),
        };
        let done = if up {
            end.heal_outbound(device)
        } else {
            end.cut_outbound(device)
        };
        done.unwrap_or_else(|error| panic!("{error}"));
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        ADDRESSES[..self.members.len().max(1)]
            .iter()
            .map(|address| format!("{address}:2379").parse().unwrap())
            .collect()
    }

    fn load(&self, vm: &str) -> Result<Option<Record>, String> {
        let mut arbiter = EtcdArbiter::new(self.addresses(), vm);
        let loaded = self.host.enter(|| arbiter.load());
        loaded
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())
    }
}

/// One direction of a path between a node and etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What the node says.
    ToEtcd,
    /// What it is told.
    FromEtcd,
}

/// The switch's port of a node.
fn port(node: Node) -> String {
    format!("host-{}", node.name())
}
