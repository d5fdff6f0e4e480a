//! The fixed header of every frame.

use super::WireError;
use super::reader::Reader;

/// How every frame begins.
pub(crate) const MAGIC: [u8; 4] = *b"EVTW";

/// The newest version of the protocol that this build speaks. A frame carries the version that
/// brought its kind, so that twins of neighbouring versions understand each other in all that
/// both know.
pub(crate) const VERSION: u16 = if cfg!(feature = "previous-protocol") {
    6
} else {
    7
};

/// The oldest version that this build speaks.
pub(crate) const OLDEST: u16 = 2;

/// The version that brought the exchange of roles.
pub(crate) const HAND_OVER: u16 = 3;

/// The version that brought the beacon.
pub(crate) const BEACON: u16 = 3;

/// The version that brought delta copies of disks.
pub(crate) const MIRROR: u16 = 4;

/// The version that brought the comparison of disks.
pub(crate) const SCRUB: u16 = 5;
/// The version that brought disks that grow.
pub(crate) const GROW: u16 = 6;
/// The version that brought standbys that say that their disk fails.
pub(crate) const DISK_FAILED: u16 = 6;

/// The version that brought the state of uplinks.
pub(crate) const UPLINK: u16 = 6;

/// The version that brought copies of disks that go on where they stopped.
pub(crate) const GO_ON: u16 = 6;

/// The version that brought epochs that are told by what changed.
pub(crate) const CHANGES: u16 = 7;

/// The version that brought packed frames.
pub(crate) const PACKED: u16 = 7;

/// Bytes in a header.
pub(crate) const HEADER_LEN: usize = 40;

/// Where the header's own checksum stands.
const HEADER_SUM_AT: usize = 28;

/// Where the frame's checksum stands: the last field.
const CHECKSUM_AT: usize = 32;

/// Longest payload in bytes. Bulk data is cut so that a heartbeat never waits for long.
pub(crate) const MAX_PAYLOAD: u32 = 264 * 1024;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Who the sender is and what it runs.
    Hello = 1,
    /// Why a hello was refused.
    Reject = 2,
    /// A full sync starts.
    SyncBegin = 3,
    /// Pages of the sync.
    SyncPages = 4,
    /// An epoch starts, with its sizes.
    EpochBegin = 5,
    /// Pages of the epoch.
    Pages = 6,
    /// Part of the epoch's machine state.
    State = 7,
    /// Disk writes of the epoch.
    DiskWrites = 8,
    /// The epoch's end, with a checksum over all of it.
    EpochEnd = 9,
    /// The standby holds an epoch.
    Ack = 10,
    /// Sign of life.
    Heartbeat = 11,
    /// The standby is named at the arbiter.
    Named = 12,
    /// The guest has ended.
    Bye = 13,
    /// Disk contents of the sync.
    SyncDisk = 14,
    /// A frame that the guest got from its network.
    Inbound = 15,
    /// Zeroes written to a disk in the epoch.
    DiskZeroes = 16,
    /// Zeroes written to a disk during the sync.
    SyncZeroes = 17,
    /// The primary's guest stands still: take over.
    HandOver = 18,
    /// The guest runs here now.
    TookOver = 19,
    /// An address at which the sender keeps a port open for as long as it lives.
    Beacon = 20,
    /// What the standby's disks hold.
    DiskHeld = 21,
    /// How the disks will be copied.
    DiskCopies = 22,
    /// The standby's disks can be filled.
    CopiesBegun = 23,
    /// A point at which both twins' disks hold the same.
    DiskPoint = 24,
    /// The standby has made a point durable.
    PointReached = 25,
    /// What blocks of the primary's disk hold.
    DiskCheck = 26,
    /// Which of them differ at the standby.
    DiskChecked = 27,
    /// The standby is to make room for a disk that grows.
    DiskRoom = 28,
    /// It has, or why not.
    DiskRoomMade = 29,
    /// A disk of the standby fails, and it leaves.
    DiskFailed = 30,
    /// Whether the sender's uplinks have carrier.
    UplinkState = 31,
    /// Where the copies of the disks begin.
    CopyBase = 32,
    /// How far they have come.
    DisksCopied = 33,
    /// How far the sync has come.
    SyncProgress = 34,
    /// What changed in pages of the epoch.
    PageChanges = 35,
    /// What changed in the machine's state since the epoch before.
    StateChanges = 36,
    /// Another frame, made smaller.
    Packed = 37,
}

impl Kind {
    /// The version of the protocol that brought it.
    fn version(self) -> u16 {
        match self {
            Self::HandOver | Self::TookOver => HAND_OVER,
            Self::Beacon => BEACON,
            Self::DiskHeld
            | Self::DiskCopies
            | Self::CopiesBegun
            | Self::DiskPoint
            | Self::PointReached => MIRROR,
            Self::DiskCheck | Self::DiskChecked => SCRUB,
            Self::DiskRoom | Self::DiskRoomMade => GROW,
            Self::DiskFailed => DISK_FAILED,
            Self::UplinkState => UPLINK,
            Self::CopyBase | Self::DisksCopied | Self::SyncProgress => GO_ON,
            Self::PageChanges | Self::StateChanges => CHANGES,
            Self::Packed => PACKED,
            _ => OLDEST,
        }
    }
}

impl TryFrom<u16> for Kind {
    type Error = WireError;

