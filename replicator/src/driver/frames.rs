//! Taking in what peers and strangers send.

use std::time::Instant;

use evertwin_protocol::{Envelope, Input, Message, Role, Status};
use tracing::{error, info, warn};

use super::Driver;
use crate::config::Error;
use crate::crash::crash_point;
use crate::network::Place;
use crate::tls::TlsError;
use crate::wire::{
    Difference, FrameReader, Header, Hello, Kind, PACKED, VERSION, WireError, disk_write, for_now,
    reject, reject_reason,
};

/// Why a connection can't go on.
pub(super) enum Trouble {
    /// Bytes that are not what they should be.
    Wire(WireError),
    /// A twin, but not the other half of this pair.
    Difference(Difference),
    /// A peer that can't be trusted, or a record that was changed.
    Tls(TlsError),
    /// A standby, and none is wanted.
    Unwanted,
    /// The peer refused us, for this reason.
    Refused(String),
    /// The same, and it may take us later.
    PutOff(String),
    /// The run can't go on.
    Fatal(Error),
}

impl From<WireError> for Trouble {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

impl Driver<'_> {
    /// Bytes arrived on a connection: takes all whole frames from them.
    pub(super) fn take_frames(&mut self, id: u64) -> Result<(), Error> {
        let Some(connection) = self.network.get(id) else {
            return Ok(());
        };
        let mut reader = connection.take_reader();
        let address = connection.address;
        if connection.verified {
            // Parts of a long frame are signs of life, too.
            self.inputs.push_back(Input::Heard);
            self.drain()?;
        }
        let mut waits = false;
        let trouble = loop {
            // The connection may have been closed by what was just taken in.
            if !matches!(self.network.place(id), Some(Place::Link | Place::Stranger)) {
                break None;
            }
            if self.falls_behind(id) {
                waits = true;
                break None;
            }
            match reader.next() {
                Ok(None) => {
                    let connection = self.network.get(id);
                    break connection.and_then(|peer| peer.failure()).map(Trouble::Tls);
                }
                Err(error) => break Some(Trouble::Wire(error)),
                Ok(Some((header, payload))) => {
                    if let Err(trouble) = self.frame(id, header, payload) {
                        break Some(trouble);
                    }
                }
            }
        };
        if let Some(connection) = self.network.get(id) {
            connection.put_reader(reader);
            if std::mem::take(&mut self.link_gives_back) {
                connection.give_back_memory();
            }
        }
        if let Some(trouble) = trouble {
            self.part(id, address, trouble)?;
        }
        match waits {
            true => Ok(()),
            false => self.receive_more(id),
        }
    }

    /// Waits for the next bytes, or for the end of a connection that is leaving.
    pub(super) fn receive_more(&mut self, id: u64) -> Result<(), Error> {
        let place = self.network.place(id);
        let (Some(place), Some(connection)) = (place, self.network.get(id)) else {
            return Ok(());
        };
        if place == Place::Leaving {
            // Its words don't matter any more; only its end does.
            connection.put_reader(FrameReader::new());
        }
        connection.receive(&mut self.ring).map_err(Error::Ring)
    }

    fn frame(&mut self, id: u64, header: Header, payload: &[u8]) -> Result<(), Trouble> {
        if self.ended.is_some() {
            // The last words are on their way; nothing changes them any more.
            return Ok(());
        }
        let verified = self.network.get(id).is_some_and(|peer| peer.verified);
        match header.kind {
            Kind::Hello if !verified => self.take_hello(id, header, payload),
            Kind::Reject if for_now(&header) => Err(Trouble::PutOff(reject_reason(payload))),
            Kind::Reject => Err(Trouble::Refused(reject_reason(payload))),
            // A peer that may not greet yet gives signs of life only.
            Kind::Heartbeat if !verified => Ok(()),
            kind if !verified => Err(WireError::OutOfPlace(kind).into()),
            kind => self.peer_frame(kind, header, payload),
        }
    }

