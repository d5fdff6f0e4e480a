//! What a primary says of a copy of its disks, so that it can go on where it stopped, and of the sync that it is part of.

use super::frame::Frame;
use super::header::Kind;
use super::mirror::{MAX_DISKS, MAX_RUNS, put_runs, runs};
use super::reader::Reader;
use crate::control::SyncStatus;
use crate::machine::{CopyBase, DiskPosition, LackingDisk};

/// Where the copies begin. None if there are more runs than there is room for: then they can't go on later.
pub(crate) fn base_frame(generation: u64, base: &CopyBase) -> Option<Frame> {
    let CopyBase { point, lacks } = base;
    let all: usize = lacks.iter().map(|disk| disk.blocks.len()).sum();
    if lacks.len() > MAX_DISKS || all > MAX_RUNS {
        return None;
    }
    let mut payload = point.to_le_bytes().to_vec();
    payload.push(lacks.len() as u8);
    for LackingDisk { disk, blocks } in lacks {
        payload.extend(disk.to_le_bytes());
        put_runs(&mut payload, blocks);
    }
    Some(Frame::new(Kind::CopyBase, generation, 0, &payload))
}

/// Reads it back.
pub(crate) fn base(payload: &[u8]) -> Option<CopyBase> {
    let mut reader = Reader(payload);
    let point = reader.array().map(u128::from_le_bytes)?;
    let count = usize::from(reader.u8()?);
    if count > MAX_DISKS {
        return None;
    }
    let mut lacks = Vec::new();
    for _ in 0..count {
        lacks.push(LackingDisk {
            disk: reader.u32()?,
            blocks: runs(&mut reader)?,
        });
    }
    reader.end()?;
    Some(CopyBase { point, lacks })
}

/// All that the copies bring before this position is ahead of this frame.
pub(crate) fn copied_frame(generation: u64, to: DiskPosition) -> Frame {
    let device = u32::try_from(to.device).unwrap_or(u32::MAX);
    let mut payload = device.to_le_bytes().to_vec();
    payload.extend(to.offset.to_le_bytes());
    Frame::new(Kind::DisksCopied, generation, 0, &payload)
}

/// Reads it back.
pub(crate) fn copied(payload: &[u8]) -> Option<DiskPosition> {
    let mut reader = Reader(payload);
    let position = DiskPosition {
        device: usize::try_from(reader.u32()?).ok()?,
        offset: reader.u64()?,
    };
    reader.end()?;
    Some(position)
}

/// How far the sync has come at the primary.
pub(crate) fn progress_frame(generation: u64, status: &SyncStatus) -> Frame {
    let SyncStatus {
        pages,
        of,
        disk_bytes,
        disk_of,
        bytes,
        eta_ms,
        slowed_percent,
    } = *status;
    let eta = eta_ms.unwrap_or(u64::MAX);
    let numbers = [pages, of, disk_bytes, disk_of, bytes, eta];
    let mut payload: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    payload.push(slowed_percent);
    Frame::new(Kind::SyncProgress, generation, 0, &payload)
}

/// Reads it back. Numbers that nobody has so many of are refused, so that sums of them are none that overflow.
pub(crate) fn progress(payload: &[u8]) -> Option<SyncStatus> {
    const MOST: u64 = 1 << 60;
    let mut reader = Reader(payload);
    let mut number = |most| reader.u64().filter(|number| *number <= most);
    let (pages, of) = (number(MOST >> 12)?, number(MOST >> 12)?);
    let (disk_bytes, disk_of, bytes) = (number(MOST)?, number(MOST)?, number(MOST)?);
    let eta_ms = Some(number(u64::MAX)?).filter(|eta| *eta < u64::MAX);
    let slowed_percent = reader.u8().filter(|percent| *percent <= 100)?;
    reader.end()?;
    Some(SyncStatus {
        pages,
        of,
        disk_bytes,
        disk_of,
        bytes,
        eta_ms,
        slowed_percent,
    })
}

#[cfg(test)]
mod tests {
    use super::super::MAX_PAYLOAD;
    use super::super::header::HEADER_LEN;
    use super::*;

    fn payload(frame: &Frame) -> Vec<u8> {
        frame.head[HEADER_LEN..].to_vec()
    }

    fn example() -> CopyBase {
        let lacks = [
            (0, vec![0..7, 8..4096]),
            (7, vec![1..2, 9..u32::MAX]),
            (8, Vec::new()),
        ];
        CopyBase {
            point: u128::MAX - 1,
            lacks: lacks
                .map(|(disk, blocks)| LackingDisk { disk, blocks })
                .into(),
        }
    }

    fn status() -> SyncStatus {
        SyncStatus {
            pages: 1,
            of: 2,
            disk_bytes: 3,
            disk_of: 4,
            bytes: 5,
            eta_ms: Some(6),
            slowed_percent: 7,
        }
    }

    #[test]
    fn what_is_told_is_understood() {
        let told = base(&payload(&base_frame(1, &example()).unwrap()));
        assert_eq!(told, Some(example()));
        for offset in [0, 77, u64::MAX] {
            let position = DiskPosition { device: 3, offset };
            let told = copied(&payload(&copied_frame(1, position)));
            assert_eq!(told, Some(position));
        }
        let end = copied(&payload(&copied_frame(1, DiskPosition::END))).unwrap();
        assert_eq!((end.device, end.offset), (u32::MAX as usize, u64::MAX));
        for eta_ms in [None, Some(0), Some(9)] {
            let status = SyncStatus { eta_ms, ..status() };
            let told = progress(&payload(&progress_frame(1, &status)));
            assert_eq!(told, Some(status));
        }
    }

    #[test]
    fn a_base_fits_into_a_frame_or_is_not_told() {
        let mut base = CopyBase::default();
        for disk in 0..MAX_DISKS as u32 {
            let blocks = vec![0..1; MAX_RUNS / MAX_DISKS];
            base.lacks.push(LackingDisk { disk, blocks });
        }
        let frame = base_frame(1, &base).unwrap();
        assert!(payload(&frame).len() <= MAX_PAYLOAD as usize);
        base.lacks[5].blocks.push(7..8);
        assert!(base_frame(1, &base).is_none());
    }

    #[test]
    fn bytes_that_mean_nothing_are_refused() {
        let whole = payload(&base_frame(1, &example()).unwrap());
        for len in 0..whole.len() {
            assert_eq!(base(&whole[..len]), None, "{len}");
        }
        let whole = payload(&progress_frame(1, &status()));
        for len in 0..whole.len() {
            assert_eq!(progress(&whole[..len]), None, "{len}");
            assert_eq!(copied(&whole[..len.min(11)]), None, "{len}");
        }
        let mut slow = whole.clone();
        slow[48] = 101;
        let mut huge = whole;
        huge[7] = 0x80;
        for bytes in [&slow[..], &huge, &[255; 49], &[255; 300]] {
            let nothing = (base(bytes), copied(bytes), progress(bytes));
            assert_eq!(nothing, (None, None, None));
        }
    }
}
