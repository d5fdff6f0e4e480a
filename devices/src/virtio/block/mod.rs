//! The block device (virtio 1.2, 5.2) over a raw image.

mod aligned;
mod answers;
mod beside;
mod cache;
mod copy_mark;
mod growth;
mod image;
mod image_id;
mod journal;
mod mirror;
mod mirrored;
mod operation;
mod request;
mod ring;
mod scrub;
mod sealed;
mod serial;
mod withheld;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::{
    Backend, BackendState, Broken, DeviceIdentity, DiskData, DiskWrite, RestoreError, Source,
    Transport, TransportState,
};
use aligned::AlignedBuffer;
use answers::{Answer, Answers};
pub use cache::CacheMode;
pub use copy_mark::CopyMark;
use growth::Extent;
pub use growth::{GrowthError, Room};
pub use image::{DiskImage, ImageError, SECTOR_BYTES};
pub use journal::{Journal, JournalError, JournaledDisk, Recovery, recover};
pub use mirror::{BLOCK_BYTES, BlockSet, CopyBase, Distrust, Held, Point};
pub use mirrored::CopyPlan;
use mirrored::Mirrored;
use operation::{Effect, Operation, Zeroing};
use request::{MAX_RANGE_SECTORS, MAX_RANGES, MAX_REQUEST_BYTES, Request, Status};
use ring::{DEPTH, DiskRing, Finished};
pub use scrub::BlockReader;
use scrub::Watch;
pub use serial::{DiskSerial, DiskSerialError};
use withheld::Withheld;

/// Device type of a block device (virtio 1.2, 5.2.1).
const DEVICE_ID: u32 = 2;
/// The only queue (5.2.2).
const QUEUE: usize = 0;
const QUEUE_SIZES: &[u16] = &[256];

/// Feature bits (5.2.3).
mod feature {
    pub(super) const SIZE_MAX: u64 = 1 << 1;
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const RO: u64 = 1 << 5;
    pub(super) const BLK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const TOPOLOGY: u64 = 1 << 10;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Most data segments of a request: what the queue holds, less header and status.
const SEG_MAX: u32 = 126;
/// Longest segment in bytes: [`SEG_MAX`] of them make no request longer than is accepted.
const SIZE_MAX: u32 = 32 << 10;
const _: () = assert!(SEG_MAX * SIZE_MAX <= MAX_REQUEST_BYTES);

/// What images are best written in, as a power of two of sectors: 4 KiB.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// New requests wait while this many bytes are in flight.
const MAX_IN_FLIGHT_BYTES: usize = 16 << 20;
/// New requests wait while this many bytes of writes are recorded and not yet taken.
const MAX_RECORDED_BYTES: usize = 64 << 20;
/// What a recorded range of zeroes counts as, for it takes the twin some time as well.
const RECORDED_RANGE_BYTES: usize = 64 << 10;
/// Chains taken in one go before other devices get their turn.
const BUDGET: usize = 512;
/// Rounds of answering and starting in one go.
const ROUNDS: usize = 4;

/// Why a block device can't be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The image can't be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// io_uring can't be set up.
    #[error(
        "io_uring can't be set up for disk {path}: {error}; it must be allowed by \
         /proc/sys/kernel/io_uring_disabled and by the container's seccomp profile"
    )]
    Ring {
        /// The image.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// State of a block device, as captured with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Heads of the chains of requests in flight, oldest first.
    in_flight: Vec<u16>,
}

/// A request of the guest that is on its way to the disk.
struct InFlight {
    chain: Chain,
    /// The guest has reset the device since: nobody waits for the answer.
    orphan: bool,
    bytes: usize,
    /// What it changes on the disk: offset and length.
    changes: Option<(u64, u64)>,
    /// It was in flight at the twin, and has begun here anew.
    reissued: bool,
}

