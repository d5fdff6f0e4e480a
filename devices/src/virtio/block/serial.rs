//! A disk's serial number, as the guest reads it (virtio 1.2, 5.2.6.1).

use std::fmt;
use std::str::FromStr;

/// Length of the identifier in bytes; a shorter one is padded with zeroes.
pub(super) const ID_BYTES: usize = 20;

/// A serial number: 1 to 20 printable ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSerial(String);

/// A text that can't be a serial number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` can't be a disk's serial number: use 1 to {ID_BYTES} letters, digits or other visible \
     ASCII characters",
    .0.escape_debug()
)]
pub struct DiskSerialError(String);

impl DiskSerial {
    /// The one of a disk for which none is given: after the name that Linux gives the disk.
    pub fn of_disk(number: u32) -> Self {
        let mut letters = Vec::new();
        let mut rest = number;
        loop {
            letters.push(b'a' + (rest % 26) as u8);
            match (rest / 26).checked_sub(1) {
                Some(left) => rest = left,
                None => break,
            }
        }
        letters.reverse();
        Self(format!("evertwin-vd{}", String::from_utf8_lossy(&letters)))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As the guest reads it.
    pub(super) fn bytes(&self) -> [u8; ID_BYTES] {
        let mut id = [0; ID_BYTES];
        for (byte, value) in id.iter_mut().zip(self.0.bytes()) {
            *byte = value;
        }
        id
    }
}

impl FromStr for DiskSerial {
    type Err = DiskSerialError;

    fn from_str(text: &str) -> Result<Self, DiskSerialError> {
        let fine = (1..=ID_BYTES).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fine {
            Ok(Self(text.to_owned()))
        } else {
            Err(DiskSerialError(text.to_owned()))
        }
    }
}

impl fmt::Display for DiskSerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_one_is_called_after_its_device() {
        let name = |number| DiskSerial::of_disk(number).to_string();
        assert_eq!(name(0), "evertwin-vda");
        assert_eq!(name(25), "evertwin-vdz");
        assert_eq!(name(26), "evertwin-vdaa");
        assert_eq!(name(27 * 26), "evertwin-vdaaa");
        assert!(name(u32::MAX).parse::<DiskSerial>().is_ok());
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        for good in ["a", "12345678901234567890", "WD-0815_#1"] {
            assert_eq!(good.parse::<DiskSerial>().unwrap().as_str(), good);
        }
        for bad in ["", "123456789012345678901", "a b", "a\n", "größe"] {
            let error = bad.parse::<DiskSerial>().unwrap_err().to_string();
            let named = error.contains(&format!("`{}`", bad.escape_debug()));
            assert!(named && error.contains("1 to 20"), "{error}");
        }
    }
}
