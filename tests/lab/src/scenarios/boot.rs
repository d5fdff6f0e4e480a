//! Guests that boot and end, on one host.

use crate::error::LabError;
use crate::lab::{HostName, Lab};
use crate::twins::{Judge, Kernel, STEP, Twins, VmFile};

pub(super) fn pico(lab: &mut Lab) -> Result<(), LabError> {
    let file = VmFile {
        kernel: Kernel::Pico("workload=kv ip=10.77.0.2/24 log=vda".to_owned()),
        memory_mib: 64,
        vcpus: 1,
        data_mib: Some(16),
        protected: false,
    };
    let mut twins = Twins::prepare(lab, file)?;
    let vm = twins.start(lab, HostName::A)?;
    vm.await_output(0, "pico: ready", STEP)?;
    let judge = Judge::start(lab, 4)?;
    judge.await_more(200)?;
    judge.demand_clean(lab).map(drop)
}
