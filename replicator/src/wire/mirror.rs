//! What twins tell each other about their disks before a copy, and about points at which both hold the same.

use std::ops::Range;

use super::frame::Frame;
use super::header::Kind;
use super::reader::Reader;
use crate::machine::{DiskCopy, HeldDisk};

/// Most disks that are spoken of: as many as there are devices.
pub(super) const MAX_DISKS: usize = 64;
/// Most points of a disk, or of all disks.
const MAX_POINTS: usize = 64;
/// Most runs of blocks in a frame, of all disks.
pub(crate) const MAX_RUNS: usize = 16 << 10;
/// Longest reason in bytes.
const MAX_REASON: usize = 200;

/// What a standby's disks hold.
pub(crate) fn held_frame(generation: u64, disks: &[HeldDisk]) -> Frame {
    let disks = &disks[..disks.len().min(MAX_DISKS)];
    let mut payload = vec![disks.len() as u8];
    for HeldDisk {
        disk,
        points,
        changed,
        distrust,
    } in disks
    {
        payload.extend(disk.to_le_bytes());
        // More runs than there is room for: then it holds nothing that is known.
        let fits = changed.len() <= MAX_RUNS / disks.len();
        put_points(&mut payload, if fits { points } else { &[] });
        let changed = if fits { &changed[..] } else { &[] };
        put_runs(&mut payload, changed);
        let reason = distrust.as_deref().unwrap_or_default();
        let reason = &reason[..reason.floor_char_boundary(MAX_REASON)];
        payload.push(reason.len() as u8);
        payload.extend(reason.as_bytes());
    }
    Frame::new(Kind::DiskHeld, generation, 0, &payload)
}

/// Reads it back.
pub(crate) fn held(payload: &[u8]) -> Option<Vec<HeldDisk>> {
    let mut reader = Reader(payload);
    let count = usize::from(reader.u8()?);
    if count > MAX_DISKS {
        return None;
    }
    let mut disks = Vec::new();
    for _ in 0..count {
        let disk = reader.u32()?;
        let points = points(&mut reader)?;
        let changed = runs(&mut reader)?;
        let len = usize::from(reader.u8()?);
        let reason = std::str::from_utf8(reader.bytes(len)?).ok()?;
        let reason: String = reason.chars().filter(|c| !c.is_control()).collect();
        disks.push(HeldDisk {
            disk,
            points,
            changed,
            distrust: (!reason.is_empty()).then_some(reason),
        });
    }
    reader.end()?;
    Some(disks)
}

/// How the primary will copy its disks.
pub(crate) fn copies_frame(generation: u64, copies: &[DiskCopy]) -> Frame {
    let copies = &copies[..copies.len().min(MAX_DISKS)];
    let mut payload = vec![copies.len() as u8];
    for DiskCopy { disk, from } in copies {
        payload.extend(disk.to_le_bytes());
        payload.push(u8::from(from.is_some()));
        payload.extend(from.unwrap_or_default().to_le_bytes());
    }
    Frame::new(Kind::DiskCopies, generation, 0, &payload)
}

/// Reads it back.
pub(crate) fn copies(payload: &[u8]) -> Option<Vec<DiskCopy>> {
    let mut reader = Reader(payload);
    let count = usize::from(reader.u8()?);
    if count > MAX_DISKS {
        return None;
    }
    let mut copies = Vec::new();
    for _ in 0..count {
        let disk = reader.u32()?;
        let from = match (reader.u8()?, reader.array().map(u128::from_le_bytes)?) {
            (0, 0) => None,
            (1, point) => Some(point),
            _ => return None,
        };
        copies.push(DiskCopy { disk, from });
    }
    reader.end()?;
    Some(copies)
}

/// Both twins' disks hold the same as of the epoch: from now on that is called `point`. Older points but `keep` can be forgotten.
pub(crate) fn point_frame(generation: u64, epoch: u64, point: u128, keep: &[u128]) -> Frame {
    let mut payload = point.to_le_bytes().to_vec();
    put_points(&mut payload, keep);
    Frame::new(Kind::DiskPoint, generation, epoch, &payload)
}

/// Reads it back.
pub(crate) fn point(payload: &[u8]) -> Option<(u128, Vec<u128>)> {
    let mut reader = Reader(payload);
    let point = reader.array().map(u128::from_le_bytes)?;
    let keep = points(&mut reader)?;
    reader.end()?;
    Some((point, keep))
}

