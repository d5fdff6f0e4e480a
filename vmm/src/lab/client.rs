//! A client that judges every answer it gets over one TCP connection.
//!
//! It streams numbered `INCR counter` and `SET key:<n> <n>` commands, a few at a time. INCR makes the judgement
//! strict: each answer must be exactly one more than the answer before, so a lost, a repeated or a released but
//! uncommitted command shows at once. At the end every key is read back.

use std::collections::VecDeque;
use std::io::{self, BufReader, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::LabError;
use super::resp::{self, Reply};

/// How many keys are read back with one MGET.
const KEYS_PER_MGET: u64 = 64;
/// How many wrong answers are kept word for word.
const COMPLAINTS: usize = 8;

/// What the client does.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Commands that may be unanswered at once, at least 1.
    pub depth: usize,
    /// Number of different keys, at least 1; after that many SETs the first key is written again.
    pub keys: u64,
    /// The connection counts as lost when no answer comes for this long.
    pub patience: Duration,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            depth: 8,
            keys: 1 << 15,
            patience: Duration::from_secs(20),
        }
    }
}

/// What the client has seen so far.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Writes that the server has acknowledged.
    pub acked: u64,
    /// When the last answer came.
    pub last_answer: Option<Instant>,
    /// The longest time between two answers.
    pub longest_gap: Duration,
    /// Acknowledged writes that were not there afterwards.
    pub lost: u64,
    /// Writes that took effect more than once, or that nobody sent.
    pub duplicated: u64,
    /// The first few wrong answers, in words.
    pub complaints: Vec<String>,
    /// Why the connection ended before it was meant to.
    pub broken: Option<String>,
}

/// The client's judgement.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What it saw.
    pub progress: Progress,
    /// Whether everything was read back at the end. If not, `lost` counts only what showed during the load.
    pub read_back: bool,
}

impl Verdict {
    /// One connection throughout, nothing lost, nothing twice, no wrong answer.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let seen = &self.progress;
        self.read_back
            && seen.broken.is_none()
            && seen.lost == 0
            && seen.duplicated == 0
            && seen.complaints.is_empty()
    }

    /// `connection=survived acked=10 lost=0 duplicated=0 blackout_ms=12`
    #[must_use]
    pub fn summary(&self) -> String {
        let seen = &self.progress;
        let connection = if seen.broken.is_none() {
            "survived"
        } else {
            "lost"
        };
        format!(
            "connection={connection} acked={} lost={} duplicated={} blackout_ms={}",
            seen.acked,
            if self.read_back {
                seen.lost.to_string()
            } else {
                format!("{}+unread", seen.lost)
            },
            seen.duplicated,
            seen.longest_gap.as_millis()
        )
    }
}