    fn peer_frame(&mut self, kind: Kind, header: Header, payload: &[u8]) -> Result<(), Trouble> {
        let message = match kind {
            Kind::SyncBegin => {
                if !self.runs_guest() {
                    self.check_rooms().map_err(Trouble::Difference)?;
                }
                self.admission.admitted();
                Message::SyncBegin
            }
            Kind::Ack => Message::Ack,
            Kind::Heartbeat => Message::Heartbeat,
            Kind::Named => Message::Named,
            Kind::Bye => Message::Bye,
            Kind::HandOver => Message::HandOver,
            Kind::TookOver => Message::TookOver,
            Kind::SyncPages => {
                self.expect_bulk(kind)?;
                let memory = &self.identity.memory;
                let bytes = self.pages.decode(kind, payload, memory)?;
                return self.received(header, Message::SyncPages, bytes);
            }
            Kind::SyncDisk | Kind::SyncZeroes => {
                self.expect_bulk(kind)?;
                if !self.disks.are_ready() {
                    return Err(WireError::OutOfPlace(kind).into());
                }
                let write = disk_write(kind, payload).ok_or(WireError::Malformed(kind))?;
                self.disk_part = Some(write);
                return self.received(header, Message::SyncPages, &[]);
            }
            Kind::Inbound => {
                return Ok(self.take_in(header, payload)?);
            }
            Kind::Beacon => return Ok(self.take_beacon(header, payload)?),
            Kind::DiskHeld
            | Kind::DiskCopies
            | Kind::CopiesBegun
            | Kind::CopyBase
            | Kind::DisksCopied
            | Kind::SyncProgress
            | Kind::DiskPoint
            | Kind::PointReached => {
                return self.take_disk_frame(header, payload);
            }
            Kind::DiskRoom | Kind::DiskRoomMade => {
                return Ok(self.take_growth_frame(header, payload)?);
            }
            Kind::UplinkState => return Ok(self.take_uplinks(header, payload)?),
            Kind::DiskFailed => return Ok(self.peers_disk_fails(payload)?),
            Kind::DiskCheck | Kind::DiskChecked => return Ok(self.take_check(header, payload)?),
            Kind::EpochBegin
            | Kind::Pages
            | Kind::PageChanges
            | Kind::State
            | Kind::StateChanges
            | Kind::DiskWrites
            | Kind::DiskZeroes
            | Kind::EpochEnd => {
                self.expect_bulk(kind)?;
                let memory = &self.identity.memory;
                let whole = self.assembly.take(&header, payload, memory)?.is_some();
                if kind == Kind::EpochBegin {
                    self.early_ack(header);
                }
                return if whole {
                    crash_point("epoch::received");
                    self.received(header, Message::Epoch, &[])
                } else {
                    Ok(())
                };
            }
            Kind::Hello | Kind::Reject | Kind::Packed => {
                return Err(WireError::OutOfPlace(kind).into());
            }
        };
        if payload.is_empty() {
            self.received(header, message, &[])
        } else {
            Err(WireError::Malformed(kind).into())
        }
    }

    /// What fills a standby is only taken while this twin follows a primary.
    fn expect_bulk(&self, kind: Kind) -> Result<(), WireError> {
        match self.twin.role() {
            Role::Filling | Role::Synced => Ok(()),
            _ => Err(WireError::OutOfPlace(kind)),
        }
    }

    fn received(&mut self, header: Header, message: Message, bytes: &[u8]) -> Result<(), Trouble> {
        self.inputs.push_back(Input::Received(Envelope {
            generation: header.generation,
            epoch: header.epoch,
            message,
        }));
        Ok(self.drain_with(bytes)?)
    }

    /// Nothing, but for a test that breaks I1 on purpose.
    fn early_ack(&mut self, _header: Header) {
        fail::fail_point!("epoch::ack_early", |_| {
            use crate::wire::Frame;
            let Header {
                generation, epoch, ..
            } = _header;
            self.queue(Frame::new(Kind::Ack, generation, epoch, &[]));
        });
    }

