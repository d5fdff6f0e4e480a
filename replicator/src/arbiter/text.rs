//! The record as a line of text, as all arbiters keep it.

use super::Record;

/// First word of the line: its format and version.
const FORMAT: &str = "evertwin-arbiter-1";

/// More than any record's line has, in bytes.
pub(super) const MAX_LEN: usize = 4096;

/// One line: format, generation, releaser, standby (or `-`), xxh3-64 of all before it.
pub(super) fn format(record: &Record) -> String {
    let Record {
        generation,
        releaser,
        standby,
    } = record;
    let standby = standby.as_ref().map_or("-", |node| node.as_str());
    let line = format!("{FORMAT} {generation} {releaser} {standby}");
    let sum = xxhash_rust::xxh3::xxh3_64(line.as_bytes());
    format!("{line} {sum:016x}\n")
}

/// None when it is anything but the whole line of a record.
pub(super) fn parse(text: &str) -> Option<Record> {
    let (line, sum) = text.strip_suffix('\n')?.rsplit_once(' ')?;
    let sum = u64::from_str_radix(sum, 16).ok()?;
    if xxhash_rust::xxh3::xxh3_64(line.as_bytes()) != sum {
        return None;
    }
    let mut words = line.split(' ');
    if words.next()? != FORMAT {
        return None;
    }
    let generation = words.next()?.parse().ok()?;
    let releaser = words.next()?.parse().ok()?;
    let standby = match words.next()? {
        "-" => None,
        node => Some(node.parse().ok()?),
    };
    words.next().is_none().then_some(Record {
        generation,
        releaser,
        standby,
    })
}
