//! Values written by people: sizes, addresses, `key=value` lists.

use std::path::Path;

use evertwin_devices::virtio::block::{CacheMode, DiskSerial, DiskSerialError};
use evertwin_devices::virtio::vsock::{GUEST_CIDS, SocketPath};

use super::{
    ConfigError, DiskConfig, MAX_VCPUS, NetConfig, OnLostCarrier, UplinkConfig, VsockConfig,
};

/// Bytes from `512M`, `2G`, `65536K` or a plain number.
///
/// # Errors
/// Anything else, or more than 2^64.
pub fn parse_size(text: &str) -> Result<u64, ConfigError> {
    bytes(text, "KMG").ok_or_else(|| {
        ConfigError::Value(format!(
            "`{text}` is not a memory size: write a number with K, M or G, for example 512M"
        ))
    })
}

/// The same for a disk: `20G`, `2T`.
///
/// # Errors
/// As [`parse_size`].
pub fn parse_disk_size(text: &str) -> Result<u64, ConfigError> {
    bytes(text, "KMGT").ok_or_else(|| {
        ConfigError::Value(format!(
            "`{text}` is not a disk's size: write a number with M, G or T, for example 20G"
        ))
    })
}

/// A number with one of these units, each 1024 times the one before, or without.
fn bytes(text: &str, units: &str) -> Option<u64> {
    let end = text.char_indices().next_back();
    let unit = end.and_then(|(at, unit)| Some((at, units.find(unit.to_ascii_uppercase())?)));
    let (digits, shift) = match unit {
        Some((at, place)) => (&text[..at], 10 * (place + 1)),
        None => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A VM's number of vCPUs.
///
/// # Errors
/// Less than 1 or more than [`MAX_VCPUS`].
pub fn check_vcpus(vcpus: u64) -> Result<u8, ConfigError> {
    match u8::try_from(vcpus) {
        Ok(vcpus) if (1..=MAX_VCPUS).contains(&vcpus) => Ok(vcpus),
        _ => Err(ConfigError::Value(format!(
            "{vcpus} can't be the number of vCPUs: give 1 to {MAX_VCPUS}"
        ))),
    }
}

/// A MAC address from `52:54:00:12:34:56`.
///
/// # Errors
/// Wrong form, or a group address, which no card can have.
pub fn parse_mac(text: &str) -> Result<[u8; 6], ConfigError> {
    let wrong = |why: &str| {
        ConfigError::Value(format!(
            "`{text}` is not a card's MAC address ({why}): write six hex bytes, for example 52:54:00:12:34:56"
        ))
    };
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().ok_or_else(|| wrong("too short"))?;
        *byte = match part.len() {
            2 => u8::from_str_radix(part, 16).map_err(|_| wrong("not hex"))?,
            _ => return Err(wrong("not two digits each")),
        };
    }
    if parts.next().is_some() {
        return Err(wrong("too long"));
    }
    if mac[0] & 1 != 0 {
        return Err(wrong("a group address"));
    }
    Ok(mac)
}

/// A disk's serial number.
///
/// # Errors
/// More than 20 bytes, none, or some that can't be seen.
pub(super) fn parse_serial(text: &str) -> Result<DiskSerial, ConfigError> {
    text.parse()
        .map_err(|error: DiskSerialError| ConfigError::Value(error.to_string()))
}

/// Whether a disk's requests go past the host's page cache.
pub(super) fn parse_cache(text: &str) -> Result<CacheMode, ConfigError> {
    match text {
        "auto" => Ok(CacheMode::Auto),
        "host" => Ok(CacheMode::Host),
        "none" => Ok(CacheMode::None),
        _ => Err(ConfigError::Value(format!(
            "`{text}` is no cache of a disk: write host (the host's page cache), none (past it) or auto (past it on block devices)"
        ))),
    }
}

/// `path=D[,readonly][,serial=S][,cache=C]`.
///
/// # Errors
/// Unknown keys, no path, or a serial number that is none.
pub fn parse_disk(text: &str) -> Result<DiskConfig, ConfigError> {
    let wrong = || {
        ConfigError::Value(format!(
            "`{text}` is not a disk: write path=FILE, and after it ,readonly, ,serial=TEXT or ,cache=none as needed"
        ))
    };
    let mut path = None;
    let mut read_only = false;
    let mut serial = None;
    let mut cache = CacheMode::Auto;
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("path", value)) if !value.is_empty() => path = Some(value.into()),
            Some(("serial", value)) => serial = Some(parse_serial(value)?),
            Some(("cache", value)) => cache = parse_cache(value)?,
            None if part == "readonly" => read_only = true,
            _ => return Err(wrong()),
        }
    }
    Ok(DiskConfig {
        path: path.ok_or_else(wrong)?,
        read_only,
        serial,
        cache,
    })
}

