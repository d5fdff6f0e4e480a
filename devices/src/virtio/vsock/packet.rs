//! The header in front of each packet (virtio 1.2, 5.10.6).

/// `struct virtio_vsock_hdr`.
pub(super) const HEADER_BYTES: usize = 44;
/// Longest payload of a packet.
pub(super) const MAX_PAYLOAD_BYTES: usize = 64 << 10;
/// The well-known CID of the host (5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// The only socket type without further features, `VIRTIO_VSOCK_TYPE_STREAM` (5.10.6).
pub(super) const TYPE_STREAM: u16 = 1;

/// Operations (5.10.6). Whatever else a packet says is answered with a reset.
pub(super) mod op {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const RESPONSE: u16 = 2;
    pub(in super::super) const RST: u16 = 3;
    pub(in super::super) const SHUTDOWN: u16 = 4;
    pub(in super::super) const RW: u16 = 5;
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// Flags of `SHUTDOWN` (5.10.6.5): what its sender will no longer do.
pub(super) mod shutdown {
    pub(in super::super) const RECEIVE: u32 = 1;
    pub(in super::super) const SEND: u32 = 2;
    pub(in super::super) const BOTH: u32 = RECEIVE | SEND;
}

/// A header's fields in their order. Nothing in it has been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of payload.
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut at = 0;
        let mut take = |count: usize| {
            let mut word = [0; 8];
            word[..count].copy_from_slice(&bytes[at..at + count]);
            at += count;
            u64::from_le_bytes(word)
        };
        Self {
            src_cid: take(8),
            dst_cid: take(8),
            src_port: take(4) as u32,
            dst_port: take(4) as u32,
            len: take(4) as u32,
            kind: take(2) as u16,
            op: take(2) as u16,
            flags: take(4) as u32,
            buf_alloc: take(4) as u32,
            fwd_cnt: take(4) as u32,
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let Self {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            len,
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        } = self;
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |value: &[u8]| {
            bytes[at..at + value.len()].copy_from_slice(value);
            at += value.len();
        };
        put(&src_cid.to_le_bytes());
        put(&dst_cid.to_le_bytes());
        put(&src_port.to_le_bytes());
        put(&dst_port.to_le_bytes());
        put(&len.to_le_bytes());
        put(&kind.to_le_bytes());
        put(&op.to_le_bytes());
        put(&flags.to_le_bytes());
        put(&buf_alloc.to_le_bytes());
        put(&fwd_cnt.to_le_bytes());
        bytes
    }

    /// The reset that answers this packet: from where it was meant for, to where it came from.
    pub(super) fn reset(self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let mut bytes = [0; HEADER_BYTES];
        for (value, byte) in (1..).zip(&mut bytes) {
            *byte = value;
        }
        let header = Header::parse(&bytes);
        assert_eq!(header.src_cid, 0x0807_0605_0403_0201);
        assert_eq!(header.dst_cid, 0x100f_0e0d_0c0b_0a09);
        assert_eq!(
            (header.src_port, header.dst_port),
            (0x1413_1211, 0x1817_1615)
        );
        assert_eq!(header.len, 0x1c1b_1a19);
        assert_eq!((header.kind, header.op), (0x1e1d, 0x201f));
        assert_eq!(header.flags, 0x2423_2221);
        assert_eq!(
            (header.buf_alloc, header.fwd_cnt),
            (0x2827_2625, 0x2c2b_2a29)
        );
        assert_eq!(header.to_bytes(), bytes);
    }
}