    fn try_from(kind: u16) -> Result<Self, WireError> {
        Ok(match kind {
            1 => Self::Hello,
            2 => Self::Reject,
            3 => Self::SyncBegin,
            4 => Self::SyncPages,
            5 => Self::EpochBegin,
            6 => Self::Pages,
            7 => Self::State,
            8 => Self::DiskWrites,
            9 => Self::EpochEnd,
            10 => Self::Ack,
            11 => Self::Heartbeat,
            12 => Self::Named,
            13 => Self::Bye,
            14 => Self::SyncDisk,
            15 => Self::Inbound,
            16 => Self::DiskZeroes,
            17 => Self::SyncZeroes,
            18 => Self::HandOver,
            19 => Self::TookOver,
            20 => Self::Beacon,
            21 => Self::DiskHeld,
            22 => Self::DiskCopies,
            23 => Self::CopiesBegun,
            24 => Self::DiskPoint,
            25 => Self::PointReached,
            26 => Self::DiskCheck,
            27 => Self::DiskChecked,
            28 => Self::DiskRoom,
            29 => Self::DiskRoomMade,
            30 => Self::DiskFailed,
            31 => Self::UplinkState,
            32 => Self::CopyBase,
            33 => Self::DisksCopied,
            34 => Self::SyncProgress,
            35 => Self::PageChanges,
            36 => Self::StateChanges,
            37 => Self::Packed,
            other => return Err(WireError::Kind(other)),
        })
    }
}

/// A header whose fields were checked.
///
/// Layout, little-endian: magic (4 bytes), version (2), kind (2), generation (8), epoch (8),
/// payload length (4), the low half of xxh3-64 of all of these (4), xxh3-64 of all of these
/// and the payload (8). A length is only believed when the header's own checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) generation: u64,
    pub(crate) epoch: u64,
    pub(crate) len: u32,
    pub(crate) checksum: u64,
}

impl Header {
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, WireError> {
        let mut reader = Reader(bytes);
        if reader.array() != Some(MAGIC) {
            return Err(WireError::Magic);
        }
        let theirs = reader.u16().ok_or(WireError::Magic)?;
        if !(OLDEST..=VERSION).contains(&theirs) {
            return Err(WireError::Version {
                theirs,
                ours: VERSION,
            });
        }
        let mut fields = || {
            Some((
                reader.u16()?,
                reader.u64()?,
                reader.u64()?,
                reader.u32()?,
                reader.u32()?,
                reader.u64()?,
            ))
        };
        let (kind, generation, epoch, len, header_sum, checksum) =
            fields().ok_or(WireError::Checksum)?;
        if header_sum != self::header_sum(bytes) {
            return Err(WireError::Checksum);
        }
        let kind = Kind::try_from(kind)?;
        // There is a next one to each number that an honest peer uses.
        if generation == u64::MAX || epoch == u64::MAX {
            return Err(WireError::Malformed(kind));
        }
        if len > MAX_PAYLOAD {
            return Err(WireError::TooLong(len));
        }
        Ok(Self {
            kind,
            generation,
            epoch,
            len,
            checksum,
        })
    }

    /// The kind of a frame that was sealed here.
    pub(crate) fn kind_of(head: &[u8]) -> Option<Kind> {
        let kind = head.get(6..8)?.try_into().ok()?;
        Kind::try_from(u16::from_le_bytes(kind)).ok()
    }

    /// Writes a header to the front of `frame`, whose payload follows it there and goes on
    /// in `body`. Returns the checksum.
    pub(crate) fn seal(
        frame: &mut [u8],
        kind: Kind,
        generation: u64,
        epoch: u64,
        body: &[u8],
    ) -> u64 {
        let payload = frame.len() - HEADER_LEN + body.len();
        debug_assert!(payload <= MAX_PAYLOAD as usize);
        frame[0..4].copy_from_slice(&MAGIC);
        frame[4..6].copy_from_slice(&kind.version().to_le_bytes());
        frame[6..8].copy_from_slice(&(kind as u16).to_le_bytes());
        frame[8..16].copy_from_slice(&generation.to_le_bytes());
        frame[16..24].copy_from_slice(&epoch.to_le_bytes());
        frame[24..28].copy_from_slice(&(payload as u32).to_le_bytes());
        let header_sum = header_sum(frame);
        frame[HEADER_SUM_AT..CHECKSUM_AT].copy_from_slice(&header_sum.to_le_bytes());
        let checksum = checksum(&[&frame[..CHECKSUM_AT], &frame[HEADER_LEN..], body]);
        frame[CHECKSUM_AT..HEADER_LEN].copy_from_slice(&checksum.to_le_bytes());
        checksum
    }

    /// Does the payload belong to this header, both unharmed?
    pub(crate) fn verify(
        &self,
        header: &[u8; HEADER_LEN],
        payload: &[u8],
    ) -> Result<(), WireError> {
        fail::fail_point!("apply::skip_verify", |_| Ok(()));
        if checksum(&[&header[..CHECKSUM_AT], payload]) == self.checksum {
            Ok(())
        } else {
            Err(WireError::Checksum)
        }
    }
}

fn header_sum(header: &[u8]) -> u32 {
    xxhash_rust::xxh3::xxh3_64(&header[..HEADER_SUM_AT]) as u32
}

fn checksum(parts: &[&[u8]]) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3Default::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.digest()
}