/// The point is durable at the standby.
pub(crate) fn reached_frame(generation: u64, point: u128) -> Frame {
    Frame::new(Kind::PointReached, generation, 0, &point.to_le_bytes())
}

/// Reads it back.
pub(crate) fn reached(payload: &[u8]) -> Option<u128> {
    payload.try_into().ok().map(u128::from_le_bytes)
}

pub(super) fn put_runs(payload: &mut Vec<u8>, runs: &[Range<u32>]) {
    payload.extend((runs.len() as u16).to_le_bytes());
    for run in runs {
        payload.extend(run.start.to_le_bytes());
        payload.extend(run.end.to_le_bytes());
    }
}

pub(super) fn runs(reader: &mut Reader<'_>) -> Option<Vec<Range<u32>>> {
    let count = usize::from(reader.u16()?);
    if count > MAX_RUNS {
        return None;
    }
    let mut runs = Vec::new();
    for _ in 0..count {
        let (start, end) = (reader.u32()?, reader.u32()?);
        if start >= end {
            return None;
        }
        runs.push(start..end);
    }
    Some(runs)
}

fn put_points(payload: &mut Vec<u8>, points: &[u128]) {
    let points = &points[..points.len().min(MAX_POINTS)];
    payload.push(points.len() as u8);
    payload.extend(points.iter().flat_map(|point| point.to_le_bytes()));
}

fn points(reader: &mut Reader<'_>) -> Option<Vec<u128>> {
    let count = usize::from(reader.u8()?);
    if count > MAX_POINTS {
        return None;
    }
    (0..count)
        .map(|_| reader.array().map(u128::from_le_bytes))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::header::HEADER_LEN;
    use super::*;

    fn payload(frame: Frame) -> Vec<u8> {
        frame.head[HEADER_LEN..].to_vec()
    }

    fn example() -> Vec<HeldDisk> {
        vec![
            HeldDisk {
                disk: 0,
                points: vec![7, u128::MAX],
                changed: vec![0..1, 5..u32::MAX],
                distrust: None,
            },
            HeldDisk {
                disk: 3,
                points: Vec::new(),
                changed: Vec::new(),
                distrust: Some("nothing is known".to_owned()),
            },
        ]
    }

    #[test]
    fn what_is_told_is_understood() {
        assert_eq!(held(&payload(held_frame(1, &example()))), Some(example()));
        let plan = [(0, None), (9, Some(4))].map(|(disk, from)| DiskCopy { disk, from });
        assert_eq!(copies(&payload(copies_frame(1, &plan))), Some(plan.into()));
        let told = point(&payload(point_frame(1, 2, 5, &[6, 7])));
        assert_eq!(told, Some((5, vec![6, 7])));
        assert_eq!(reached(&payload(reached_frame(1, 8))), Some(8));
    }

    #[test]
    fn too_much_to_tell_is_told_as_nothing_known() {
        let mut disks = example();
        disks[0].changed = (0..9000).map(|n| 2 * n..2 * n + 1).collect();
        disks[1].distrust = Some("é".repeat(300));
        let understood = held(&payload(held_frame(1, &disks))).unwrap();
        assert!(understood[0].points.is_empty() && understood[0].changed.is_empty());
        assert!(understood[1].distrust.as_ref().unwrap().len() <= MAX_REASON);
    }

    #[test]
    fn a_full_list_fits_into_a_frame() {
        let disk = |disk| HeldDisk {
            disk,
            points: vec![1; MAX_POINTS],
            changed: vec![0..1; MAX_RUNS / MAX_DISKS],
            distrust: Some("x".repeat(MAX_REASON)),
        };
        let disks: Vec<_> = (0..MAX_DISKS as u32).map(disk).collect();
        let bytes = payload(held_frame(1, &disks));
        assert!(bytes.len() <= super::super::MAX_PAYLOAD as usize);
        assert_eq!(held(&bytes), Some(disks));
    }

    #[test]
    fn bytes_that_are_no_list_are_refused() {
        let whole = payload(held_frame(1, &example()));
        for len in 0..whole.len() {
            assert_eq!(held(&whole[..len]), None, "{len}");
        }
        let mut backwards = example();
        backwards[0].changed[0] = 5..5;
        assert_eq!(held(&payload(held_frame(1, &backwards))), None);
        for bytes in [&[][..], &[65], &[1, 0, 0, 0, 0, 2], &[255; 300]] {
            let nothing = (held(bytes), copies(bytes), point(bytes), reached(bytes));
            assert_eq!(nothing, (None, None, None, None), "{bytes:?}");
        }
    }
}
