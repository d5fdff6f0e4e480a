//! The hello: who is there, and can one take over from the other?

use evertwin_protocol::{NodeId, Status};

use super::WireError;
use super::header::{Kind, VERSION};
use super::reader::Reader;
use crate::machine::{Identity, MemoryRegion};

const MAX_VM_NAME: usize = 64;
const MAX_REGIONS: usize = 64;
const MAX_REASON: usize = 512;

/// Contents of a hello frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) status: Status,
    pub(crate) node: NodeId,
    pub(crate) peer: NodeId,
    pub(crate) identity: Identity,
}

/// Why two twins can't be a pair.
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
    /// Other devices.
    #[error("the peer's guest has other devices: give both the same [[disk]] and [[net]] sections")]
    Devices,
    /// Another CPU model.
    #[error("the peer's CPU model differs: both hosts must offer the guest the same CPU features")]
    Cpu,
}

impl Hello {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Self {
            status,
            node,
            peer,
            identity,
        } = self;
        let Identity {
            vm,
            memory,
            devices,
            cpu,
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
        bytes.extend(devices.to_le_bytes());
        bytes.extend(cpu.to_le_bytes());
        // The range of versions this build speaks: oldest and newest.
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(VERSION.to_le_bytes());
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
        let (devices, cpu) = (reader.u64()?, reader.u64()?);
        let (oldest, newest) = (reader.u16()?, reader.u16()?);
        reader.end()?;
        if !(oldest..=newest).contains(&VERSION) {
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
                memory,
                devices,
                cpu,
            },
        }))
    }

    /// Compares the peer's hello with ours.
    pub(crate) fn check(&self, ours: &Self) -> Result<(), Difference> {
        if (self.node, self.peer) != (ours.peer, ours.node) {
            return Err(Difference::Node {
                theirs: self.node,
                sought: self.peer,
                node: ours.node,
                peer: ours.peer,
            });
        }
        let (theirs, ours) = (&self.identity, &ours.identity);
        if theirs.vm != short(&ours.vm, MAX_VM_NAME) {
            Err(Difference::Vm {
                theirs: theirs.vm.clone(),
                ours: ours.vm.clone(),
            })
        } else if theirs.memory != ours.memory {
            Err(Difference::Memory {
                theirs: mebibytes(&theirs.memory),
                ours: mebibytes(&ours.memory),
            })
        } else if theirs.devices != ours.devices {
            Err(Difference::Devices)
        } else if theirs.cpu != ours.cpu {
            Err(Difference::Cpu)
        } else {
            Ok(())
        }
    }
}

/// The text of a reject frame, fit for one line of a log.
pub(crate) fn reject_reason(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(&payload[..payload.len().min(MAX_REASON)]);
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn text<'a>(reader: &mut Reader<'a>) -> Option<&'a str> {
    let len = reader.u8()? as usize;
    std::str::from_utf8(reader.bytes(len)?).ok()
}

fn short(name: &str, max: usize) -> &str {
    &name[..name.floor_char_boundary(max)]
}

fn mebibytes(memory: &[MemoryRegion]) -> u64 {
    let bytes = memory
        .iter()
        .fold(0u64, |sum, region| sum.saturating_add(region.len));
    bytes >> 20
}
