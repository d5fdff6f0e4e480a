//! All frames of a network in one file, with the host that each came from, as pcapng.

use std::borrow::Cow;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, PcapError};

use crate::lab::HostName;

/// A capture file that is being written; each host is one of its interfaces.
pub(crate) struct Capture {
    writer: PcapNgWriter<BufWriter<File>>,
    hosts: Vec<HostName>,
}

impl Capture {
    /// Starts a capture of the frames of `hosts`.
    pub(crate) fn create(path: &Path, hosts: &[HostName]) -> Result<Self, PcapError> {
        let file = File::create(path).map_err(PcapError::IoError)?;
        let mut writer = PcapNgWriter::new(BufWriter::new(file))?;
        for host in hosts {
            writer.write_pcapng_block(InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: 0,
                options: vec![
                    // Ten to the minus ninth: nanoseconds.
                    InterfaceDescriptionOption::IfTsResol(9),
                    InterfaceDescriptionOption::IfName(Cow::Owned(host.to_string())),
                ],
            })?;
        }
        Ok(Self {
            writer,
            hosts: hosts.to_vec(),
        })
    }

    /// Adds a frame. The checks don't read the file, so one that can't be written fails no scenario.
    pub(crate) fn record(&mut self, from: HostName, frame: &[u8]) {
        let Some(interface) = self.hosts.iter().position(|host| *host == from) else {
            return;
        };
        let timestamp = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let _ = self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id: interface as u32,
            timestamp,
            original_len: frame.len() as u32,
            data: Cow::Borrowed(frame),
            options: Vec::new(),
        });
    }
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture")
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}
