//! Streams between the guest and programs of its hosts, without a network.

use super::debian::{READY, guest, run_in_guest, start_in_guest};
use super::services::lose_primary;
use crate::error::{LabError, demand};
use crate::lab::{HostName, Lab};
use crate::twins::{Twins, VSOCK_FOR_TOOLS, VmFile};
use HostName::{A, B};

/// In the guest, what programs of its host reach. Says what it has done so far.
const GUEST_SERVICE: &str = "setsid socat -d -d VSOCK-LISTEN:5000,fork EXEC:cat </dev/null >/dev/null 2>/tmp/service & \
     n=0; until grep -q listening /tmp/service || [ $n = 300 ]; do n=$((n+1)); sleep 0.2; done; cat /tmp/service";

pub(super) fn power_off(lab: &mut Lab) -> Result<(), LabError> {
    let file = VmFile {
        vsock: true,
        second_path: false,
        ..guest(Some("sshd"), 1, true)
    };
    let mut twins = Twins::prepare(lab, file)?;
    twins.start_protected(lab, READY)?;
    let service = run_in_guest(lab, GUEST_SERVICE)?;
    demand!(
        service.contains("listening"),
        "the guest's service does not listen: {service:?}"
    );
    for host in [A, B] {
        let listen = format!("UNIX-LISTEN:{VSOCK_FOR_TOOLS}_1234,fork");
        let socat = ["socat", &listen, "EXEC:cat"];
        lab.host(host).start_tool("service", &socat)?;
    }
    from_host(lab, A, "host a asks")?;
    from_guest(lab, "the guest asks host a")?;
    // A connection that is open when its host goes.
    let held = start_in_guest(
        lab,
        "held",
        "socat -d -d -u VSOCK-CONNECT:2:1234 - 2>&1; echo over",
    )?;
    held.await_output(0, "starting data transfer loop")?;
    lose_primary(lab, &twins)?;
    held.await_output(0, "over")?;
    let lines = held.console().lines();
    demand!(
        lines.iter().any(|line| line.text.contains(" E read(")),
        "the connection ended, but as if its peer had said all: {lines:?}"
    );
    from_host(lab, B, "host b asks")?;
    from_guest(lab, "the guest asks host b")
}

/// A program of the host has the guest echo some words.
fn from_host(lab: &Lab, host: HostName, words: &str) -> Result<(), LabError> {
    let ask = format!(
        "printf 'CONNECT 5000\\n{words}\\n' | socat -t 60 - UNIX-CONNECT:{VSOCK_FOR_TOOLS}"
    );
    let answer = lab.host(host).tool(&["bash", "-c", &ask])?;
    let lines: Vec<&str> = answer.lines().collect();
    if lines.len() == 2 && lines[0].starts_with("OK ") && lines[1] == words {
        return Ok(());
    }
    let service = run_in_guest(lab, "cat /tmp/service")?;
    Err(LabError::Wrong(format!(
        "the guest answered host {host} with {answer:?}; its service says {service:?}"
    )))
}

/// The guest has a program of its host echo some words.
fn from_guest(lab: &Lab, words: &str) -> Result<(), LabError> {
    let ask = format!("echo {words} | socat -t 60 - VSOCK-CONNECT:2:1234");
    let answer = run_in_guest(lab, &ask)?;
    demand!(answer == words, "the guest was answered with {answer:?}");
    Ok(())
}
