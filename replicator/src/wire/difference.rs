//! Why two twins can't be a pair, in words that name what to change.

use std::fmt;
use std::time::Duration;

use evertwin_protocol::NodeId;

use crate::machine::{CpuLeaf, DiskSize, Identity, MemoryRegion};

/// The first thing in which two twins differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The names of the nodes do not fit.
    #[error(
        "the peer is node {theirs} and looks for node {sought}, this is node {node} and looks for node {peer}: start one twin as --node {node} and the other as --node {peer}"
    )]
    Node {
        /// The peer's name.
        theirs: NodeId,
        /// Whom the peer looks for.
        sought: NodeId,
        /// Our name.
        node: NodeId,
        /// Whom we look for.
        peer: NodeId,
    },
    /// Another VM.
    #[error(
        "the peer runs VM {theirs:?}, this twin runs {ours:?}: give both the same configuration"
    )]
    Vm {
        /// The peer's VM.
        theirs: String,
        /// Our VM.
        ours: String,
    },
    /// Another level of protection, or another lease.
    #[error(
        "the peer's `protection` is {theirs}, this twin's is {ours}: set the same `protection`, `lease` and `timeout` on both"
    )]
    Protection {
        /// The peer's.
        theirs: LevelText,
        /// Ours.
        ours: LevelText,
    },
    /// Another memory layout.
    #[error(
        "the peer's guest has {theirs} MiB of memory, this one has {ours} MiB or another layout: set the same `memory` on both"
    )]
    Memory {
        /// The peer's memory in MiB.
        theirs: u64,
        /// Our memory in MiB.
        ours: u64,
    },
    /// Another number of vCPUs.
    #[error(
        "the peer's guest has {theirs} vCPUs, this one has {ours}: set the same `vcpus` on both"
    )]
    Vcpus {
        /// The peer's.
        theirs: u8,
        /// Ours.
        ours: u8,
    },
    /// Other devices.
    #[error(
        "the guest's device number {number} is {theirs} at the peer and {ours} here: give both the same [[disk]], [[net]] and [vsock] sections, and disks of the same size"
    )]
    Devices {
        /// Counted from 1.
        number: usize,
        /// The peer's.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// A disk of the primary's that has no room here.
    #[error(
        "disk {disk} has {theirs} bytes at the primary, and its image here {ours}: make it as large (a file with `truncate -s {theirs}`); what the primary has on it is copied then"
    )]
    Room {
        /// Number of the disk.
        disk: u32,
        /// The primary's size in bytes.
        theirs: u64,
        /// What there is, in bytes.
        ours: u64,
    },
    /// Another CPU model.
    #[error(
        "the hosts' CPUs differ in what they offer the guest: CPUID {theirs} at the peer, {ours} here: use two hosts with the same CPU model, microcode and kernel"
    )]
    Cpu {
        /// The peer's first leaf that differs.
        theirs: LeafText,
        /// Ours.
        ours: LeafText,
    },
    /// Other model-specific registers, which CPUID does not tell.
    #[error(
        "the hosts' CPUs differ: model-specific register {index:#x} is there {where} only: use two hosts with the same CPU model, microcode and kernel",
        where = if *at_peer { "at the peer" } else { "on this host" }
    )]
    Msrs {
        /// The first register that one side lacks.
        index: u32,
        /// The peer has it, and this twin has not; or the other way round.
        at_peer: bool,
    },
}

/// A CPUID leaf, or its absence, to be read by people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafText(Option<CpuLeaf>);

impl fmt::Display for LeafText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(leaf) = self.0 else {
            return f.write_str("has no such leaf");
        };
        let CpuLeaf {
            function,
            index,
            registers: [eax, ebx, ecx, edx],
        } = leaf;
        write!(
            f,
            "{function:#x}.{index} is {eax:#x} {ebx:#x} {ecx:#x} {edx:#x}"
        )
    }
}

