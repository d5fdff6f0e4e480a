//! The lab's network: two hosts and a client.
//!
//! ```text
//!   host a  repl0 192.168.50.1 ───────── 192.168.50.2 repl0  host b
//!   tap0 ─ br0 ─ lan0                           lan0 ─ br0 ─ tap0
//!                  └── host-a ─ br0 ─ host-b ────┘
//!                        client 10.77.0.1
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use evertwin_replicator::NodeId;

use super::LabError;
use super::namespace::NetNamespace;

/// The guest's address on the lab's LAN.
pub const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
/// The client's address on the lab's LAN.
pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
/// The TAP device that each host offers to its VM.
pub const TAP: &str = "tap0";
/// Where the guest's key-value server listens.
pub const GUEST_KV: SocketAddr = SocketAddr::new(GUEST, 6379);

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// Node `a`, which starts as the primary.
    A,
    /// Node `b`.
    B,
}

impl Node {
    /// The node's name in the config file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The same as the replicator has it.
    ///
    /// # Panics
    /// Never: both names are valid.
    #[must_use]
    pub fn id(self) -> NodeId {
        self.name().parse().expect("a short name of letters")
    }

    /// The node's address on the replication link.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        let host = match self {
            Self::A => 1,
            Self::B => 2,
        };
        SocketAddr::from(([192, 168, 50, host], 7700))
    }

    /// The other node.
    #[must_use]
    pub fn peer(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// A host's interface towards the guest's LAN.
pub const UPLINK: &str = "lan0";
/// A node's end of the replication link.
pub const REPLICATION: &str = "repl0";

/// Two hosts joined by a replication link, and a client on the guest's LAN. All of it goes when this is dropped and
/// the processes inside have ended.
#[derive(Clone, Debug)]
pub struct Topology {
    /// Host a.
    pub a: NetNamespace,
    /// Host b.
    pub b: NetNamespace,
    /// The client's host, whose bridge is the LAN's switch.
    pub client: NetNamespace,
}

impl Topology {
    /// Makes the three namespaces and everything in them.
    ///
    /// # Errors
    /// Those of [`NetNamespace::new`] and [`NetNamespace::ip`].
    pub fn new() -> Result<Self, LabError> {
        let a = NetNamespace::new("host a")?;
        let b = NetNamespace::new("host b")?;
        let client = NetNamespace::new("client")?;
        client.ip(&[
            "link set lo up".to_owned(),
            bridge("br0"),
            format!("address add {CLIENT}/24 dev br0"),
            format!(
                "link add host-a type veth peer name lan0 netns {}",
                a.path().display()
            ),
            format!(
                "link add host-b type veth peer name lan0 netns {}",
                b.path().display()
            ),
            "link set host-a master br0 up".to_owned(),
            "link set host-b master br0 up".to_owned(),
            "link set br0 up".to_owned(),
        ])?;
        a.ip(&[format!(
            "link add {REPLICATION} type veth peer name {REPLICATION} netns {}",
            b.path().display()
        )])?;
        for (node, host) in [(Node::A, &a), (Node::B, &b)] {
            host.ip(&[
                "link set lo up".to_owned(),
                format!("address add {}/24 dev {REPLICATION}", node.address().ip()),
                format!("link set {REPLICATION} up"),
                bridge("br0"),
                format!("tuntap add {TAP} mode tap"),
                format!("link set {TAP} master br0 up"),
                format!("link set {UPLINK} master br0 up"),
                "link set br0 up".to_owned(),
            ])?;
        }
        Ok(Self { a, b, client })
    }

    /// The namespace of a node.
    #[must_use]
    pub fn host(&self, node: Node) -> &NetNamespace {
        match node {
            Node::A => &self.a,
            Node::B => &self.b,
        }
    }

    /// Pulls (`false`) or plugs (`true`) the cable between a host and the guest's LAN: [`UPLINK`] has no carrier without it.
    ///
    /// # Errors
    /// Those of [`NetNamespace::ip`].
    pub fn set_uplink(&self, node: Node, up: bool) -> Result<(), LabError> {
        let state = if up { "up" } else { "down" };
        self.client
            .ip(&[format!("link set host-{} {state}", node.name())])
    }

    /// Pulls (`false`) or plugs (`true`) the replication link's cable.
    ///
    /// # Errors
    /// Those of [`NetNamespace::ip`].
    pub fn set_replication_link(&self, up: bool) -> Result<(), LabError> {
        self.a.ip(&[format!(
            "link set {REPLICATION} {}",
            if up { "up" } else { "down" }
        )])
    }
}

/// A switch that forwards from its first frame on and invents no frames of its own.
fn bridge(name: &str) -> String {
    format!("link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")
}
