//! Clients of the key-value server, all at once.

use std::io;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::BenchError;
use super::guest::{Guest, Host};
use crate::lab::LabError;
use crate::lab::resp;
use crate::lab::round_trips::round_trips;
use crate::lab::topology::GUEST_KV;

const CLIENTS: u64 = 8;
const KEYS: u64 = 10_000;
const VALUE_BYTES: usize = 100;

/// What the clients ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// To write.
    Set,
    /// To write and to read, in turns.
    SetAndGet,
}

impl Load {
    /// Puts it on a guest for so long. Gives the answers per second.
    pub(super) fn run(self, host: &Host, guest: &Guest, time: Duration) -> Result<f64, BenchError> {
        let client = &guest.topology().client;
        let connect = |_| client.connect(GUEST_KV, host.step());
        let streams: Vec<_> = (0..CLIENTS).map(connect).collect::<Result<_, _>>()?;
        let begun = Instant::now();
        let answered = thread::scope(|scope| {
            let clients = streams.iter().zip(1..).map(|(stream, seed)| {
                let commands = self.commands(seed);
                scope.spawn(move || round_trips(stream, time, commands))
            });
            // All of them are started before the first is waited for.
            let clients: Vec<_> = clients.collect();
            let ended = clients.into_iter().map(ScopedJoinHandle::join);
            ended
                .map(|times| times.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<io::Result<Vec<_>>>()
        });
        let took = begun.elapsed().as_secs_f64();
        let answered = answered.map_err(LabError::io("asking the guest"))?;
        Ok(answered.iter().map(Vec::len).sum::<usize>() as f64 / took)
    }

    /// One client's commands. Keys come in no order, and each value is a new one.
    fn commands(self, seed: u64) -> impl FnMut(&mut Vec<u8>) + Send {
        let mut random = Rng::with_seed(seed);
        let mut reads = false;
        move |request| {
            let key = format!("key:{:012}", random.u64(..KEYS));
            reads = self == Self::SetAndGet && !reads;
            if reads {
                return resp::encode(request, &[b"GET", key.as_bytes()]);
            }
            let mut value = [0; VALUE_BYTES];
            random.fill(&mut value);
            resp::encode(request, &[b"SET", key.as_bytes(), &value]);
        }
    }
}
