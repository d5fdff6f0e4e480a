//! From the TAP to the guest.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::header::{From, HEADER_BYTES, NUM_BUFFERS_AT, Offloads};
use super::{AGAIN_OVERHEAD, BUDGET, MIN_FRAME_BYTES, Net, RX, feature};
use crate::virtio::chain::Chain;
use crate::virtio::{Broken, Transport};

/// A frame that came before the guest could take it is still given to it within this time:
/// a standby's TAP hears the network for weeks.
pub(super) const FRESH: Duration = Duration::from_secs(1);
/// Most such frames, the latest ones.
pub(super) const EARLY_FRAMES: usize = 64;

/// What the guest's buffers are to a frame.
enum Room {
    /// Enough, in these chains.
    Enough(Vec<Chain>),
    /// So many chains are there, and the rest may come.
    Wait(usize),
    /// So many chains were looked at, and it will never fit.
    Never(usize),
}

impl Net {
    /// Puts the next frame with its header into the buffer; the length of both.
    fn next_frame(&mut self) -> Option<usize> {
        if let Some(length) = self.waiting.take() {
            return Some(length);
        }
        let mut kept = self.again.pop_front();
        if let Some(frame) = &kept {
            self.again_cost -= frame.len() + AGAIN_OVERHEAD;
        }
        while kept.is_none()
            && let Some((came, frame)) = self.early.pop_front()
        {
            kept = (came.elapsed() <= FRESH).then_some(frame);
        }
        let Some(frame) = kept else {
            return self.read_tap();
        };
        self.buffer[..frame.len()].copy_from_slice(&frame);
        Some(frame.len())
    }

    fn read_tap(&mut self) -> Option<usize> {
        for _ in 0..BUDGET {
            match rustix::io::read(&self.tap, &mut self.buffer[..]) {
                Ok(length) if length > 0 => return Some(length),
                Err(Errno::INTR) => {}
                // A frame that the TAP can't put into words. It is gone, others may wait.
                Err(Errno::INVAL) => self.counters.rx_dropped += 1,
                // Nothing there, or the interface is down: the next frame is a new event.
                Ok(_) | Err(_) => return None,
            }
        }
        None
    }

    /// Empties the TAP while there is no guest to give its frames to.
    pub(super) fn take_early(&mut self) {
        // As many as a TAP holds, or more.
        for _ in 0..4 * BUDGET {
            let Some(length) = self.read_tap() else {
                return;
            };
            if self.early.len() == EARLY_FRAMES {
                self.early.pop_front();
            }
            let frame = self.buffer[..length].to_vec();
            // A guest that was handed over a moment ago: the twin gives it what comes here.
            self.inbound.push(self.number, &frame);
            self.early.push_back((Instant::now(), frame));
        }
    }

    /// Gives frames from the TAP to the guest, as long as it has buffers.
    pub(super) fn receive(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        let offloads = Offloads::of_guest(transport);
        transport.disable_notification(RX)?;
        let mut budget = BUDGET;
        loop {
            if budget == 0 {
                transport.reschedule(RX);
                break;
            }
            budget -= 1;
            let Some(first) = transport.pop(RX)? else {
                // The guest notifies when it has buffers; some may have come just now.
                if transport.enable_notification(RX)? {
                    transport.disable_notification(RX)?;
                    continue;
                }
                break;
            };
            let Some(length) = self.next_frame() else {
                transport.unpop(RX);
                break;
            };
            if !self.may_pass(length, offloads) {
                transport.unpop(RX);
                self.counters.rx_dropped += 1;
                continue;
            }
            match room(transport, first, length)? {
                Room::Enough(chains) => self.give(transport, &chains, length)?,
                Room::Never(taken) => {
                    put_back(transport, taken);
                    self.counters.rx_dropped += 1;
                }
                Room::Wait(taken) => {
                    self.waiting = Some(length);
                    // Asked while those are taken: it is about others that come.
                    let more = transport.enable_notification(RX)?;
                    put_back(transport, taken);
                    if !more {
                        break;
                    }
                    transport.disable_notification(RX)?;
                }
            }
        }
        transport.interrupt_used(RX)
    }

    /// Looks at the header of the frame in the buffer.
    fn may_pass(&mut self, length: usize, offloads: Offloads) -> bool {
        let Some(header) = self.buffer.first_chunk_mut::<HEADER_BYTES>() else {
            return false;
        };
        length >= HEADER_BYTES + MIN_FRAME_BYTES && offloads.pass(header, From::Tap).is_some()
    }

    /// Spreads the frame in the buffer over chains that have room for it.
    fn give(
        &mut self,
        transport: &mut Transport,
        chains: &[Chain],
        length: usize,
    ) -> Result<(), Broken> {
        self.inbound.push(self.number, &self.buffer[..length]);
        let count = (chains.len() as u16).to_le_bytes();
        self.buffer[NUM_BUFFERS_AT..HEADER_BYTES].copy_from_slice(&count);
        let mut rest = &self.buffer[..length];
        let mut used = Vec::with_capacity(chains.len());
        for chain in chains {
            let (part, others) = rest.split_at(rest.len().min(chain.writable.len() as usize));
            if !chain.writable.write(transport.memory(), 0, part) {
                return Err(Broken::Memory);
            }
            used.push((chain.head, part.len() as u32));
            rest = others;
        }
        transport.complete_all(RX, &used)?;
        self.counters.rx_frames += 1;
        Ok(())
    }
}

/// Finds room for a frame: in one chain, or in several if the guest can put them together
/// (5.1.6.4).
fn room(transport: &mut Transport, first: Chain, length: usize) -> Result<Room, Broken> {
    let mut room = first.writable.len() as usize;
    let mut chains = vec![first];
    let merge = transport.has(feature::MRG_RXBUF);
    while room < length {
        if !merge || chains.len() >= usize::from(transport.queue_size(RX)) {
            return Ok(Room::Never(chains.len()));
        }
        let Some(chain) = transport.pop(RX)? else {
            return Ok(Room::Wait(chains.len()));
        };
        room = room.saturating_add(chain.writable.len() as usize);
        chains.push(chain);
    }
    Ok(Room::Enough(chains))
}

fn put_back(transport: &mut Transport, chains: usize) {
    for _ in 0..chains {
        transport.unpop(RX);
    }
}
