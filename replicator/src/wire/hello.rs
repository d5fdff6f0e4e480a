//! The hello: who is there, and can one take over from the other?

use std::time::Duration;

use evertwin_protocol::{NodeId, Status};

use super::WireError;
use super::difference::{Difference, sizes};
use super::frame::Frame;
use super::header::{GROW, Header, Kind, OLDEST, VERSION};
use super::reader::Reader;
use crate::machine::{CpuLeaf, DiskSize, Identity, MemoryRegion};

const MAX_VM_NAME: usize = 64;
const MAX_REGIONS: usize = 64;
const MAX_DEVICES: usize = 64;
const MAX_DEVICE_NAME: usize = 128;
const MAX_LEAVES: usize = 256;
const MAX_MSRS: usize = 1024;
const MAX_REASON: usize = 512;

/// Stands before the devices of a twin that replicates only disks, with the lease in milliseconds behind it. A release
/// that does not know of leases takes it for a device that it lacks, and refuses the pair.
const LEVEL: &str = "protection = \"ha\", lease in ms: ";

/// Contents of a hello frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) status: Status,
    pub(crate) node: NodeId,
    pub(crate) peer: NodeId,
    pub(crate) identity: Identity,
    /// The newest version of the protocol that the sender speaks.
    pub(crate) version: u16,
}

