//! A pair whose link is not encrypted. Twins accept that at addresses of the loopback only: here those are given to the
//! link between two hosts, so that nothing but TLS is different.

use std::fs;

use evertwin::lab::LabError;
use evertwin::lab::namespace::NetNamespace;
use evertwin::lab::pair::KEYS;
use evertwin::lab::topology::{Node, REPLICATION, Topology};
use evertwin_tests::stage::Stage;

/// What the addresses of the link begin with, and are to begin with.
const NETWORK: [&str; 2] = ["192.168.50.", "127.50.0."];

/// Changes a pair that was not started yet.
///
/// # Panics
/// If the network or the config file can't be changed.
pub fn prepare(stage: &Stage) {
    readdress(&stage.pair.topology).unwrap_or_else(|error| panic!("{error}"));
    let file = stage.lab.path("vm.toml");
    let text = fs::read_to_string(&file).map(|text| without_keys(&text));
    let written = text.and_then(|text| fs::write(&file, text));
    written.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// The config file of such a pair, from that of one with keys.
#[must_use]
pub fn without_keys(text: &str) -> String {
    let keys = format!("keys = \"{KEYS}/{{node}}\"");
    text.replace(&keys, "plaintext = true")
        .replace(NETWORK[0], NETWORK[1])
}

fn readdress(topology: &Topology) -> Result<(), LabError> {
    for node in [Node::A, Node::B] {
        let host = topology.host(node);
        let address = node
            .address()
            .ip()
            .to_string()
            .replace(NETWORK[0], NETWORK[1]);
        allow(host)?;
        host.ip(&[
            // Its route takes all addresses of the loopback.
            "link set lo down".to_owned(),
            format!("address add {address}/24 dev {REPLICATION}"),
        ])?;
    }
    Ok(())
}

/// Lets such addresses be those of a link (ip-sysctl, `route_localnet`).
fn allow(host: &NetNamespace) -> Result<(), LabError> {
    let switch = format!("/proc/sys/net/ipv4/conf/{REPLICATION}/route_localnet");
    let written = host.enter(|| fs::write(&switch, "1"))?;
    written.map_err(|source| LabError::Io {
        what: format!("writing {switch}"),
        source,
    })
}