/// A client at work on a thread of its own.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    stream: TcpStream,
    worker: Option<JoinHandle<Verdict>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    progress: Progress,
    stopping: bool,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    /// Starts the load on a connection.
    ///
    /// # Errors
    /// [`LabError::Io`] if the socket can't be set up.
    pub fn start(stream: TcpStream, options: LoadOptions) -> Result<Self, LabError> {
        let shared = Arc::new(Shared::default());
        let socket = LabError::io("setting up the client's socket");
        let set_up = || {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(options.patience))?;
            stream.set_write_timeout(Some(options.patience))?;
            Ok((stream.try_clone()?, stream.try_clone()?))
        };
        let (reading, writing) = set_up().map_err(socket)?;
        let judge = Judge {
            options,
            input: BufReader::new(reading),
            output: writing,
            shared: Arc::clone(&shared),
            waiting: VecDeque::new(),
            next_is_set: false,
            sets: 0,
            counter: 0,
            newest: Vec::new(),
        };
        let worker = std::thread::spawn(move || judge.work());
        Ok(Self {
            shared,
            stream,
            worker: Some(worker),
        })
    }

    /// What the client has seen so far.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.shared.lock().progress.clone()
    }

    /// What the client has seen so far. From now on the longest gap is the longest of those that end after this.
    pub fn measure_anew(&self) -> Progress {
        let mut state = self.shared.lock();
        let progress = state.progress.clone();
        state.progress.longest_gap = Duration::ZERO;
        progress
    }

    /// Waits until `enough` holds, the load ends, or `timeout` is over; says whether `enough` held.
    pub fn wait_until(&self, timeout: Duration, enough: impl Fn(&Progress) -> bool) -> bool {
        let state = self.shared.lock();
        let waiting = |state: &mut State| !state.ended && !enough(&state.progress);
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, timeout, waiting);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        enough(&state.progress)
    }

    /// Ends the load: waits for the answers that are still due, reads everything back and judges.
    ///
    /// # Panics
    /// If the client's thread panicked.
    #[must_use]
    pub fn finish(mut self) -> Verdict {
        self.shared.lock().stopping = true;
        let worker = self.worker.take().map(JoinHandle::join);
        match worker {
            Some(Ok(verdict)) => verdict,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => unreachable!("finish consumes the load"),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.shared.lock().stopping = true;
            let _ = self.stream.shutdown(Shutdown::Both);
            let _ = worker.join();
        }
    }
}

/// A command that has no answer yet.
enum Sent {
    Incr,
    Set { slot: u64, value: u64 },
}

struct Judge {
    options: LoadOptions,
    input: BufReader<TcpStream>,
    output: TcpStream,
    shared: Arc<Shared>,
    waiting: VecDeque<Sent>,
    next_is_set: bool,
    sets: u64,
    /// The value that the last INCR must have left.
    counter: i64,
    /// Newest acknowledged value of each key.
    newest: Vec<Option<u64>>,
}

