//! What twins tell each other to compare their disks (PROTOCOL.md §4.6).

use super::frame::Frame;
use super::header::Kind;
use super::reader::Reader;
use crate::machine::{BlockSum, CHECK_BLOCKS, DiskCheck, DiskChecked};

/// What blocks of a disk hold as of the epoch behind which this is sent.
pub(crate) fn check_frame(generation: u64, check: &DiskCheck) -> Frame {
    let DiskCheck { epoch, disk, sums } = check;
    let sums = &sums[..sums.len().min(CHECK_BLOCKS)];
    let mut payload = disk.to_le_bytes().to_vec();
    payload.push(sums.len() as u8);
    for BlockSum { block, sum } in sums {
        payload.extend(block.to_le_bytes());
        payload.extend(sum.to_le_bytes());
    }
    Frame::new(Kind::DiskCheck, generation, *epoch, &payload)
}

/// Reads it back.
pub(crate) fn check(epoch: u64, payload: &[u8]) -> Option<DiskCheck> {
    let mut reader = Reader(payload);
    let disk = reader.u32()?;
    let count = usize::from(reader.u8()?);
    if !(1..=CHECK_BLOCKS).contains(&count) {
        return None;
    }
    let sums = (0..count).map(|_| {
        Some(BlockSum {
            block: reader.u32()?,
            sum: reader.array().map(u128::from_le_bytes)?,
        })
    });
    let sums = sums.collect::<Option<Vec<_>>>()?;
    reader.end()?;
    Some(DiskCheck { epoch, disk, sums })
}

/// Which of these blocks differ at the standby.
pub(crate) fn checked_frame(generation: u64, checked: &DiskChecked) -> Frame {
    let DiskChecked {
        epoch,
        disk,
        differing,
    } = checked;
    let differing = &differing[..differing.len().min(CHECK_BLOCKS)];
    let mut payload = disk.to_le_bytes().to_vec();
    payload.push(differing.len() as u8);
    payload.extend(differing.iter().flat_map(|block| block.to_le_bytes()));
    Frame::new(Kind::DiskChecked, generation, *epoch, &payload)
}

/// Reads it back.
pub(crate) fn checked(epoch: u64, payload: &[u8]) -> Option<DiskChecked> {
    let mut reader = Reader(payload);
    let disk = reader.u32()?;
    let count = usize::from(reader.u8()?);
    if count > CHECK_BLOCKS {
        return None;
    }
    let differing = (0..count).map(|_| reader.u32());
    let differing = differing.collect::<Option<Vec<_>>>()?;
    reader.end()?;
    Some(DiskChecked {
        epoch,
        disk,
        differing,
    })
}

#[cfg(test)]
mod tests {
    use super::super::header::HEADER_LEN;
    use super::*;

    fn payload(frame: Frame) -> Vec<u8> {
        frame.head[HEADER_LEN..].to_vec()
    }

    fn examples() -> (DiskCheck, DiskChecked) {
        let sums = (0..CHECK_BLOCKS as u32).map(|n| BlockSum {
            block: u32::MAX - n,
            sum: u128::MAX / (u128::from(n) + 1),
        });
        let check = DiskCheck {
            epoch: 7,
            disk: 3,
            sums: sums.collect(),
        };
        let checked = DiskChecked {
            epoch: 7,
            disk: 3,
            differing: vec![0, u32::MAX],
        };
        (check, checked)
    }

    #[test]
    fn what_is_told_is_understood() {
        let (asked, answered) = examples();
        assert_eq!(check(7, &payload(check_frame(1, &asked))), Some(asked));
        let frame = checked_frame(1, &answered);
        assert_eq!(checked(7, &payload(frame)), Some(answered.clone()));
        let equal = DiskChecked {
            differing: Vec::new(),
            ..answered
        };
        let frame = checked_frame(1, &equal);
        assert_eq!(checked(7, &payload(frame)), Some(equal));
    }

    #[test]
    fn bytes_that_are_neither_are_refused() {
        let (asked, answered) = examples();
        let bytes = payload(check_frame(1, &asked));
        for len in 0..bytes.len() {
            assert_eq!(check(7, &bytes[..len]), None, "{len}");
        }
        assert_eq!(check(7, &[&bytes[..], &[0]].concat()), None);
        let bytes = payload(checked_frame(1, &answered));
        for len in 0..bytes.len() {
            assert_eq!(checked(7, &bytes[..len]), None, "{len}");
        }
        // No block, too many, and far more than there are bytes for.
        for (count, blocks) in [(0, 0), (17, 17), (255, 1)] {
            let mut bytes = vec![0, 0, 0, 0, count];
            bytes.resize(5 + 20 * blocks, 1);
            assert_eq!(check(7, &bytes), None, "{count}");
        }
        for (count, blocks) in [(17, 17), (255, 1)] {
            let mut bytes = vec![0, 0, 0, 0, count];
            bytes.resize(5 + 4 * blocks, 1);
            assert_eq!(checked(7, &bytes), None, "{count}");
        }
    }
}