impl Hello {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Self {
            status,
            node,
            peer,
            identity,
            version,
        } = self;
        let Identity {
            vm,
            lease,
            memory,
            vcpus,
            devices,
            cpu,
            msrs,
        } = identity;
        let (status, epoch) = match *status {
            Status::Cold => (0, 0),
            Status::Synced { epoch } => (1, epoch),
            Status::Primary => (2, 0),
        };
        let mut bytes = vec![status];
        bytes.extend(u64::to_le_bytes(epoch));
        for name in [node.as_str(), peer.as_str(), short(vm, MAX_VM_NAME)] {
            bytes.push(name.len() as u8);
            bytes.extend(name.as_bytes());
        }
        let regions = &memory[..memory.len().min(MAX_REGIONS)];
        bytes.push(regions.len() as u8);
        for MemoryRegion { start, len } in regions {
            bytes.extend(start.to_le_bytes());
            bytes.extend(len.to_le_bytes());
        }
        bytes.push(*vcpus);
        let level = lease.map(level);
        let devices: Vec<_> = level.iter().chain(devices).take(MAX_DEVICES).collect();
        bytes.push(devices.len() as u8);
        for device in devices {
            let device = short(device, MAX_DEVICE_NAME);
            bytes.push(device.len() as u8);
            bytes.extend(device.as_bytes());
        }
        let leaves = &cpu[..cpu.len().min(MAX_LEAVES)];
        bytes.extend((leaves.len() as u16).to_le_bytes());
        for CpuLeaf {
            function,
            index,
            registers,
        } in leaves
        {
            bytes.extend(function.to_le_bytes());
            bytes.extend(index.to_le_bytes());
            bytes.extend(registers.iter().flat_map(|word| word.to_le_bytes()));
        }
        let msrs = &msrs[..msrs.len().min(MAX_MSRS)];
        bytes.extend((msrs.len() as u16).to_le_bytes());
        bytes.extend(msrs.iter().flat_map(|index| index.to_le_bytes()));
        // The range of versions this build speaks: oldest and newest.
        bytes.extend(OLDEST.to_le_bytes());
        bytes.extend(version.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<Self, WireError> {
        Self::fields(payload).ok_or(WireError::Malformed(Kind::Hello))?
    }

    fn fields(payload: &[u8]) -> Option<Result<Self, WireError>> {
        let mut reader = Reader(payload);
        let status = (reader.u8()?, reader.u64()?);
        let status = match status {
            (0, 0) => Status::Cold,
            (1, epoch) => Status::Synced { epoch },
            (2, 0) => Status::Primary,
            _ => return None,
        };
        let node = text(&mut reader)?.parse().ok()?;
        let peer = text(&mut reader)?.parse().ok()?;
        let vm = text(&mut reader)?;
        if vm.len() > MAX_VM_NAME {
            return None;
        }
        let regions = reader.u8()? as usize;
        if regions > MAX_REGIONS {
            return None;
        }
        let mut memory = Vec::with_capacity(regions);
        for _ in 0..regions {
            memory.push(MemoryRegion {
                start: reader.u64()?,
                len: reader.u64()?,
            });
        }
        let vcpus = reader.u8()?;
        let mut devices = devices(&mut reader)?;
        let lease = match devices.first().and_then(|name| name.strip_prefix(LEVEL)) {
            Some(lease) => Some(Duration::from_millis(lease.parse().ok()?)),
            None => None,
        };
        if lease.is_some() {
            devices.remove(0);
        }
        let cpu = leaves(&mut reader)?;
        let msrs = msrs(&mut reader)?;
        let (oldest, newest) = (reader.u16()?, reader.u16()?);
        reader.end()?;
        if oldest > VERSION || newest < OLDEST || oldest > newest {
            return Some(Err(WireError::Version {
                theirs: newest,
                ours: VERSION,
            }));
        }
        Some(Ok(Self {
            status,
            node,
            peer,
            identity: Identity {
                vm: vm.to_owned(),
                lease,
                memory,
                vcpus,
                devices,
                cpu,
                msrs,
            },
            version: newest,
        }))
    }

    /// The sizes of the disks that the peer's guest may write; none where sizes have to be the same.
    pub(crate) fn sizes(&self) -> Vec<DiskSize> {
        match self.knows_growth() {
            true => sizes(&self.identity.devices),
            false => Vec::new(),
        }
    }

    /// Whether both releases know of disks that grow.
    fn knows_growth(&self) -> bool {
        self.version.min(VERSION) >= GROW
    }

    /// Compares the peer's hello with ours. Sizes of disks may differ until it is known who fills whose.
    pub(crate) fn check(&self, ours: &Self) -> Result<(), Difference> {
        if (self.node, self.peer) != (ours.peer, ours.node) {
            return Err(Difference::Node {
                theirs: self.node,
                sought: self.peer,
                node: ours.node,
                peer: ours.peer,
            });
        }
        match Difference::between(&self.identity, &ours.identity, self.knows_growth()) {
            Some(difference) => Err(difference),
            None => Ok(()),
        }
    }
}

fn level(lease: Duration) -> String {
    format!("{LEVEL}{}", lease.as_millis())
}

/// Stands as the epoch of a reject frame whose reason may pass: the peer need not end. Releases that don't know it do.
const FOR_NOW: u64 = 1;

/// A reject frame: the peer's hello can't be taken before something is changed.
pub(crate) fn reject(reason: &str) -> Frame {
    Frame::new(Kind::Reject, 0, 0, reason.as_bytes())
}

/// A reject frame: the peer's hello can't be taken now.
pub(crate) fn put_off(reason: &str) -> Frame {
    Frame::new(Kind::Reject, 0, FOR_NOW, reason.as_bytes())
}

/// Whether a reject frame's sender is to be asked again.
pub(crate) fn for_now(header: &Header) -> bool {
    header.epoch == FOR_NOW
}

/// The text of a reject frame, fit for one line of a log.
pub(crate) fn reject_reason(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(&payload[..payload.len().min(MAX_REASON)]);
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn devices(reader: &mut Reader<'_>) -> Option<Vec<String>> {
    let count = usize::from(reader.u8()?);
    if count > MAX_DEVICES {
        return None;
    }
    let device = |_| text(reader).filter(|name| name.len() <= MAX_DEVICE_NAME);
    (0..count)
        .map(device)
        .map(|name| name.map(str::to_owned))
        .collect()
}

fn leaves(reader: &mut Reader<'_>) -> Option<Vec<CpuLeaf>> {
    let count = usize::from(reader.u16()?);
    if count > MAX_LEAVES {
        return None;
    }
    let mut leaf = |_| {
        let (function, index) = (reader.u32()?, reader.u32()?);
        let mut registers = [0; 4];
        for register in &mut registers {
            *register = reader.u32()?;
        }
        Some(CpuLeaf {
            function,
            index,
            registers,
        })
    };
    (0..count).map(&mut leaf).collect()
}

fn msrs(reader: &mut Reader<'_>) -> Option<Vec<u32>> {
    let count = usize::from(reader.u16()?);
    if count > MAX_MSRS {
        return None;
    }
    (0..count).map(|_| reader.u32()).collect()
}

fn text<'a>(reader: &mut Reader<'a>) -> Option<&'a str> {
    let len = reader.u8()? as usize;
    std::str::from_utf8(reader.bytes(len)?).ok()
}

fn short(name: &str, max: usize) -> &str {
    &name[..name.floor_char_boundary(max)]
}