    fn take_hello(&mut self, id: u64, header: Header, payload: &[u8]) -> Result<(), Trouble> {
        let hello = Hello::decode(payload)?;
        let ours = self.hello(Status::Cold);
        let fits = hello.check(&ours);
        // A peer of another level may be of the one that comes next.
        let may_fit = matches!(&fits, Ok(()) | Err(Difference::Protection { .. }));
        if may_fit && self.admission.keeps_out(hello.status) {
            return Err(Trouble::Unwanted);
        }
        fits.map_err(Trouble::Difference)?;
        self.peer_sizes = hello.sizes();
        if hello.status == Status::Primary && !self.runs_guest() {
            self.check_rooms().map_err(Trouble::Difference)?;
        }
        if self.network.place(id) == Some(Place::Stranger) {
            // The peer is back before the old link was found dead.
            self.lose_link("the peer has connected again");
            self.network.promote_stranger(id);
            self.inputs.push_back(Input::LinkUp);
        }
        self.peer_version = hello.version;
        self.uplinks.peer_greets();
        if let Some(link) = &mut self.network.link {
            link.verified = true;
            if self.config.pack && hello.version.min(VERSION) >= PACKED {
                link.allow_packing();
            }
            info!(
                peer = %link.address,
                node = %hello.node,
                status = ?hello.status,
                sealed = link.is_sealed(),
                "link up"
            );
        }
        self.tell_beacon();
        self.tell_uplinks();
        self.received(header, Message::Hello(hello.status), &[])
    }

    /// Ends a connection that can't go on. Ends the run if there is nothing else to do: this
    /// twin holds no guest and the peer that it was told to follow is the wrong one.
    fn part(
        &mut self,
        id: u64,
        address: std::net::SocketAddr,
        trouble: Trouble,
    ) -> Result<(), Error> {
        let cold = self.twin.role() == Role::Starting;
        let dialed = self.network.dials();
        let on_link = self.network.place(id) == Some(Place::Link);
        let verified = self.network.get(id).is_some_and(|peer| peer.verified);
        let now = Instant::now();
        match trouble {
            Trouble::Fatal(error) => return Err(error),
            Trouble::Tls(source) if verified => {
                self.network.cut_off(id);
                warn!(peer = %address, error = %source, "connection dropped");
            }
            Trouble::Tls(source) => {
                self.network.turn_away(id, now);
                if source.is_lasting() {
                    self.network.pause(now);
                    if cold && dialed {
                        self.receive_more(id)?;
                        self.say_goodbye(&mut Vec::new())?;
                        return Err(Error::Tls { address, source });
                    }
                }
                warn!(peer = %address, error = %source, "peer not trusted");
            }
            Trouble::Difference(difference) => {
                self.network
                    .refuse(id, reject(&difference.to_string()), now);
                if cold && dialed {
                    self.receive_more(id)?;
                    self.say_goodbye(&mut Vec::new())?;
                    return Err(Error::Peer {
                        address,
                        difference,
                    });
                }
                error!(peer = %address, %difference, "peer refused");
            }
            Trouble::Unwanted => self.keep_out(id, address),
            Trouble::PutOff(reason) => {
                self.network.cut_off(id);
                self.network.pause(now);
                self.kept_out(address, reason);
            }
            Trouble::Refused(reason) => {
                self.network.cut_off(id);
                self.network.pause(now);
                if cold && dialed {
                    return Err(Error::Refused { address, reason });
                }
                error!(peer = %address, reason, "the peer refused this twin");
            }
            Trouble::Wire(source) => {
                let foreign = matches!(
                    source,
                    WireError::Magic | WireError::Tls | WireError::Version { .. }
                );
                if foreign {
                    self.network.refuse(id, reject(&source.to_string()), now);
                    if cold && dialed {
                        self.receive_more(id)?;
                        self.say_goodbye(&mut Vec::new())?;
                        return Err(Error::Wire { address, source });
                    }
                } else {
                    self.network.cut_off(id);
                }
                warn!(peer = %address, error = %source, "connection dropped");
            }
        }
        if on_link {
            info!(peer = %address, reason = "the connection was dropped", "link down");
            self.forget_received();
            self.inputs.push_back(Input::LinkFault);
            self.drain()?;
        }
        Ok(())
    }
}
