//! What goes over the replication link.

use std::time::Duration;

use super::BenchError;
use super::guest::{Host, key_value};
use super::load::Load;
use super::row::Row;
use crate::lab::topology::{Node, REPLICATION};
use crate::memory::PAGE_SIZE;

const TIME: Duration = Duration::from_secs(2);
/// What is captured last is on its way a little later.
const REST: Duration = Duration::from_millis(300);

pub(super) fn measure(host: &mut Host) -> Result<Row, BenchError> {
    let mut guest = host.protected(&key_value())?;
    std::thread::sleep(host.lasting(REST));
    let from = guest.process().log().len();
    let before = guest.topology().host(Node::A).sent(REPLICATION)?;
    Load::Set.run(host, &guest, host.lasting(TIME))?;
    std::thread::sleep(host.lasting(REST));
    let carried = guest.topology().host(Node::A).sent(REPLICATION)? - before;
    guest.undisturbed()?;
    let pages: u64 = guest
        .epochs_since(from)
        .iter()
        .map(|epoch| epoch.pages)
        .sum();
    if pages == 0 {
        return Err(BenchError::NoEpochs);
    }
    let kib = |bytes: u64| bytes as f64 / 1024.0;
    Ok(Row::new(
        [("wire_kib", kib(carried))],
        ("dirty_kib", kib(pages * PAGE_SIZE)),
        "wire: bytes that left by the interface, with all headers; dirty: 4096 times the pages of all epochs",
    ))
}