impl Judge {
    fn work(mut self) -> Verdict {
        let outcome = self
            .find_start()
            .and_then(|()| self.stream_commands())
            .and_then(|()| self.read_back());
        let mut state = self.shared.lock();
        if let Err(error) = &outcome {
            let timed_out = matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            );
            let quiet = format!("no answer for {} s", self.options.patience.as_secs());
            state.progress.broken = Some(if timed_out { quiet } else { error.to_string() });
        }
        state.ended = true;
        self.shared.changed.notify_all();
        Verdict {
            progress: state.progress.clone(),
            read_back: outcome.is_ok(),
        }
    }

    /// Starts from the counter's present value, so that several loads can follow each other on one guest.
    fn find_start(&mut self) -> io::Result<()> {
        self.counter = self.ask_for_counter()?;
        Ok(())
    }

    fn stream_commands(&mut self) -> io::Result<()> {
        let mut out = Vec::new();
        loop {
            out.clear();
            if !self.shared.lock().stopping {
                while self.waiting.len() < self.options.depth.max(1) {
                    self.push_command(&mut out);
                }
                self.output.write_all(&out)?;
            }
            if self.waiting.is_empty() {
                return Ok(());
            }
            self.take_answer()?;
            while !self.input.buffer().is_empty() && !self.waiting.is_empty() {
                self.take_answer()?;
            }
        }
    }

    fn push_command(&mut self, out: &mut Vec<u8>) {
        if self.next_is_set {
            let slot = self.sets % self.options.keys.max(1);
            self.sets += 1;
            let value = self.sets;
            resp::encode(
                out,
                &[b"SET", key(slot).as_bytes(), value.to_string().as_bytes()],
            );
            self.waiting.push_back(Sent::Set { slot, value });
        } else {
            resp::encode(out, &[b"INCR", b"counter"]);
            self.waiting.push_back(Sent::Incr);
        }
        self.next_is_set = !self.next_is_set;
    }

    fn take_answer(&mut self) -> io::Result<()> {
        let reply = resp::read(&mut self.input)?;
        let now = Instant::now();
        let Some(sent) = self.waiting.pop_front() else {
            return Ok(());
        };
        let mut state = self.shared.lock();
        let progress = &mut state.progress;
        if let Some(last) = progress.last_answer.replace(now)
            && now - last > progress.longest_gap
        {
            progress.longest_gap = now - last;
        }
        match (sent, reply) {
            (Sent::Incr, Reply::Integer(value)) => {
                progress.acked += 1;
                let expected = self.counter + 1;
                self.counter = value;
                if value != expected {
                    progress.lost += u64::try_from(expected - value).unwrap_or(0);
                    progress.duplicated += u64::try_from(value - expected).unwrap_or(0);
                    complain(
                        progress,
                        format!("INCR answered {value} where {expected} was due"),
                    );
                }
            }
            (Sent::Set { slot, value }, Reply::Simple(ok)) if ok == "OK" => {
                progress.acked += 1;
                if self.newest.len() as u64 <= slot {
                    self.newest.push(None);
                }
                if let Some(newest) = usize::try_from(slot)
                    .ok()
                    .and_then(|slot| self.newest.get_mut(slot))
                {
                    *newest = Some(value);
                }
            }
            (Sent::Incr, reply) => complain(progress, format!("INCR answered {reply:?}")),
            (Sent::Set { value, .. }, reply) => {
                complain(progress, format!("SET {value} answered {reply:?}"))
            }
        }
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Reads every key and the counter over the same connection and counts what is missing.
    fn read_back(&mut self) -> io::Result<()> {
        let counter = self.ask_for_counter()?;
        let mut lost = u64::try_from(self.counter - counter).unwrap_or(0);
        let duplicated = u64::try_from(counter - self.counter).unwrap_or(0);
        let mut complaints = Vec::new();
        if counter != self.counter {
            complaints.push(format!(
                "the counter ended at {counter} instead of {}",
                self.counter
            ));
        }
        for first in (0..self.newest.len() as u64).step_by(KEYS_PER_MGET as usize) {
            let slots = first..(first + KEYS_PER_MGET).min(self.newest.len() as u64);
            let keys: Vec<String> = slots.clone().map(key).collect();
            let mut words = vec![&b"MGET"[..]];
            words.extend(keys.iter().map(String::as_bytes));
            let Reply::Array(values) = self.ask(&words)? else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "MGET answered without an array",
                ));
            };
            if values.len() != keys.len() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "MGET answered with too few or too many values",
                ));
            }
            for ((name, found), expected) in
                keys.iter().zip(values).zip(&self.newest[first as usize..])
            {
                let Some(expected) = expected else { continue };
                if found != Reply::Bulk(Some(expected.to_string().into_bytes())) {
                    lost += 1;
                    complaints.push(format!("{name} holds {found:?} instead of {expected}"));
                }
            }
        }
        let mut state = self.shared.lock();
        state.progress.lost += lost;
        state.progress.duplicated += duplicated;
        complaints
            .into_iter()
            .for_each(|text| complain(&mut state.progress, text));
        Ok(())
    }

    fn ask(&mut self, words: &[&[u8]]) -> io::Result<Reply> {
        let mut out = Vec::new();
        resp::encode(&mut out, words);
        self.output.write_all(&out)?;
        resp::read(&mut self.input)
    }

    fn ask_for_counter(&mut self) -> io::Result<i64> {
        let reply = self.ask(&[b"GET", b"counter"])?;
        let value = match &reply {
            Reply::Bulk(None) => Some(0),
            Reply::Bulk(Some(bytes)) => std::str::from_utf8(bytes)
                .ok()
                .and_then(|text| text.parse().ok()),
            _ => None,
        };
        value.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("GET counter answered {reply:?}"),
            )
        })
    }
}

fn complain(progress: &mut Progress, text: String) {
    if progress.complaints.len() < COMPLAINTS {
        progress.complaints.push(text);
    }
}

fn key(slot: u64) -> String {
    format!("key:{}", slot + 1)
}

#[cfg(test)]
mod tests;
