//! What twins tell each other when a disk grows (PROTOCOL.md §4.7).

use super::frame::Frame;
use super::header::Kind;
use super::reader::Reader;
use crate::machine::{DiskRoom, DiskSize};

/// Longest reason in bytes.
const MAX_REASON: usize = 1000;

/// Asks the standby for room.
pub(crate) fn room_frame(generation: u64, room: DiskRoom) -> Frame {
    let DiskRoom { size, extend } = room;
    let mut payload = put_size(size);
    payload.push(extend.into());
    Frame::new(Kind::DiskRoom, generation, 0, &payload)
}

/// Reads it back.
pub(crate) fn room(payload: &[u8]) -> Option<DiskRoom> {
    let mut reader = Reader(payload);
    let size = size(&mut reader)?;
    let extend = match reader.u8()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    reader.end()?;
    Some(DiskRoom { size, extend })
}

/// Answers: there is room, or why not.
pub(crate) fn made_frame(generation: u64, size: DiskSize, failure: Option<&str>) -> Frame {
    let mut payload = put_size(size);
    let reason = failure.unwrap_or_default();
    payload.push(failure.is_some().into());
    payload.extend(&reason.as_bytes()[..reason.floor_char_boundary(MAX_REASON)]);
    Frame::new(Kind::DiskRoomMade, generation, 0, &payload)
}

/// Reads it back.
pub(crate) fn made(payload: &[u8]) -> Option<(DiskSize, Option<String>)> {
    let mut reader = Reader(payload);
    let size = size(&mut reader)?;
    let failed = reader.u8()?;
    let reason = std::str::from_utf8(reader.0).ok()?;
    match (failed, reason.len()) {
        (0, 0) => Some((size, None)),
        (1, ..=MAX_REASON) => Some((size, Some(reason.replace(char::is_control, " ")))),
        _ => None,
    }
}

fn put_size(size: DiskSize) -> Vec<u8> {
    let DiskSize { disk, bytes } = size;
    let mut payload = disk.to_le_bytes().to_vec();
    payload.extend(bytes.to_le_bytes());
    payload
}

fn size(reader: &mut Reader<'_>) -> Option<DiskSize> {
    Some(DiskSize {
        disk: reader.u32()?,
        bytes: reader.u64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::header::HEADER_LEN;
    use super::*;

    const SIZE: DiskSize = DiskSize {
        disk: 3,
        bytes: 20 << 30,
    };

    fn payload(frame: Frame) -> Vec<u8> {
        frame.head[HEADER_LEN..].to_vec()
    }

    #[test]
    fn what_is_told_is_understood() {
        for extend in [false, true] {
            let asked = DiskRoom { size: SIZE, extend };
            assert_eq!(room(&payload(room_frame(1, asked))), Some(asked));
        }
        let long = "é".repeat(MAX_REASON);
        for (reason, understood) in [
            (None, None),
            (Some("no\nroom"), Some("no room")),
            (Some(""), Some("")),
            (Some(&long[..]), Some(&long[..MAX_REASON])),
        ] {
            let bytes = payload(made_frame(1, SIZE, reason));
            assert_eq!(made(&bytes), Some((SIZE, understood.map(str::to_owned))));
        }
    }

    #[test]
    fn bytes_that_are_neither_are_refused() {
        let bytes = payload(room_frame(
            1,
            DiskRoom {
                size: SIZE,
                extend: true,
            },
        ));
        for len in 0..bytes.len() {
            assert_eq!(room(&bytes[..len]), None, "{len}");
        }
        assert_eq!(room(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(room(&[&bytes[..12], &[2]].concat()), None);
        let bytes = payload(made_frame(1, SIZE, None));
        for len in 0..bytes.len() {
            assert_eq!(made(&bytes[..len]), None, "{len}");
        }
        // A reason without a failure, one that is no text, one that is too long, a failure of no kind.
        assert_eq!(made(&[&bytes[..], b"why"].concat()), None);
        assert_eq!(made(&[&bytes[..12], &[1, 0xff]].concat()), None);
        let long = [b'x'; MAX_REASON + 1];
        assert_eq!(made(&[&bytes[..12], &[1], &long[..]].concat()), None);
        assert_eq!(made(&[&bytes[..12], &[2]].concat()), None);
    }
}
