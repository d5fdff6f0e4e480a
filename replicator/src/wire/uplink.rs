//! What twins tell each other of their hosts' uplinks (PROTOCOL.md §6.2).

use super::frame::Frame;
use super::header::Kind;
use super::reader::Reader;
use crate::control::PeerUplinks;

/// Longest list of names in bytes.
const MAX_NAMES: usize = 1000;

/// Says whether a guest finds all the uplinks that it needs, and which ones have no carrier.
pub(crate) fn uplinks_frame(generation: u64, uplinks: &PeerUplinks) -> Frame {
    let PeerUplinks { good, lost } = uplinks;
    let mut payload = vec![u8::from(*good)];
    payload.extend(&lost.as_bytes()[..lost.floor_char_boundary(MAX_NAMES)]);
    Frame::new(Kind::UplinkState, generation, 0, &payload)
}

/// Reads it back.
pub(crate) fn uplinks(payload: &[u8]) -> Option<PeerUplinks> {
    let mut reader = Reader(payload);
    let good = match reader.u8()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let lost = std::str::from_utf8(reader.0).ok()?;
    // One that lacks something says what.
    let meant = lost.len() <= MAX_NAMES && (good || !lost.is_empty());
    meant.then(|| PeerUplinks {
        good,
        lost: lost.replace(char::is_control, " "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::header::HEADER_LEN;

    #[test]
    fn what_is_said_is_read_back_and_nothing_else_is() {
        for (good, lost) in [(true, ""), (true, "eth1"), (false, "eth0, eth1")] {
            let said = PeerUplinks {
                good,
                lost: lost.to_owned(),
            };
            let frame = uplinks_frame(1, &said);
            assert_eq!(uplinks(&frame.head[HEADER_LEN..]), Some(said));
        }
        let long = [&[0][..], &[b'x'; MAX_NAMES + 1]].concat();
        for bad in [&[][..], &[0], &[2, b'x'], &[0, 0xff], &long] {
            assert_eq!(uplinks(bad), None, "{bad:?}");
        }
        assert_eq!(
            uplinks(b"\0a\nb").map(|said| said.lost).as_deref(),
            Some("a b")
        );
    }
}