/// A block device.
pub struct Block {
    name: String,
    disk: u32,
    serial: DiskSerial,
    /// What of the image is the guest's disk.
    extent: Extent,
    ring: DiskRing,
    in_flight: BTreeMap<u64, InFlight>,
    next_token: u64,
    in_flight_bytes: usize,
    /// Heads restored and not yet issued again.
    reissue: VecDeque<u16>,
    recording: bool,
    recorded: Vec<DiskWrite>,
    recorded_bytes: usize,
    kick: Option<EventFd>,
    /// What is known of the twin's copy.
    mirrored: Mirrored,
    /// Failures that the guest is not told of.
    withheld: Withheld,
    /// Blocks that are being compared with the twin's.
    watch: Watch,
    /// Answers that wait for the twin.
    answers: Answers,
}

impl Block {
    /// A block device over the image at `path`, through the page cache; `disk` is its number in the config.
    pub fn open(
        disk: u32,
        path: &std::path::Path,
        read_only: bool,
        serial: DiskSerial,
    ) -> Result<Self, BlockError> {
        Self::over(disk, DiskImage::open(path, read_only)?, serial)
    }

    /// A block device over an open image.
    ///
    /// # Errors
    /// io_uring can't be set up.
    pub fn over(disk: u32, image: DiskImage, serial: DiskSerial) -> Result<Self, BlockError> {
        let path = image.path().to_path_buf();
        let extent = Extent::of(&image);
        let ring = DiskRing::new(image).map_err(|error| BlockError::Ring { path, error })?;
        Ok(Self {
            name: format!("disk{disk}"),
            disk,
            serial,
            extent,
            ring,
            in_flight: BTreeMap::new(),
            next_token: 0,
            in_flight_bytes: 0,
            reissue: VecDeque::new(),
            recording: false,
            recorded: Vec::new(),
            recorded_bytes: 0,
            kick: None,
            mirrored: Mirrored::default(),
            withheld: Withheld::default(),
            watch: Watch::default(),
            answers: Answers::default(),
        })
    }

