//! Which addresses the guest has, and the frames that tell switches and neighbours where.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Most addresses kept; the one not seen for longest goes first.
pub(super) const MAX_ADDRESSES: usize = 16;

/// Shortest Ethernet frame, without its checksum.
const MIN_FRAME_BYTES: usize = 60;
/// Ethernet header and ARP packet for IPv4.
const ARP_FRAME_BYTES: usize = 42;
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_RARP: [u8; 2] = [0x80, 0x35];
/// Hardware Ethernet, protocol IPv4, address lengths 6 and 4 (RFC 826).
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];
const RARP_REQUEST: [u8; 2] = [0, 3];
const BROADCAST: [u8; 6] = [0xff; 6];

/// An IPv4 address of the guest and the hardware address it goes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Address {
    pub(super) mac: [u8; 6],
    pub(super) ip: Ipv4Addr,
}

/// Addresses learnt from the guest's own ARP packets. Its other traffic says less: a guest
/// may forward packets of others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Addresses(VecDeque<Address>);

impl Addresses {
    /// Looks at a frame that the guest sends.
    pub(super) fn learn(&mut self, frame: &[u8]) {
        let Some(address) = arp_sender(frame) else {
            return;
        };
        if self.0.back() == Some(&address) {
            return;
        }
        self.0.retain(|known| known.ip != address.ip);
        if self.0.len() == MAX_ADDRESSES {
            self.0.pop_front();
        }
        self.0.push_back(address);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn to_vec(&self) -> Vec<Address> {
        self.0.iter().copied().collect()
    }

    /// None if there are too many.
    pub(super) fn from_vec(addresses: Vec<Address>) -> Option<Self> {
        (addresses.len() <= MAX_ADDRESSES).then(|| Self(addresses.into()))
    }

    /// The frames to send when the guest has moved: a gratuitous ARP for each address
    /// (RFC 5227, 3), or a RARP, which at least teaches switches, if none is known.
    pub(super) fn frames(&self, mac: [u8; 6]) -> Vec<[u8; MIN_FRAME_BYTES]> {
        if self.0.is_empty() {
            let unknown = Ipv4Addr::UNSPECIFIED;
            return vec![frame(mac, ETHERTYPE_RARP, RARP_REQUEST, unknown, mac)];
        }
        self.0
            .iter()
            .map(|known| frame(known.mac, ETHERTYPE_ARP, ARP_REQUEST, known.ip, [0; 6]))
            .collect()
    }
}

fn arp_sender(frame: &[u8]) -> Option<Address> {
    let arp = frame.get(14..ARP_FRAME_BYTES)?;
    let source: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
    let operation = &arp[6..8];
    if frame[12..14] != ETHERTYPE_ARP
        || arp[..6] != ARP_ETHERNET_IPV4
        || (operation != ARP_REQUEST && operation != ARP_REPLY)
    {
        return None;
    }
    let mac: [u8; 6] = arp[8..14].try_into().ok()?;
    let ip = Ipv4Addr::from(<[u8; 4]>::try_from(&arp[14..18]).ok()?);
    let group = mac[0] & 1 != 0;
    // An unspecified sender is a probe for an address not yet taken (RFC 5227, 1.1).
    let usable = !ip.is_unspecified() && !ip.is_broadcast() && !ip.is_multicast();
    (mac == source && !group && usable).then_some(Address { mac, ip })
}

fn frame(
    mac: [u8; 6],
    ethertype: [u8; 2],
    operation: [u8; 2],
    ip: Ipv4Addr,
    target: [u8; 6],
) -> [u8; MIN_FRAME_BYTES] {
    let mut frame = [0; MIN_FRAME_BYTES];
    frame[..6].copy_from_slice(&BROADCAST);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&ethertype);
    frame[14..20].copy_from_slice(&ARP_ETHERNET_IPV4);
    frame[20..22].copy_from_slice(&operation);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&ip.octets());
    frame[32..38].copy_from_slice(&target);
    frame[38..42].copy_from_slice(&ip.octets());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    fn arp(operation: [u8; 2], ip: [u8; 4]) -> [u8; MIN_FRAME_BYTES] {
        frame(MAC, ETHERTYPE_ARP, operation, ip.into(), [0; 6])
    }

    #[test]
    fn learns_the_senders_of_arp_only() {
        let mut addresses = Addresses::default();
        addresses.learn(&arp(ARP_REQUEST, [10, 0, 0, 1]));
        addresses.learn(&arp(ARP_REPLY, [10, 0, 0, 2]));
        // A probe, a forged sender, another operation, a short and an IPv4 frame.
        addresses.learn(&arp(ARP_REQUEST, [0, 0, 0, 0]));
        let mut forged = arp(ARP_REQUEST, [10, 0, 0, 3]);
        forged[6..12].copy_from_slice(&[2; 6]);
        addresses.learn(&forged);
        addresses.learn(&arp([0, 9], [10, 0, 0, 4]));
        addresses.learn(&arp(ARP_REQUEST, [10, 0, 0, 5])[..41]);
        let mut ip = arp(ARP_REQUEST, [10, 0, 0, 6]);
        ip[13] = 0;
        addresses.learn(&ip);
        addresses.learn(&[]);
        let known: Vec<_> = addresses
            .to_vec()
            .iter()
            .map(|a| a.ip.octets()[3])
            .collect();
        assert_eq!(known, [1, 2]);
    }

    #[test]
    fn keeps_the_latest_addresses() {
        let mut addresses = Addresses::default();
        for i in 0..40 {
            addresses.learn(&arp(ARP_REPLY, [10, 0, 0, i]));
            addresses.learn(&arp(ARP_REPLY, [10, 0, 1, 1]));
        }
        let known = addresses.to_vec();
        assert_eq!(known.len(), MAX_ADDRESSES);
        assert_eq!(known.last().unwrap().ip, Ipv4Addr::new(10, 0, 1, 1));
        assert_eq!(known[14].ip, Ipv4Addr::new(10, 0, 0, 39));
        assert_eq!(Addresses::from_vec(known.clone()).unwrap(), addresses);
        assert!(Addresses::from_vec([&known[..], &known[..1]].concat()).is_none());
    }

    #[test]
    fn announces_each_address_or_the_card() {
        let mut addresses = Addresses::default();
        let [rarp] = addresses.frames(MAC)[..] else {
            panic!("one frame expected")
        };
        assert_eq!(rarp[..6], BROADCAST);
        assert_eq!(rarp[6..14], [0x52, 0x54, 0, 1, 2, 3, 0x80, 0x35]);
        assert_eq!(rarp[20..28], [0, 3, 0x52, 0x54, 0, 1, 2, 3]);

        addresses.learn(&arp(ARP_REPLY, [10, 0, 0, 1]));
        let [garp] = addresses.frames([9; 6])[..] else {
            panic!("one frame expected")
        };
        assert_eq!(garp, arp(ARP_REQUEST, [10, 0, 0, 1]));
        assert_eq!(garp[28..32], garp[38..42]);
    }
}
