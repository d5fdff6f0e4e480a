//! The fake machine's disk, compared with its twin's: all of it is one block.

use std::time::SystemTime;

use evertwin_replicator::machine::{
    BlockSum, DiskCheck, DiskChecked, DiskData, DiskRoom, DiskSize, DiskWrite, Growing,
    MachineError, RoomMade, Scrubbed, Summed,
};

use super::machine::{FakeVm, Inner};

/// What was begun.
#[derive(Default)]
pub(crate) struct Checks {
    /// What the guest had counted to, and the disk's sum then.
    sum: Option<(u64, u128)>,
    repaired: bool,
    /// What is noted of the last pass.
    pub last: Option<SystemTime>,
    compared: Option<DiskChecked>,
    /// The standby was to compare its disk.
    pub asked: bool,
    /// Repairs are recorded and lost.
    pub forgets: bool,
    /// The standby once names a block that it was not asked for.
    pub strays: bool,
    /// What the primary has written can't be repeated.
    pub full: bool,
    /// The disk has more to write than it can hold.
    pub behind: bool,
    /// The disk can't be read.
    pub unreadable: bool,
    /// The standby does not say how its disk compares.
    pub silent: bool,
}

impl Inner {
    fn disk_bytes(&self) -> Vec<u8> {
        self.disk.iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    /// Any sum will do.
    fn disk_sum(&self) -> u128 {
        let add = |sum: u128, n: &u64| sum.wrapping_mul(31).wrapping_add(u128::from(*n));
        self.disk.iter().fold(1, add)
    }
}

impl FakeVm {
    fn signal(&self) {
        rustix::io::write(&*self.0.reached, &1u64.to_ne_bytes()).expect("an eventfd");
    }
}

impl Scrubbed for FakeVm {
    fn disk_sizes(&self) -> Vec<DiskSize> {
        let bytes = self.0.lock().disk_bytes().len() as u64;
        vec![DiskSize { disk: 0, bytes }]
    }

    fn last_scrub(&self) -> Option<SystemTime> {
        self.0.lock().checks.last
    }

    fn note_scrub(&mut self, at: SystemTime) {
        self.0.lock().checks.last = Some(at);
    }

    fn begin_sums(&mut self, disk: u32, blocks: &[u32]) {
        assert_eq!((disk, blocks), (0, &[0][..]));
        let mut inner = self.0.lock();
        inner.checks.sum = Some((inner.count, inner.disk_sum()));
        self.signal();
    }

    fn has_sums(&mut self) -> bool {
        self.0.lock().checks.sum.is_some()
    }

    fn take_sums(&mut self) -> Option<Summed> {
        let mut inner = self.0.lock();
        let (count, sum) = inner.checks.sum.take()?;
        let mut summed = Summed::default();
        if inner.checks.unreadable {
            let why = "Input/output error (os error 5)".to_owned();
            summed.unreadable.push((0, why));
        } else if count == inner.count {
            summed.stable.push(BlockSum { block: 0, sum });
        } else {
            summed.touched.push(0);
        }
        Some(summed)
    }

    fn begin_repair(&mut self, disk: u32, blocks: &[u32]) {
        assert_eq!((disk, blocks), (0, &[0][..]));
        let mut inner = self.0.lock();
        let data = DiskData::Bytes(inner.disk_bytes().into());
        if !inner.checks.forgets {
            inner.writes.push(DiskWrite {
                disk: 0,
                offset: 0,
                data,
            });
        }
        inner.checks.repaired = true;
        self.signal();
    }

    fn take_repaired(&mut self) -> Option<Vec<u32>> {
        std::mem::take(&mut self.0.lock().checks.repaired).then(|| vec![0])
    }

    fn begin_compare(&mut self, check: DiskCheck) {
        let mut inner = self.0.lock();
        let DiskCheck { epoch, disk, sums } = check;
        let differs = sums.iter().filter(|sum| sum.sum != inner.disk_sum());
        let mut differing: Vec<u32> = differs.map(|sum| sum.block).collect();
        if std::mem::take(&mut inner.checks.strays) {
            differing.push(9);
        }
        inner.checks.asked = true;
        if !inner.checks.silent {
            inner.checks.compared = Some(DiskChecked {
                epoch,
                disk,
                differing,
            });
            self.signal();
        }
    }

    fn take_compared(&mut self) -> Option<DiskChecked> {
        self.0.lock().checks.compared.take()
    }
}

/// Its disk is as large as it is.
impl Growing for FakeVm {
    fn growth(&mut self, _disk: u32, _wanted: Option<u64>) -> Result<u64, MachineError> {
        Err(MachineError::new("this disk does not grow"))
    }

    fn begin_room(&mut self, _room: DiskRoom) {}

    fn take_room(&mut self) -> Option<RoomMade> {
        None
    }

    fn grow_disk(&mut self, _size: DiskSize) -> Result<(), MachineError> {
        Err(MachineError::new("this disk does not grow"))
    }

    fn disk_rooms(&self) -> Vec<DiskSize> {
        self.disk_sizes()
    }

    fn fit_disks(&mut self, _sizes: &[DiskSize]) -> Result<(), MachineError> {
        Ok(())
    }
}