/// A level of protection, to be read by people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelText(Option<Duration>);

impl fmt::Display for LevelText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("\"ft\""),
            Some(lease) => write!(f, "\"ha\" with a lease of {} ms", lease.as_millis()),
        }
    }
}

impl Difference {
    /// Compares what two twins are made of; with `but_sizes` disks that the guest may write can be of any size.
    pub(crate) fn between(theirs: &Identity, ours: &Identity, but_sizes: bool) -> Option<Self> {
        if theirs.vm != ours.vm {
            return Some(Self::Vm {
                theirs: theirs.vm.clone(),
                ours: ours.vm.clone(),
            });
        }
        if theirs.lease != ours.lease {
            return Some(Self::Protection {
                theirs: LevelText(theirs.lease),
                ours: LevelText(ours.lease),
            });
        }
        if theirs.memory != ours.memory {
            return Some(Self::Memory {
                theirs: mebibytes(&theirs.memory),
                ours: mebibytes(&ours.memory),
            });
        }
        if theirs.vcpus != ours.vcpus {
            return Some(Self::Vcpus {
                theirs: theirs.vcpus,
                ours: ours.vcpus,
            });
        }
        let [their_devices, our_devices] = [theirs, ours].map(|one| {
            let devices = one.devices.iter();
            let same = |name| if but_sizes { without_size(name) } else { name };
            devices.map(|name| same(name)).collect::<Vec<_>>()
        });
        if let Some((at, ..)) = first_unequal(&their_devices, &our_devices) {
            let name = |device: Option<&String>| {
                device.map_or_else(|| "missing".to_owned(), |name| format!("{name:?}"))
            };
            let (theirs, ours) = (theirs.devices.get(at), ours.devices.get(at));
            return Some(Self::Devices {
                number: at + 1,
                theirs: name(theirs),
                ours: name(ours),
            });
        }
        if let Some((_, theirs, ours)) = first_unequal(&theirs.cpu, &ours.cpu) {
            return Some(Self::Cpu {
                theirs: LeafText(theirs.copied()),
                ours: LeafText(ours.copied()),
            });
        }
        let only_at = |one: &Identity, other: &Identity, at_peer| {
            let mut indices = one.msrs.iter().copied();
            let index = indices.find(|index| !other.msrs.contains(index))?;
            Some(Self::Msrs { index, at_peer })
        };
        only_at(theirs, ours, true).or_else(|| only_at(ours, theirs, false))
    }
}

/// How the machine names a disk that its guest may write: number, serial and size.
const DISK: &str = "disk ";
const SIZE: &str = ", of ";
const SECTORS: &str = " sectors";
/// Bytes of a sector.
const SECTOR_BYTES: u64 = 512;

/// The name of such a disk without its size, and the size in sectors.
fn sized(device: &str) -> Option<(&str, u64)> {
    let (name, size) = device.strip_suffix(SECTORS)?.rsplit_once(SIZE)?;
    let sectors = size.parse().ok()?;
    name.starts_with(DISK).then_some((name, sectors))
}

fn without_size(device: &str) -> &str {
    sized(device).map_or(device, |(name, _)| name)
}

/// The sizes of the disks that a guest may write, among its devices.
pub(super) fn sizes(devices: &[String]) -> Vec<DiskSize> {
    let disk = |device: &String| {
        let (name, sectors) = sized(device)?;
        let (number, _) = name.strip_prefix(DISK)?.split_once(',')?;
        Some(DiskSize {
            disk: number.parse().ok()?,
            bytes: sectors.checked_mul(SECTOR_BYTES)?,
        })
    };
    devices.iter().filter_map(disk).collect()
}

/// Where two lists first differ, and in what.
fn first_unequal<'a, T: PartialEq>(
    theirs: &'a [T],
    ours: &'a [T],
) -> Option<(usize, Option<&'a T>, Option<&'a T>)> {
    (0..theirs.len().max(ours.len()))
        .map(|at| (at, theirs.get(at), ours.get(at)))
        .find(|(_, theirs, ours)| theirs != ours)
}

