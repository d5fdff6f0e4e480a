//! The header in front of each frame, on the queues and on the TAP (virtio 1.2, 5.1.6): what
//! the other side may leave undone, checksums and the cutting of large TCP segments.

use super::feature;
use crate::virtio::Transport;

/// `struct virtio_net_hdr` with `num_buffers` (5.1.6), as a TAP has it, too.
pub(super) const HEADER_BYTES: usize = 12;
/// Where it says over how many buffers a frame is spread.
pub(super) const NUM_BUFFERS_AT: usize = 10;

const FLAGS_AT: usize = 0;
const GSO_TYPE_AT: usize = 1;
const GSO_SIZE_AT: usize = 4;

/// Flags: the checksum is still to be made, or known to be right.
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

/// Kinds of large segments. With congestion marks (0x80) they were never offered.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// What one side takes from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Offloads {
    /// Frames whose checksum is still to be made.
    pub(super) checksum: bool,
    /// Large TCP segments over IPv4.
    pub(super) tso4: bool,
    /// And over IPv6.
    pub(super) tso6: bool,
}

impl Offloads {
    /// What the device takes from this guest.
    pub(super) fn of_device(transport: &Transport) -> Self {
        Self::new(
            transport,
            feature::CSUM,
            feature::HOST_TSO4,
            feature::HOST_TSO6,
        )
    }

    /// What the guest takes.
    pub(super) fn of_guest(transport: &Transport) -> Self {
        Self::new(
            transport,
            feature::GUEST_CSUM,
            feature::GUEST_TSO4,
            feature::GUEST_TSO6,
        )
    }

    /// A large segment always has a checksum to be made (5.1.3.1).
    fn new(transport: &Transport, checksum: u64, tso4: u64, tso6: u64) -> Self {
        Self {
            checksum: transport.has(checksum),
            tso4: transport.has(checksum | tso4),
            tso6: transport.has(checksum | tso6),
        }
    }

    /// Makes a header what may be passed on under these offloads. None if the frame can't be:
    /// it asks for something that was never agreed on.
    pub(super) fn pass(self, header: &mut [u8; HEADER_BYTES], from: From) -> Option<()> {
        let needs_checksum = header[FLAGS_AT] & NEEDS_CSUM != 0;
        // What is not in use says nothing, and is not looked at (5.1.6.2).
        if !self.checksum && from == From::Guest {
            header.fill(0);
            return Some(());
        }
        let sized = header[GSO_SIZE_AT] != 0 || header[GSO_SIZE_AT + 1] != 0;
        let agreed = match header[GSO_TYPE_AT] {
            GSO_NONE => !needs_checksum || self.checksum,
            GSO_TCPV4 => self.tso4 && needs_checksum && sized,
            GSO_TCPV6 => self.tso6 && needs_checksum && sized,
            _ => false,
        };
        if !agreed {
            return None;
        }
        header[FLAGS_AT] &= match from {
            From::Guest => NEEDS_CSUM,
            From::Tap if self.checksum => NEEDS_CSUM | DATA_VALID,
            From::Tap => 0,
        };
        header[NUM_BUFFERS_AT..].fill(0);
        if !needs_checksum {
            // Only a finished, ordinary frame is left.
            header[FLAGS_AT + 1..].fill(0);
        }
        Some(())
    }
}

/// Which side wrote a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Guest,
    Tap,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offloads = Offloads {
        checksum: true,
        tso4: true,
        tso6: true,
    };
    const CHECKSUM: Offloads = Offloads {
        checksum: true,
        tso4: false,
        tso6: false,
    };
    const NONE: Offloads = Offloads {
        checksum: false,
        tso4: false,
        tso6: false,
    };

    fn pass(offloads: Offloads, from: From, mut header: [u8; 12]) -> Option<[u8; 12]> {
        offloads.pass(&mut header, from).map(|()| header)
    }

    #[test]
    fn what_was_agreed_on_passes_as_it_is() {
        let partial = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
        let large4 = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
        let large6 = [1, 4, 74, 0, 0xa0, 5, 54, 0, 16, 0, 0, 0];
        for from in [From::Guest, From::Tap] {
            for header in [[0; 12], partial, large4, large6] {
                assert_eq!(pass(ALL, from, header), Some(header));
            }
            assert_eq!(pass(CHECKSUM, from, partial), Some(partial));
            assert_eq!(pass(CHECKSUM, from, large4), None);
            assert_eq!(pass(CHECKSUM, from, large6), None);
        }
        let valid = [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(pass(CHECKSUM, From::Tap, valid), Some(valid));
        assert_eq!(pass(NONE, From::Tap, valid), Some([0; 12]));
        assert_eq!(pass(NONE, From::Tap, partial), None);
        assert_eq!(pass(NONE, From::Tap, large4), None);
    }

    #[test]
    fn a_guest_that_agreed_on_nothing_may_leave_rubbish_there() {
        assert_eq!(pass(NONE, From::Guest, [0xaa; 12]), Some([0; 12]));
    }

    #[test]
    fn nothing_else_passes() {
        for from in [From::Guest, From::Tap] {
            // UDP, unknown kinds, congestion marks, no size, no checksum to be made.
            for gso_type in [2, 3, 5, 6, 0x7f, 0x80, 0x81, 0x84, 0xff] {
                assert_eq!(
                    pass(ALL, from, [1, gso_type, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]),
                    None
                );
            }
            assert_eq!(pass(ALL, from, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
            assert_eq!(pass(ALL, from, [0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]), None);
        }
        // Flags and fields without a meaning are cleared.
        let header = [0xfe, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
        assert_eq!(pass(ALL, From::Guest, header), Some([0; 12]));
        assert_eq!(
            pass(ALL, From::Tap, header),
            Some([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        );
    }
}