    /// True when no operation is on its way to or from the disk.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.ring.in_flight() == 0
    }

    fn has_room(&self) -> bool {
        self.ring.in_flight() + self.mirrored.waiting() + self.answers.count() < DEPTH
            && self.in_flight_bytes < MAX_IN_FLIGHT_BYTES
            && self.recorded_bytes < MAX_RECORDED_BYTES
    }

    /// Answers what is done and starts what is asked for. What the page cache serves is
    /// done at once and needs no event of its own.
    fn serve(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        for _ in 0..ROUNDS {
            let finished = self.finish(transport)?;
            self.pump(transport)?;
            if finished == 0 && !self.ring.has_finished() {
                return Ok(());
            }
        }
        transport.reschedule(QUEUE);
        Ok(())
    }

    /// Takes requests and starts them, as far as there is room.
    fn pump(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        // Requests from before a reset must be over first: theirs are older writes.
        if !transport.is_active() || self.in_flight.values().any(|request| request.orphan) {
            return Ok(());
        }
        let result = self.take_requests(transport);
        self.ring.submit();
        result?;
        transport.interrupt_used(QUEUE)
    }

    fn take_requests(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        let mut budget = BUDGET;
        transport.disable_notification(QUEUE)?;
        while self.has_room() {
            if budget == 0 {
                transport.reschedule(QUEUE);
                return Ok(());
            }
            budget -= 1;
            let again = self.reissue.pop_front();
            let next = match again {
                Some(head) => Some(transport.chain_at(QUEUE, head)?),
                None => transport.pop(QUEUE)?,
            };
            match next {
                Some(chain) => self.start(transport, chain, again.is_some())?,
                // Nothing left, and nothing came while notifications were off.
                None if !transport.enable_notification(QUEUE)? => return Ok(()),
                None => transport.disable_notification(QUEUE)?,
            }
        }
        Ok(())
    }

    /// Starts the request of `chain`, or answers it at once.
    fn start(
        &mut self,
        transport: &mut Transport,
        chain: Chain,
        reissued: bool,
    ) -> Result<(), Broken> {
        if chain.writable.is_empty() {
            return Err(Broken::NoStatus);
        }
        let request = Request::parse(transport.memory(), &chain, &self.extent);
        let operation = match request {
            Ok(Request::Read { offset, len }) => Operation::Read {
                offset,
                data: AlignedBuffer::zeroed(len as usize),
            },
            Ok(Request::Write { offset, data }) => Operation::Write {
                offset,
                data,
                // Without FLUSH the driver takes each write for durable (5.2.6.2).
                durable: !transport.has(feature::FLUSH),
            },
            Ok(Request::Zero { offset, len, how }) => Operation::Zero {
                offset,
                len,
                how,
                durable: !transport.has(feature::FLUSH),
            },
            Ok(Request::Flush) => Operation::Flush,
            Ok(Request::GetId) => {
                return answer(transport, &chain, Status::Ok, &self.serial.bytes());
            }
            Err(status) => return answer(transport, &chain, status, &[]),
        };
        let bytes = operation.held();
        let changes = operation.changes();
        if let Some((offset, len)) = changes {
            self.watch.touch(offset, len);
        }
        let token = self.new_token();
        self.in_flight_bytes += bytes;
        let request = InFlight {
            chain,
            orphan: false,
            bytes,
            changes,
            reissued,
        };
        self.in_flight.insert(token, request);
        self.push_marked(token, operation);
        Ok(())
    }

    /// Begins to make durable what is on the disk.
    pub fn flush(&mut self) {
        let token = self.new_token();
        self.ring.push(token, Operation::Flush);
        self.ring.submit();
    }

    fn new_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Answers what the disk has finished. Returns how much that was.
    fn finish(&mut self, transport: &mut Transport) -> Result<usize, Broken> {
        let ready = self.answers.take_ready();
        let mut count = ready.len();
        let mut result = match transport.is_active() {
            true => ready
                .iter()
                .try_for_each(|Answer { chain, status }| answer(transport, chain, *status, &[])),
            false => Ok(()),
        };
        let mut finished = self.withheld.given_up();
        finished.extend(self.ring.finished());
        for finished in finished {
            if let Err(error) = &finished.result {
                tracing::warn!(device = self.name, %error, "disk request failed");
            }
            let request = self.in_flight.get(&finished.token);
            let fresh = request.is_some_and(|request| !request.orphan && !request.reissued);
            let Some(finished) = self.withheld.pass(finished, fresh) else {
                self.mirrored.signal();
                continue;
            };
            let Finished {
                token,
                operation,
                result: outcome,
            } = finished;
            // No guest asked for the flush of a resumed device, or for what the mirror does.
            let Some(request) = self.in_flight.remove(&token) else {
                self.mirror_step_done(token, outcome.map(drop));
                continue;
            };
            count += 1;
            self.in_flight_bytes -= request.bytes;
            let status = match outcome {
                Ok(_) => Status::Ok,
                Err(_) => Status::IoError,
            };
            let wanted = !request.orphan && transport.is_active() && result.is_ok();
            if wanted && self.answers.wants(&operation) {
                let InFlight { chain, .. } = request;
                self.answers.hold(Answer { chain, status });
            } else if wanted {
                let data = match &operation {
                    Operation::Read { data, .. } if status == Status::Ok => data.as_ref(),
                    _ => &[],
                };
                result = answer(transport, &request.chain, status, data);
            }
            if self.recording {
                self.record(operation, &outcome);
            }
        }
        if count > 0 {
            self.mirrored.stamp();
        }
        result?;
        if count > 0 && transport.is_active() {
            transport.interrupt_used(QUEUE)?;
        }
        Ok(count)
    }

    /// Keeps what has changed on the disk for the twin.
    fn record(&mut self, operation: Operation, outcome: &io::Result<Effect>) {
        // What failed may be on the disk in part; repeating it on the twin is one of the
        // outcomes the guest must expect.
        let (offset, data) = match operation {
            Operation::Write { offset, data, .. } => (offset, DiskData::Bytes(data)),
            Operation::Zero {
                offset, len, how, ..
            } if !matches!(outcome, Ok(Effect::Nothing)) => {
                let unmap = how != Zeroing::Keep;
                (offset, DiskData::Zeroes { len, unmap })
            }
            Operation::Read { .. }
            | Operation::Zero { .. }
            | Operation::Flush
            | Operation::Record { .. } => return,
        };
        self.recorded_bytes += match (&data, outcome) {
            (DiskData::Bytes(bytes), _) => bytes.len(),
            // The twin will have to write them one by one, too.
            (DiskData::Zeroes { len, .. }, Ok(Effect::ZeroesWritten)) => *len as usize,
            (DiskData::Zeroes { .. }, _) => RECORDED_RANGE_BYTES,
        };
        self.recorded.push(DiskWrite {
            disk: self.disk,
            offset,
            data,
        });
    }
}

