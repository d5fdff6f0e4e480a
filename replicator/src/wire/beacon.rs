//! Where to look whether the sender lives.

use std::net::{Ipv6Addr, SocketAddr};

use super::frame::Frame;
use super::header::Kind;
use super::reader::Reader;

/// Says where the sender keeps a port open: 16 bytes of an IPv6 address, in which an IPv4 address
/// is mapped, and the port.
pub(crate) fn beacon_frame(beacon: SocketAddr) -> Frame {
    let ip = match beacon.ip() {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        std::net::IpAddr::V6(ip) => ip,
    };
    let mut payload = ip.octets().to_vec();
    payload.extend(beacon.port().to_le_bytes());
    Frame::new(Kind::Beacon, 0, 0, &payload)
}

/// Reads it back.
pub(crate) fn beacon(payload: &[u8]) -> Option<SocketAddr> {
    let mut reader = Reader(payload);
    let ip = Ipv6Addr::from_octets(reader.array()?).to_canonical();
    let port = reader.u16()?;
    reader.end()?;
    let meant = port != 0 && !ip.is_unspecified() && !ip.is_multicast();
    meant.then(|| SocketAddr::new(ip, port))
}
