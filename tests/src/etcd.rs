//! A third machine that runs etcd, reachable from both hosts.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use evertwin::lab::namespace::NetNamespace;
use evertwin::lab::process::Process;
use evertwin::lab::topology::Node;
use evertwin_replicator::arbiter::{EtcdArbiter, Record};

use crate::lab::{STEP, TestLab};

/// etcd's address on the network that joins it with the hosts.
const ADDRESS: &str = "192.168.60.3";

/// etcd on a machine of its own.
#[derive(Debug)]
pub struct EtcdHost {
    /// The process; frozen or killed at will.
    pub process: Process,
    host: NetNamespace,
}

impl EtcdHost {
    /// Connects a third machine to the lab's hosts and starts etcd there.
    ///
    /// # Panics
    /// If etcd is missing or does not answer in time.
    #[must_use]
    pub fn start(lab: &TestLab) -> Self {
        let topology = &lab.topology;
        let host = NetNamespace::new("etcd").unwrap_or_else(|error| panic!("{error}"));
        let port = |node: Node| {
            format!(
                "link add host-{} type veth peer name etcd0 netns {}",
                node.name(),
                topology.host(node).path().display()
            )
        };
        host.ip(&[
            "link set lo up".to_owned(),
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned(),
            format!("address add {ADDRESS}/24 dev br0"),
            port(Node::A),
            port(Node::B),
            "link set host-a master br0 up".to_owned(),
            "link set host-b master br0 up".to_owned(),
            "link set br0 up".to_owned(),
        ])
        .unwrap_or_else(|error| panic!("{error}"));
        for (node, last) in [(Node::A, 1), (Node::B, 2)] {
            topology
                .host(node)
                .ip(&[
                    format!("address add 192.168.60.{last}/24 dev etcd0"),
                    "link set etcd0 up".to_owned(),
                ])
                .unwrap_or_else(|error| panic!("{error}"));
        }
        let url = format!("http://{ADDRESS}:2379");
        let mut command = host.command("etcd");
        command
            .arg("--data-dir")
            .arg(lab.path("etcd"))
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .args(["--listen-peer-urls", "http://127.0.0.1:0"]);
        let process = Process::start(command, "etcd", lab.directory());
        let process = process.unwrap_or_else(|error| panic!("{error}: run `make deps`"));
        let etcd = Self { process, host };
        let deadline = Instant::now() + STEP;
        while let Err(error) = etcd.load("probe") {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(20));
        }
        etcd
    }

    /// What `vm.toml` says about it.
    #[must_use]
    pub fn arbiter(&self) -> String {
        format!("etcd:http://{ADDRESS}:2379")
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

    fn load(&self, vm: &str) -> Result<Option<Record>, String> {
        let address = SocketAddr::new(ADDRESS.parse().map_err(|_| "not an address")?, 2379);
        let mut arbiter = EtcdArbiter::new(vec![address], vm);
        let loaded = self.host.enter(|| arbiter.load());
        loaded
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())
    }
}