/// `tap=T,mac=M`.
///
/// # Errors
/// Unknown or missing keys, or values of the wrong form.
pub fn parse_net(text: &str) -> Result<NetConfig, ConfigError> {
    let wrong = || {
        ConfigError::Value(format!(
            "`{text}` is not a network card: write tap=NAME,mac=52:54:00:12:34:56"
        ))
    };
    let (mut tap, mut mac) = (None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("tap", value)) => tap = Some(check_tap(value)?),
            Some(("mac", value)) => mac = Some(parse_mac(value)?),
            _ => return Err(wrong()),
        }
    }
    Ok(NetConfig {
        tap: tap.ok_or_else(wrong)?,
        mac: mac.ok_or_else(wrong)?,
        uplink: None,
    })
}

/// `cid=N,socket=PATH`.
///
/// # Errors
/// Unknown or missing keys, or values that can't be.
pub fn parse_vsock(text: &str) -> Result<VsockConfig, ConfigError> {
    let wrong = || {
        ConfigError::Value(format!(
            "`{text}` is not a vsock device: write cid=3,socket=/run/vm.vsock"
        ))
    };
    let (mut cid, mut socket) = (None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("cid", value)) => cid = Some(value.parse().map_err(|_| wrong())?),
            Some(("socket", value)) => socket = Some(value),
            _ => return Err(wrong()),
        }
    }
    let (cid, socket) = cid.zip(socket).ok_or_else(wrong)?;
    check_vsock(cid, Path::new(socket))
}

/// Addresses below 3 and the largest have meanings of their own (virtio 1.2, 5.10.4).
pub(super) fn check_vsock(cid: u64, socket: &Path) -> Result<VsockConfig, ConfigError> {
    let fine = u32::try_from(cid)
        .ok()
        .filter(|cid| GUEST_CIDS.contains(cid));
    let cid = fine.ok_or_else(|| {
        ConfigError::Value(format!(
            "{cid} can't be a guest's vsock address: give a cid from {} to {}",
            GUEST_CIDS.start(),
            GUEST_CIDS.end()
        ))
    })?;
    let socket = SocketPath::new(socket).map_err(|error| ConfigError::Value(error.to_string()))?;
    Ok(VsockConfig { cid, socket })
}

/// The name of a TAP.
pub(super) fn check_tap(name: &str) -> Result<String, ConfigError> {
    check_interface("a TAP device", name)
}

/// The uplink of a card, and what is done when its carrier is lost.
pub(super) fn check_uplink(
    tap: &str,
    uplink: Option<&str>,
    on_lost_carrier: Option<&str>,
) -> Result<Option<UplinkConfig>, ConfigError> {
    let on_lost_carrier = match on_lost_carrier {
        Some(_) if uplink.is_none() => {
            return Err(ConfigError::Value(format!(
                "on_lost_carrier of the card on `{tap}` needs an uplink: add uplink = \"eth0\", the host's interface whose carrier matters to it"
            )));
        }
        None | Some("switchover") => OnLostCarrier::Switchover,
        Some("ignore") => OnLostCarrier::Ignore,
        Some(other) => {
            return Err(ConfigError::Value(format!(
                "on_lost_carrier `{other}` of the card on `{tap}` is unknown: write \"switchover\" (the guest goes on at the other host) or \"ignore\""
            )));
        }
    };
    let checked = |name: &str| {
        Ok(UplinkConfig {
            name: check_interface("an uplink", name)?,
            on_lost_carrier,
        })
    };
    uplink.map(checked).transpose()
}

