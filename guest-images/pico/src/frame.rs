//! A look into Ethernet frames that goes before the TCP/IP stack.

use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket};

/// The far end of a TCP connection: address and port.
pub type Peer = ([u8; 4], u16);

/// The sender and the port it asks for, if the frame holds the first segment of a TCP
/// connection (SYN, no ACK).
pub fn opens_connection(frame: &[u8]) -> Option<(Peer, u16)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    if packet.next_header() != IpProtocol::Tcp {
        return None;
    }
    let segment = TcpPacket::new_checked(packet.payload()).ok()?;
    let opens = segment.syn() && !segment.ack();
    opens.then(|| {
        (
            (packet.src_addr().octets(), segment.src_port()),
            segment.dst_port(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 TCP segment from 10.0.0.1:4660 with these flags.
    fn frame(flags: u8) -> Vec<u8> {
        let mut frame = vec![0; 54];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&[0, 40]);
        frame[23] = 6;
        frame[26..30].copy_from_slice(&[10, 0, 0, 1]);
        frame[34..36].copy_from_slice(&[0x12, 0x34]);
        frame[36..38].copy_from_slice(&[0x18, 0xeb]);
        frame[46] = 0x50;
        frame[47] = flags;
        frame
    }

    #[test]
    fn only_a_syn_without_ack_opens() {
        assert_eq!(
            opens_connection(&frame(0x02)),
            Some((([10, 0, 0, 1], 0x1234), 0x18eb))
        );
        assert_eq!(opens_connection(&frame(0x12)), None);
        assert_eq!(opens_connection(&frame(0x10)), None);
    }

    #[test]
    fn truncated_frames_open_nothing() {
        let whole = frame(0x02);
        for length in 0..whole.len() {
            assert_eq!(opens_connection(&whole[..length]), None, "{length} bytes");
        }
    }
}