/// Gives a request back to the guest: data, then the status as the last byte.
fn answer(
    transport: &mut Transport,
    chain: &Chain,
    status: Status,
    data: &[u8],
) -> Result<(), Broken> {
    let status_at = chain.writable.len().saturating_sub(1);
    let mem = transport.memory();
    if !chain.writable.write(mem, 0, data) || !chain.writable.write(mem, status_at, &[status as u8])
    {
        return Err(Broken::Memory);
    }
    let written = data.len() as u32 + 1;
    transport.complete(QUEUE, chain.head, written)
}

impl Backend for Block {
    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity::Block {
            disk: self.disk,
            sectors: self.extent.sectors,
            read_only: self.ring.image().read_only(),
            serial: self.serial.to_string(),
        }
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let base = feature::SIZE_MAX
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::TOPOLOGY
            | feature::FLUSH;
        match self.ring.image().read_only() {
            true => base | feature::RO,
            false => base | feature::DISCARD | feature::WRITE_ZEROES,
        }
    }

    /// `struct virtio_blk_config` (5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut config = Vec::with_capacity(60);
        config.extend(self.extent.sectors.to_le_bytes());
        config.extend(SIZE_MAX.to_le_bytes());
        config.extend(SEG_MAX.to_le_bytes());
        // No geometry.
        config.extend([0; 4]);
        config.extend((SECTOR_BYTES as u32).to_le_bytes());
        // Topology: physical block, alignment, least and best size of a request in sectors.
        config.extend([PHYSICAL_BLOCK_EXPONENT, 0]);
        config.extend((1u16 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
        config.extend(0u32.to_le_bytes());
        // No choice of caching, one queue.
        config.extend([0; 4]);
        config.extend(MAX_RANGE_SECTORS.to_le_bytes());
        config.extend(MAX_RANGES.to_le_bytes());
        // Discards give back whole physical blocks.
        config.extend((1u32 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
        config.extend(MAX_RANGE_SECTORS.to_le_bytes());
        config.extend(MAX_RANGES.to_le_bytes());
        // Write zeroes may give space back.
        config.extend([1, 0, 0, 0]);
        config
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.ring.event_fd(),
            edge: false,
        }]
    }

    fn attach(&mut self, queue_events: &[EventFd]) -> io::Result<()> {
        self.kick = Some(queue_events[QUEUE].try_clone()?);
        Ok(())
    }

    fn notified(&mut self, transport: &mut Transport, _queue: usize) -> Result<(), Broken> {
        self.serve(transport)
    }

    fn source_ready(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        self.serve(transport)
    }

    fn reset(&mut self) {
        self.reissue.clear();
        self.answers.forget();
        // What has not begun need not be done for a guest that is gone, and what has failed not be told.
        let mut over = self.mirrored.forget_waiting();
        over.extend(self.withheld.forget());
        for token in over {
            if let Some(request) = self.in_flight.remove(&token) {
                self.in_flight_bytes -= request.bytes;
            }
        }
        for request in self.in_flight.values_mut() {
            request.orphan = true;
        }
    }

    fn save(&self) -> BackendState {
        let Self {
            in_flight,
            reissue,
            extent,
            // The config's, and the same on both twins.
            name: _,
            disk: _,
            serial: _,
            ring: _,
            // Of this process only.
            next_token: _,
            in_flight_bytes: _,
            kick: _,
            // Of this host's disk. What has failed here is in flight for the twin.
            mirrored: _,
            withheld: _,
            watch: _,
            // Only held where the guest boots anew on its twin.
            answers: _,
            // Shipped with the epoch, not with the state.
            recording: _,
            recorded: _,
            recorded_bytes: _,
        } = self;
        let in_flight = in_flight
            .values()
            .filter(|request| !request.orphan)
            .map(|request| request.chain.head)
            .chain(reissue.iter().copied())
            .collect();
        let state = BlockState { in_flight };
        match extent.grown {
            false => BackendState::Block(state),
            true => BackendState::GrownBlock(state, extent.sectors),
        }
    }

    fn restore(
        &mut self,
        transport: &TransportState,
        state: BackendState,
    ) -> Result<(), RestoreError> {
        let (in_flight, grown) = match state {
            BackendState::Block(BlockState { in_flight }) => (in_flight, None),
            BackendState::GrownBlock(BlockState { in_flight }, sectors) => {
                (in_flight, Some(sectors))
            }
            _ => return Err(RestoreError::Kind),
        };
        if let Some(sectors) = grown.filter(|sectors| !self.has_room_for(*sectors)) {
            return Err(RestoreError::Size(sectors));
        }
        // Only a live queue has requests. A guest may offer one chain twice, so heads need
        // not differ.
        let queue = &transport.queues[QUEUE];
        let size = if queue.ready { queue.size } else { 0 };
        if in_flight.len() > DEPTH || in_flight.iter().any(|&head| u32::from(head) >= size) {
            return Err(RestoreError::InFlight);
        }
        if let Some(sectors) = grown {
            self.extent.follow(sectors);
        }
        self.reset();
        self.watch.touch_all();
        self.reissue = in_flight.into();
        Ok(())
    }

    fn resume(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        if !self.ring.image().read_only() {
            // What the guest's flushes made durable on its twin was only written here.
            self.flush();
        }
        self.serve(transport)
    }

    fn take_disk_writes(&mut self) -> Vec<DiskWrite> {
        if self.recorded_bytes >= MAX_RECORDED_BYTES
            && let Some(kick) = &self.kick
        {
            // Requests were waiting for this.
            let _ = kick.write(1);
        }
        self.recorded_bytes = 0;
        std::mem::take(&mut self.recorded)
    }

    fn record_disk_writes(&mut self, on: bool) {
        self.recording = on;
        // A twin that is filled from here on is told the size.
        self.extent.grown = false;
        drop(self.take_disk_writes());
    }

    fn apply_disk_writes(&mut self, writes: &[DiskWrite]) -> io::Result<()> {
        let disk = self.disk;
        self.repeat(writes.iter().filter(|write| write.disk == disk))
    }

    fn next_disk_contents(&self, from: u64, limit: usize) -> io::Result<Option<DiskWrite>> {
        let found = self.next_to_copy(from, limit);
        let found = found.map_err(|error| self.ring.image().name_in(error))?;
        Ok(found.map(|(offset, data)| DiskWrite {
            disk: self.disk,
            offset,
            data,
        }))
    }

    fn grow(&mut self, sectors: u64) -> bool {
        self.grow_extent(sectors)
    }

    fn disk(&mut self) -> Option<&mut Block> {
        (!self.ring.image().read_only()).then_some(self)
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block")
            .field("name", &self.name)
            .field("in_flight", &self.in_flight.len())
            .finish_non_exhaustive()
    }
}

/// A state for tests of the transport, which need some.
#[cfg(test)]
pub(super) fn empty_state() -> BackendState {
    BackendState::Block(BlockState {
        in_flight: Vec::new(),
    })
}

#[cfg(test)]
mod answer_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod zero_tests;
