//! The lab's three networks, and how a host is put on them.
//!
//! ```text
//!   host a  repl0 192.168.50.1 ──── replication ──── 192.168.50.2 repl0  host b
//!   tap0 ─ br0 ─ lan0 ───────────── guest LAN ─────────────── lan0 ─ br0 ─ tap0
//!                           client  lan0 10.77.0.1
//!   mgmt0 192.168.60.1 ──────────── management ──────────── 192.168.60.2 mgmt0
//!                  client (arbiter)  mgmt0 192.168.60.3
//! ```

use crate::lab::HostName;

/// The guest's address on its LAN.
pub(crate) const GUEST: &str = "10.77.0.2";
/// The guest's hardware address.
pub(crate) const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Where the arbiter listens.
pub(crate) const ARBITER: &str = "192.168.60.3:2379";

/// A card of a host, by the network that it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Card {
    /// Between the twins' hosts only.
    Replication,
    /// The guest's: twins' hosts bridge the guest's TAP onto it.
    GuestLan,
    /// The way to the arbiter.
    Management,
}

impl Card {
    /// The card's name on its host.
    #[must_use]
    pub fn device(self) -> &'static str {
        match self {
            Self::Replication => "repl0",
            Self::GuestLan => "lan0",
            Self::Management => "mgmt0",
        }
    }

    /// Its hardware address.
    pub(crate) fn mac(self, host: HostName) -> String {
        format!("52:54:00:ee:{:02x}:{:02x}", self as u8 + 1, host as u8 + 1)
    }
}

/// The hosts on each network, in the order of their cards.
pub(crate) const NETWORKS: &[(Card, &[HostName])] = &[
    (Card::Replication, &[HostName::A, HostName::B]),
    (
        Card::GuestLan,
        &[HostName::A, HostName::B, HostName::Client],
    ),
    (
        Card::Management,
        &[HostName::A, HostName::B, HostName::Client],
    ),
];

/// Lines for `ip -batch` that put a host with these cards on its networks.
pub(crate) fn set_up(host: HostName, cards: &[Card]) -> String {
    let number = host as u8 + 1;
    let mut lines = vec!["link set lo up".to_owned()];
    for (at, card) in cards.iter().enumerate() {
        lines.push(format!("link set eth{at} name {}", card.device()));
    }
    for card in cards {
        let device = card.device();
        let address = match (card, host) {
            (Card::Replication, _) => Some(format!("192.168.50.{number}/24")),
            (Card::Management, _) => Some(format!("192.168.60.{number}/24")),
            (Card::GuestLan, HostName::Client) => Some("10.77.0.1/24".to_owned()),
            (Card::GuestLan, _) => None,
        };
        match address {
            Some(address) => lines.push(format!("address add {address} dev {device}")),
            // A switch that forwards from its first frame on and invents no frames of its own.
            None => lines.extend([
                "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned(),
                "tuntap add tap0 mode tap".to_owned(),
                "link set tap0 master br0 up".to_owned(),
                format!("link set {device} master br0"),
                "link set br0 up".to_owned(),
            ]),
        }
        lines.push(format!("link set {device} up"));
    }
    lines.join("\n") + "\n"
}
