//! What the output gate adds to a round trip.

use std::time::Duration;

use super::BenchError;
use super::guest::{Guest, Host, key_value};
use super::row::Row;
use super::samples::Samples;
use crate::lab::LabError;
use crate::lab::resp;
use crate::lab::round_trips::round_trips;
use crate::lab::topology::GUEST_KV;

const ROUNDS: usize = 2;
const WARM_UP: Duration = Duration::from_millis(200);
const TIME: Duration = Duration::from_secs(1);

pub(super) fn measure(host: &mut Host) -> Result<Row, BenchError> {
    let config = key_value();
    let (mut bare, mut protected) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        let guest = host.bare(&config)?;
        ping(host, guest, &mut bare)?;
        let guest = host.protected(&config)?;
        ping(host, guest, &mut protected)?;
    }
    let alone = bare.p50();
    Ok(Row::new(
        [
            ("added_p50_us", protected.p50() - alone),
            ("added_p99_us", protected.p99() - alone),
        ],
        ("bare_p50_us", alone),
        "added: to the median round trip of the same guest without a twin, which is bare",
    ))
}

fn ping(host: &Host, mut guest: Guest, into: &mut Samples) -> Result<(), BenchError> {
    let stream = guest.topology().client.connect(GUEST_KV, host.step())?;
    let asked = |time| {
        let times = round_trips(&stream, host.lasting(time), |request| {
            resp::encode(request, &[b"PING"]);
        });
        times.map_err(LabError::io("asking the guest"))
    };
    asked(WARM_UP)?;
    into.add_us(&asked(TIME)?);
    guest.undisturbed()
}
