//! What is done on a disk, step by step.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use bytes::Bytes;
use io_uring::{opcode, squeue, types};

use super::aligned::{ALIGN, AlignedBuffer};

/// Times a step is started again after `EINTR`, `EAGAIN` or a short transfer.
const MAX_RETRIES: u32 = 64;

/// What is written where a file system or device can't make zeroes by itself.
static ZEROES: Zeroes = Zeroes([0; 64 << 10]);

/// In a place that O_DIRECT accepts.
#[repr(align(512))]
struct Zeroes([u8; 64 << 10]);
const _: () = assert!(align_of::<Zeroes>() == ALIGN);

/// What is to be done on the disk.
#[derive(Debug)]
pub(super) enum Operation {
    Read {
        offset: u64,
        data: AlignedBuffer,
    },
    Write {
        offset: u64,
        data: Bytes,
        /// On stable storage before it is reported as done.
        durable: bool,
    },
    Zero {
        offset: u64,
        len: u64,
        how: Zeroing,
        durable: bool,
    },
    Flush,
    /// A durable write to another file than the image.
    Record {
        file: Arc<File>,
        offset: u64,
        bytes: Bytes,
    },
}

/// How a range is made zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zeroing {
    /// Only if it gives the space back.
    Discard,
    /// The space is given back if it can be.
    Unmap,
    /// The space is kept.
    Keep,
}

/// What a finished operation has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Done,
    /// Zeroes were written one by one.
    ZeroesWritten,
    /// Nothing: a discard that is not possible here.
    Nothing,
}

impl Operation {
    /// The range of the image that it changes.
    pub(super) fn changes(&self) -> Option<(u64, u64)> {
        match self {
            Self::Write { offset, data, .. } => Some((*offset, data.len() as u64)),
            Self::Zero { offset, len, .. } => Some((*offset, *len)),
            Self::Read { .. } | Self::Flush | Self::Record { .. } => None,
        }
    }

    /// Bytes of memory that it holds.
    pub(super) fn held(&self) -> usize {
        match self {
            Self::Read { data, .. } => data.as_ref().len(),
            Self::Write { data, .. } => data.len(),
            Self::Record { bytes, .. } => bytes.len(),
            Self::Zero { .. } | Self::Flush => 0,
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Zero { len, .. } => *len,
            _ => self.held() as u64,
        }
    }
}

/// What the kernel is asked for next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The transfer or flush itself.
    Main,
    PunchHole,
    ZeroRange,
    WriteZeroes,
    /// Makes zeroes durable.
    Sync,
}

/// An operation and how far it is.
pub(super) struct Slot {
    pub(super) operation: Operation,
    step: Step,
    done: u64,
    retries: u32,
    effect: Effect,
}

impl Slot {
    pub(super) fn new(operation: Operation) -> Self {
        let step = match &operation {
            Operation::Zero { how, .. } => match how {
                Zeroing::Discard | Zeroing::Unmap => Step::PunchHole,
                Zeroing::Keep => Step::ZeroRange,
            },
            _ => Step::Main,
        };
        Self {
            operation,
            step,
            done: 0,
            retries: 0,
            effect: Effect::Done,
        }
    }

    /// What to ask the kernel for. The entry points into the slot's own buffer.
    pub(super) fn entry(&mut self, file: types::Fd) -> squeue::Entry {
        let done = self.done;
        match &mut self.operation {
            Operation::Read { offset, data } => {
                let rest = &mut data.as_mut()[done as usize..];
                opcode::Read::new(file, rest.as_mut_ptr(), rest.len() as u32)
                    .offset(*offset + done)
                    .build()
            }
            Operation::Write {
                offset,
                data,
                durable,
            } => {
                let rest = &data[done as usize..];
                opcode::Write::new(file, rest.as_ptr(), rest.len() as u32)
                    .offset(*offset + done)
                    .rw_flags(if *durable { libc::RWF_DSYNC } else { 0 })
                    .build()
            }
            Operation::Zero { offset, len, .. } => {
                let allocate = |mode| {
                    opcode::Fallocate::new(file, *len)
                        .offset(*offset)
                        .mode(mode | libc::FALLOC_FL_KEEP_SIZE)
                        .build()
                };
                match self.step {
                    Step::PunchHole => allocate(libc::FALLOC_FL_PUNCH_HOLE),
                    Step::ZeroRange => allocate(libc::FALLOC_FL_ZERO_RANGE),
                    Step::WriteZeroes => {
                        let chunk = (*len - done).min(ZEROES.0.len() as u64);
                        opcode::Write::new(file, ZEROES.0.as_ptr(), chunk as u32)
                            .offset(*offset + done)
                            .build()
                    }
                    Step::Main | Step::Sync => sync(file),
                }
            }
            Operation::Flush => sync(file),
            Operation::Record {
                file,
                offset,
                bytes,
            } => {
                let rest = &bytes[done as usize..];
                opcode::Write::new(
                    types::Fd(file.as_raw_fd()),
                    rest.as_ptr(),
                    rest.len() as u32,
                )
                .offset(*offset + done)
                .rw_flags(libc::RWF_DSYNC)
                .build()
            }
        }
    }

