//! A frame of the guest's network inside a frame of ours.

use super::frame::Frame;
use super::header::Kind;
use super::reader::Reader;
use crate::machine::InboundFrame;

/// Longest frame of the guest's network, in bytes: as long as an IP packet gets, with an
/// Ethernet header and a tag, behind a card's header of 12 bytes.
const MAX_BYTES: usize = 65_562;

/// Wraps a frame that the guest got.
pub(crate) fn inbound_frame(generation: u64, frame: &InboundFrame) -> Frame {
    let mut payload = Vec::with_capacity(4 + frame.bytes.len());
    payload.extend_from_slice(&frame.card.to_le_bytes());
    payload.extend_from_slice(&frame.bytes);
    Frame::new(Kind::Inbound, generation, frame.epoch, &payload)
}

/// Reads one back.
pub(crate) fn inbound(epoch: u64, payload: &[u8]) -> Option<InboundFrame> {
    let mut reader = Reader(payload);
    let card = reader.u32()?;
    let bytes = reader.0;
    (1..=MAX_BYTES)
        .contains(&bytes.len())
        .then(|| InboundFrame {
            card,
            epoch,
            bytes: bytes.to_vec(),
        })
}