/// Interface names have 1 to 15 bytes, no slash, no space (Linux `dev_valid_name`).
fn check_interface(what: &str, name: &str) -> Result<String, ConfigError> {
    let fine = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace());
    if fine {
        Ok(name.into())
    } else {
        Err(ConfigError::Value(format!(
            "`{name}` can't be {what}'s name: use 1 to 15 characters without / or :"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512M").unwrap(), 512 << 20);
        assert_eq!(parse_size("2g").unwrap(), 2 << 30);
        assert_eq!(parse_size("4096").unwrap(), 4096);
        assert_eq!(parse_disk_size("2T").unwrap(), 2 << 40);
        for bad in ["", "M", "-1M", "1T", "99999999999G", "1.5G", "5é"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn vcpus() {
        assert_eq!(check_vcpus(8).unwrap(), 8);
        for bad in [0, 9, 256, 257, u64::MAX] {
            assert!(check_vcpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mac_addresses() {
        assert_eq!(
            parse_mac("52:54:00:12:34:ff").unwrap(),
            [0x52, 0x54, 0, 0x12, 0x34, 0xff]
        );
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "53:54:00:12:34:56",
            "+1:2:3:4:5:6",
        ] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn disks_and_nets() {
        assert!(parse_disk("path=a.img,readonly").unwrap().read_only);
        assert!(parse_disk("a.img").is_err());
        let cache = |text: &str| parse_disk(text).map(|disk| disk.cache);
        assert_eq!(cache("path=a.img").unwrap(), CacheMode::Auto);
        assert_eq!(cache("path=a.img,cache=none").unwrap(), CacheMode::None);
        assert_eq!(cache("path=a.img,cache=host").unwrap(), CacheMode::Host);
        let error = cache("path=a.img,cache=yes").unwrap_err().to_string();
        assert!(
            error.contains("`yes` is no cache of a disk: write host"),
            "{error}"
        );
        let disk = parse_disk("path=a.img,serial=disk-7").unwrap();
        assert_eq!(disk.serial.unwrap().as_str(), "disk-7");
        let error = parse_disk("path=a.img,serial=123456789012345678901").unwrap_err();
        assert!(
            error.to_string().contains("`123456789012345678901`"),
            "{error}"
        );
        assert_eq!(parse_net("tap=t0,mac=52:54:00:00:00:01").unwrap().tap, "t0");
        for bad in [
            "tap=t0",
            "mac=52:54:00:00:00:01",
            "tap=a-name-that-is-too-long,mac=52:54:00:00:00:01",
        ] {
            assert!(parse_net(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn vsocks() {
        let vsock = parse_vsock("cid=4294967294,socket=/run/vm.vsock").unwrap();
        assert_eq!(vsock.cid, u32::MAX - 1);
        assert_eq!(vsock.socket.as_path(), Path::new("/run/vm.vsock"));
        let long = format!("cid=3,socket=/{}", "x".repeat(96));
        for (bad, word) in [
            ("cid=3", "cid=3,socket=/run/vm.vsock"),
            ("socket=/run/vm.vsock", "cid=3,"),
            ("cid=x,socket=/run/vm.vsock", "`cid=x,"),
            ("cid=3,socket=/run/vm.vsock,port=1", "port=1"),
            ("cid=2,socket=/run/vm.vsock", "from 3 to 4294967294"),
            ("cid=4294967295,socket=/run/vm.vsock", "4294967295 can't"),
            ("cid=4294967299,socket=/run/vm.vsock", "4294967299 can't"),
            ("cid=3,socket=/run/", "`/run/`"),
            (long.as_str(), "97 bytes: use at most 96"),
        ] {
            let error = parse_vsock(bad).unwrap_err().to_string();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