    /// Takes the kernel's result. None if there is something to be asked for again.
    pub(super) fn settle(&mut self, result: i32) -> Option<io::Result<Effect>> {
        let Ok(moved) = u64::try_from(result) else {
            return self.failed(io::Error::from_raw_os_error(-result));
        };
        match self.step {
            Step::PunchHole | Step::ZeroRange => self.zeroed(Effect::Done),
            Step::Sync => Some(Ok(self.effect)),
            Step::Main | Step::WriteZeroes => {
                let left = self.operation.len() - self.done;
                if moved < left {
                    if moved == 0 {
                        return Some(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    self.done += moved;
                    // Zeroes always come in many steps.
                    return match self.step {
                        Step::WriteZeroes => None,
                        _ => self.failed(io::ErrorKind::UnexpectedEof.into()),
                    };
                }
                match self.step {
                    Step::WriteZeroes => self.zeroed(Effect::ZeroesWritten),
                    _ => Some(Ok(self.effect)),
                }
            }
        }
    }

    fn zeroed(&mut self, effect: Effect) -> Option<io::Result<Effect>> {
        let durable = matches!(self.operation, Operation::Zero { durable: true, .. });
        if !durable {
            return Some(Ok(effect));
        }
        self.effect = effect;
        self.go_to(Step::Sync)
    }

    fn failed(&mut self, error: io::Error) -> Option<io::Result<Effect>> {
        if let Operation::Zero { how, .. } = self.operation
            && is_impossible(&error)
        {
            match (self.step, how) {
                (Step::PunchHole, Zeroing::Discard) => return Some(Ok(Effect::Nothing)),
                (Step::PunchHole, _) => return self.go_to(Step::ZeroRange),
                (Step::ZeroRange, _) => return self.go_to(Step::WriteZeroes),
                (Step::Main | Step::WriteZeroes | Step::Sync, _) => {}
            }
        }
        self.retries += 1;
        let passing = matches!(
            error.kind(),
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::UnexpectedEof
        );
        if passing && self.retries <= MAX_RETRIES {
            None
        } else {
            Some(Err(error))
        }
    }

    fn go_to(&mut self, step: Step) -> Option<io::Result<Effect>> {
        self.step = step;
        self.retries = 0;
        None
    }
}

/// True when a file system or device does not know how to make zeroes this way, or not at
/// this place.
pub(super) fn is_impossible(error: &io::Error) -> bool {
    let impossible = [libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL, libc::ENODEV];
    error
        .raw_os_error()
        .is_some_and(|error| impossible.contains(&error))
}

fn sync(file: types::Fd) -> squeue::Entry {
    opcode::Fsync::new(file)
        .flags(types::FsyncFlags::DATASYNC)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zero(how: Zeroing, durable: bool) -> Slot {
        Slot::new(Operation::Zero {
            offset: 512,
            len: 100_000,
            how,
            durable,
        })
    }

    /// Answers each step and gives how the operation ends.
    fn run(mut slot: Slot, answers: &[(Step, i32)]) -> io::Result<Effect> {
        for (index, (step, answer)) in answers.iter().enumerate() {
            assert_eq!(slot.step, *step, "step {index}");
            if let Some(end) = slot.settle(*answer) {
                assert_eq!(index + 1, answers.len(), "it ended early");
                return end;
            }
        }
        panic!("it goes on");
    }

    #[test]
    fn zeroes_are_made_in_the_best_way_that_works() {
        use Step::{PunchHole, Sync, WriteZeroes, ZeroRange};
        const NO: i32 = -libc::EOPNOTSUPP;
        let end = |how, durable, answers: &[_]| run(zero(how, durable), answers).unwrap();
        let (discard, unmap, keep) = (Zeroing::Discard, Zeroing::Unmap, Zeroing::Keep);
        assert_eq!(end(discard, false, &[(PunchHole, 0)]), Effect::Done);
        assert_eq!(end(discard, false, &[(PunchHole, NO)]), Effect::Nothing);
        assert_eq!(end(unmap, true, &[(PunchHole, 0), (Sync, 0)]), Effect::Done);
        let steps = [(PunchHole, NO), (ZeroRange, 0)];
        assert_eq!(end(unmap, false, &steps), Effect::Done);
        let steps = [
            (ZeroRange, -libc::EINTR),
            (ZeroRange, -libc::EINVAL),
            (WriteZeroes, 65_536),
            (WriteZeroes, 464),
            (WriteZeroes, 34_000),
            (Sync, 0),
        ];
        assert_eq!(end(keep, true, &steps), Effect::ZeroesWritten);
    }

    #[test]
    fn other_failures_are_failures() {
        use Step::{PunchHole, WriteZeroes, ZeroRange};
        let end = |how, answers: &[_]| run(zero(how, false), answers).unwrap_err();
        let error = end(Zeroing::Discard, &[(PunchHole, -libc::EIO)]);
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        let steps = [(ZeroRange, -libc::EOPNOTSUPP), (WriteZeroes, -libc::ENOSPC)];
        let error = end(Zeroing::Keep, &steps);
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        let steps = [(ZeroRange, -libc::EOPNOTSUPP), (WriteZeroes, 0)];
        let error = end(Zeroing::Keep, &steps);
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
