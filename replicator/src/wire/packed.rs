//! A frame within a frame: bulk frames made smaller for a slow link, by LZ4's block format.

use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

use super::WireError;
use super::frame::{Body, Frame};
use super::header::{HEADER_LEN, Header, Kind};

/// Shorter payloads are not worth it, in bytes.
const SHORTEST: usize = 2048;

/// Which frames may be packed: those that carry what the guest holds.
fn may_be_packed(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::SyncPages
            | Kind::SyncDisk
            | Kind::Pages
            | Kind::PageChanges
            | Kind::State
            | Kind::StateChanges
            | Kind::DiskWrites
    )
}

/// Packs frames, and keeps what it needs for that between them.
pub(crate) struct Packer {
    table: CompressTable,
    payload: Vec<u8>,
    packed: Vec<u8>,
}

impl Packer {
    pub(crate) fn new() -> Self {
        Self {
            table: CompressTable::large(),
            payload: Vec::new(),
            packed: Vec::new(),
        }
    }

    /// Is it a frame that can be packed?
    pub(crate) fn takes(frame: &Frame) -> bool {
        let payload = frame.len() - HEADER_LEN;
        payload >= SHORTEST && Header::kind_of(&frame.head).is_some_and(may_be_packed)
    }

    /// The same frame in fewer bytes; none unless that saves an eighth.
    pub(crate) fn pack(&mut self, frame: &Frame) -> Option<Frame> {
        let (inner, start) = frame.head.split_first_chunk::<HEADER_LEN>()?;
        let header = Header::decode(inner).ok()?;
        let payload = match &frame.body {
            Body::None => start,
            body => {
                self.payload.clear();
                self.payload.extend_from_slice(start);
                self.payload.extend_from_slice(body.bytes());
                &self.payload
            }
        };
        let most = get_maximum_output_size(payload.len());
        // Only ever grows, so that nothing is zeroed twice.
        self.packed.resize(self.packed.len().max(most), 0);
        let len = compress_into_with_table(payload, &mut self.packed, &mut self.table).ok()?;
        if HEADER_LEN + len > payload.len() / 8 * 7 {
            return None;
        }
        let mut head = Vec::with_capacity(2 * HEADER_LEN + len);
        head.resize(HEADER_LEN, 0);
        head.extend_from_slice(inner);
        head.extend_from_slice(&self.packed[..len]);
        let Header {
            generation, epoch, ..
        } = header;
        Some(Frame::seal(head, Kind::Packed, generation, epoch, Body::None).0)
    }
}

/// The frame in a frame: its header, and its payload in `into`. It is verified like any other.
pub(super) fn unpack(
    outer: &Header,
    payload: &[u8],
    into: &mut Vec<u8>,
) -> Result<Header, WireError> {
    let malformed = WireError::Malformed(Kind::Packed);
    let (inner, packed) = payload
        .split_first_chunk::<HEADER_LEN>()
        .ok_or(malformed.clone())?;
    let header = Header::decode(inner)?;
    let belongs = (header.generation, header.epoch) == (outer.generation, outer.epoch);
    if !belongs || !may_be_packed(header.kind) {
        return Err(malformed);
    }
    into.resize(header.len as usize, 0);
    match decompress_into(packed, into) {
        Ok(len) if len == into.len() => {}
        _ => return Err(malformed),
    }
    header.verify(inner, into)?;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{FrameReader, MAX_PAYLOAD};
    use super::*;
    use crate::machine::Capture;

    fn text(len: usize) -> Vec<u8> {
        let lines = (0..).flat_map(|line| format!("the pump ran at {line} turns\n").into_bytes());
        lines.take(len).collect()
    }

    fn read(frame: &Frame) -> Result<(Header, Vec<u8>), WireError> {
        let mut reader = FrameReader::new();
        for part in frame.parts() {
            reader.put(part).unwrap();
        }
        let (header, payload) = reader.next()?.unwrap();
        Ok((header, payload.to_vec()))
    }

    #[test]
    fn a_packed_frame_is_read_as_the_frame_in_it() {
        for len in [SHORTEST, 100_000, MAX_PAYLOAD as usize] {
            let frame = Frame::new(Kind::SyncDisk, 3, 0, &text(len));
            let packed = Packer::new().pack(&frame).unwrap();
            assert!(packed.len() < frame.len() / 2, "{len}: {}", packed.len());
            assert_eq!(read(&packed), read(&frame));
        }
    }

    #[test]
    fn a_frame_in_two_pieces_is_packed_as_one() {
        let capture = Arc::new(Capture {
            bytes: text(64 * 4096),
            ..Capture::default()
        });
        let head = [vec![0; HEADER_LEN], text(516)].concat();
        let body = Body::Pages(capture, 0..64 * 4096);
        let (frame, checksum) = Frame::seal(head, Kind::Pages, 3, 4, body);
        let packed = Packer::new().pack(&frame).unwrap();
        let (header, payload) = read(&packed).unwrap();
        assert_eq!((header.kind, header.checksum), (Kind::Pages, checksum));
        assert_eq!(payload, frame.parts().concat()[HEADER_LEN..]);
    }

    #[test]
    fn what_has_no_patterns_is_left_alone() {
        let mut random = fastrand::Rng::with_seed(7);
        let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
            .take(9000)
            .collect();
        assert!(
            Packer::new()
                .pack(&Frame::new(Kind::Pages, 1, 1, &noise))
                .is_none()
        );
        for (kind, len) in [(Kind::Pages, SHORTEST - 1), (Kind::Inbound, 9000)] {
            assert!(!Packer::takes(&Frame::new(kind, 1, 1, &text(len))));
        }
        assert!(Packer::takes(&Frame::new(Kind::Pages, 1, 1, &noise)));
    }

    fn wrapped(generation: u64, payload: &[u8]) -> Result<(Header, Vec<u8>), WireError> {
        read(&Frame::new(Kind::Packed, generation, 4, payload))
    }

    #[test]
    fn what_is_no_packed_frame_is_refused() {
        let frame = Frame::new(Kind::Pages, 3, 4, &text(8000));
        let good = Packer::new().pack(&frame).unwrap().parts().concat()[HEADER_LEN..].to_vec();
        assert!(wrapped(3, &good).is_ok());
        assert!(wrapped(2, &good).is_err(), "of another generation");
        for len in (0..good.len()).step_by(7) {
            assert!(wrapped(3, &good[..len]).is_err(), "{len} bytes");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(wrapped(3, &bad).is_err(), "byte {at} changed");
        }
        // Neither a packed one in a packed one nor words of control.
        for kind in [Kind::Packed, Kind::Hello, Kind::Ack] {
            let mut inner = Frame::new(kind, 3, 4, &text(8000)).parts().concat();
            inner.truncate(HEADER_LEN);
            inner.extend(lz4_flex::block::compress(&text(8000)));
            let error = wrapped(3, &inner).unwrap_err();
            assert_eq!(error, WireError::Malformed(Kind::Packed));
        }
    }
}