fn mebibytes(memory: &[MemoryRegion]) -> u64 {
    let bytes = memory
        .iter()
        .fold(0u64, |sum, region| sum.saturating_add(region.len));
    bytes >> 20
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            vm: "demo".into(),
            lease: None,
            memory: vec![MemoryRegion {
                start: 0,
                len: 64 << 20,
            }],
            vcpus: 2,
            devices: vec!["disk 0".into(), "net 1".into()],
            cpu: vec![CpuLeaf {
                function: 7,
                index: 0,
                registers: [0, 0x20, 0, 0],
            }],
            msrs: vec![0x10, 0x4b56_4d01],
        }
    }

    fn text(change: impl FnOnce(&mut Identity)) -> String {
        let mut theirs = identity();
        change(&mut theirs);
        Difference::between(&theirs, &identity(), false).map_or_else(String::new, |d| d.to_string())
    }

    #[test]
    fn each_difference_is_named_with_both_sides() {
        assert_eq!(text(|_| {}), "");
        for (text, words) in [
            (text(|i| i.vm = "other".into()), ["other", "demo"]),
            (text(|i| i.memory[0].len = 128 << 20), ["128 MiB", "64 MiB"]),
            (
                text(|i| i.lease = Some(Duration::from_secs(1))),
                [
                    "`protection` is \"ha\" with a lease of 1000 ms",
                    "this twin's is \"ft\"",
                ],
            ),
            (text(|i| i.vcpus = 4), ["4 vCPUs", "has 2"]),
            (
                text(|i| i.devices[1] = "net 9".into()),
                ["number 2 is \"net 9\"", "\"net 1\" here"],
            ),
            (
                text(|i| i.devices.truncate(1)),
                ["missing at the peer", "\"net 1\" here"],
            ),
            (
                text(|i| i.cpu[0].registers[1] = 0),
                ["7.0 is 0x0 0x0", "0x20"],
            ),
            (text(|i| i.cpu.clear()), ["no such leaf", "7.0"]),
            (text(|i| i.msrs.push(0x48)), ["0x48", "at the peer only"]),
            (
                text(|i| i.msrs.truncate(1)),
                ["0x4b564d01", "on this host only"],
            ),
        ] {
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    }

    #[test]
    fn disks_may_differ_in_size_between_releases_that_know_growth() {
        let devices = |names: [&str; 3]| Identity {
            devices: names.map(str::to_owned).to_vec(),
            ..identity()
        };
        let ours = devices([
            "disk 0, evertwin-vda, of 2048 sectors",
            "disk 1, b, of 8 sectors, read-only",
            "rng",
        ]);
        let larger = devices([
            "disk 0, evertwin-vda, of 4096 sectors",
            "disk 1, b, of 8 sectors, read-only",
            "rng",
        ]);
        assert_eq!(Difference::between(&larger, &ours, true), None);
        assert!(Difference::between(&larger, &ours, false).is_some());
        let expected = DiskSize {
            disk: 0,
            bytes: 2 << 20,
        };
        assert_eq!(sizes(&larger.devices), [expected]);
        for other in [
            [
                "disk 0, other, of 2048 sectors",
                "disk 1, b, of 8 sectors, read-only",
                "rng",
            ],
            [
                "disk 0, evertwin-vda, of 2048 sectors",
                "disk 1, b, of 9 sectors, read-only",
                "rng",
            ],
            [
                "disk 0, evertwin-vda, of many sectors",
                "disk 1, b, of 8 sectors, read-only",
                "rng",
            ],
        ] {
            let found = Difference::between(&devices(other), &ours, true);
            assert!(
                matches!(found, Some(Difference::Devices { .. })),
                "{other:?}"
            );
        }
    }
}
