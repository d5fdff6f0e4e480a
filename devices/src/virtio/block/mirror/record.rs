//! The file beside an image that says what is known of it and its twin's copy.
//!
//! Two headers of 4 KiB, of which the newer one counts, then pages of 4 KiB with one bit for each region of the disk. A bit
//! is set before its region is written to and may stay set for long: it says too much, never too little. Headers and pages carry
//! their own checksums; a page that is torn counts as full of ones.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use super::super::image_id::ImageId;
use super::super::sealed::{self, BadHeader, CONTENTS, PAGE, seal, unseal};
use super::Distrust;

/// Bytes of a region, which one bit of the file stands for.
pub(super) const REGION_BYTES: u64 = 1 << 20;
/// Regions in a page.
const REGIONS_PER_PAGE: u32 = CONTENTS as u32 * 8;
const HEADERS: u64 = 2;
const MAGIC: [u8; 8] = *b"EVTWDISK";
/// Of the file's form.
const VERSION: u32 = 1;
/// Most points in a header.
const MAX_POINTS: usize = 8;

/// A name for one instant at which both twins' disks held the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Point(pub u128);

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    version: u32,
    /// Of two headers the one with the higher serial counts.
    serial: u64,
    pub(super) vm: String,
    pub(super) disk: u32,
    pub(super) image: ImageId,
    /// Oldest first.
    pub(super) points: Vec<Point>,
    /// When the image was changed last, if it was put down in an orderly way.
    pub(super) closed: Option<i128>,
    /// The disk was last compared with its twin's then, or that was first thought of: seconds since 1970. Older builds know nothing of it.
    #[serde(default)]
    pub(super) scrubbed: Option<u64>,
}

impl From<BadHeader> for Distrust {
    fn from(bad: BadHeader) -> Self {
        match bad {
            BadHeader::Damaged => Self::Damaged,
            BadHeader::Version(version) => Self::Version(version),
        }
    }
}

impl Header {
    pub(super) fn new(vm: &str, disk: u32, image: ImageId) -> Self {
        Self {
            version: VERSION,
            serial: 0,
            vm: vm.to_owned(),
            disk,
            image,
            points: Vec::new(),
            closed: None,
            scrubbed: None,
        }
    }

    /// Its successor's bytes, and where they go: never where the one before it is.
    pub(super) fn advance(&mut self) -> io::Result<(u64, Vec<u8>)> {
        self.serial += 1;
        let page = sealed::header(MAGIC, self)?;
        Ok((self.serial % HEADERS * PAGE as u64, page))
    }

    fn decode(page: &[u8; PAGE]) -> Result<Self, Distrust> {
        let header: Self = sealed::read_header(MAGIC, &[VERSION], page)?;
        if header.points.len() > MAX_POINTS {
            return Err(Distrust::Damaged);
        }
        Ok(header)
    }
}

/// Reads the newer header and all bits of a disk of so many bytes.
pub(super) fn read(file: &File, bytes: u64) -> Result<(Header, RoaringBitmap), Distrust> {
    let mut newest: Result<Header, Distrust> = Err(Distrust::Damaged);
    let mut page = [0; PAGE];
    for slot in 0..HEADERS {
        if file.read_exact_at(&mut page, slot * PAGE as u64).is_err() {
            return Err(Distrust::Damaged);
        }
        if page == [0; PAGE] {
            continue;
        }
        match (&newest, Header::decode(&page)) {
            (Ok(one), Ok(other)) if one.serial >= other.serial => {}
            (_, Ok(other)) => newest = Ok(other),
            // A form that this build does not know may be the newer one.
            // And with a header that is torn the bits may be of either.
            (_, Err(distrust)) => return Err(distrust),
        }
    }
    let header = newest?;
    let regions = regions_of(0, bytes).end;
    let mut marked = RoaringBitmap::new();
    for number in 0..pages(regions) {
        let whole = file.read_exact_at(&mut page, place_of(number)).is_ok();
        read_bits(&page, whole, number, regions, &mut marked);
    }
    Ok((header, marked))
}

fn read_bits(
    page: &[u8; PAGE],
    whole: bool,
    number: u32,
    regions: u32,
    marked: &mut RoaringBitmap,
) {
    let first = number * REGIONS_PER_PAGE;
    let bits = unseal(page, u64::from(number) + 1).filter(|_| whole);
    let Some(bits) = bits else {
        marked.insert_range(first..regions.min(first + REGIONS_PER_PAGE));
        return;
    };
    for (at, byte) in (0..).zip(bits) {
        let set = (0..8).filter(|bit| byte & (1 << bit) != 0);
        let numbers = set.map(|bit| first + at * 8 + bit);
        marked.extend(numbers.filter(|region| *region < regions));
    }
}

/// The page of bits of this number, and where it goes.
pub(super) fn page(number: u32, marked: &RoaringBitmap) -> (u64, Vec<u8>) {
    let first = number * REGIONS_PER_PAGE;
    let mut bits = vec![0; CONTENTS];
    for region in marked.range(first..first.saturating_add(REGIONS_PER_PAGE)) {
        let at = region - first;
        bits[(at / 8) as usize] |= 1 << (at % 8);
    }
    (place_of(number), seal(bits, u64::from(number) + 1))
}

/// Pages with bits for so many regions.
pub(super) fn pages(regions: u32) -> u32 {
    regions.div_ceil(REGIONS_PER_PAGE)
}

/// The page that has a region's bit.
pub(super) fn page_of(region: u32) -> u32 {
    region / REGIONS_PER_PAGE
}

/// The regions that a range of bytes touches.
pub(super) fn regions_of(offset: u64, len: u64) -> Range<u32> {
    super::blocks::units_of(offset, len, REGION_BYTES)
}

fn place_of(page: u32) -> u64 {
    (HEADERS + u64::from(page)) * PAGE as u64
}

/// A header with other text in it, for tests.
#[cfg(test)]
pub(super) fn reseal(page: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = page[..CONTENTS].to_vec();
    let at = text.windows(from.len()).position(|w| w == from.as_bytes());
    let mut text = text;
    if let Some(at) = at {
        text[at..at + from.len()].copy_from_slice(to.as_bytes());
    }
    seal(text, 0)
}
