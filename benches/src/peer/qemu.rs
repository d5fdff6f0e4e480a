//! The guest under QEMU, and its way from host to host.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use evertwin::lab::pair::{GUEST_MAC, PairConfig};
use evertwin::lab::process::Process;
use evertwin::lab::topology::{Node, TAP};
use evertwin_tests::lab::{STEP, TestLab};
use serde_json::json;

use super::image::{self, FIRMWARE, KERNEL, LOW_RAM};
use super::qmp::Qmp;

const PROGRAM: &str = "qemu-system-x86_64";
/// Nothing of a PC that the guest has no use for.
const MACHINE: &str = "microvm,accel=kvm,pic=off,pit=off,rtc=off,acpi=off,ioapic2=off,pcie=off,auto-kernel-cmdline=off,isa-serial=on";
/// A software KVM offers IA32_ARCH_CAPABILITIES and then takes it from nobody.
const PROCESSOR: &str = "host,-arch-capabilities";
/// QEMU's virtio-mmio windows without ACPI, and their first interrupt line.
const WINDOWS: u64 = 8;
const FIRST_WINDOW: u64 = 0xFEB0_0000;
const WINDOW_BYTES: u64 = 512;
const FIRST_LINE: u64 = 5;
/// More than any link here carries; the default is 128 MiB/s.
const MAX_BANDWIDTH: u64 = 100 << 30;
const PORT: u16 = 7800;
/// Between two looks at a migration.
const LOOK: Duration = Duration::from_millis(20);

/// A guest that goes to and fro between the two hosts of a lab.
#[derive(Debug)]
pub(super) struct Peer {
    /// Here, with the connection to it.
    here: (Node, Process, Qmp),
    memory: String,
    /// After the process: its namespaces and files.
    pub(super) lab: TestLab,
}

/// What QEMU says of one migration.
#[derive(Debug)]
pub(super) struct Migration {
    pub(super) downtime: Duration,
    pub(super) total: Duration,
    /// Where the guest was. It is ended with this: its end takes processor time, and is no part of the migration.
    _source: Process,
}

/// QEMU's version.
///
/// # Panics
/// If there is none.
pub(super) fn version() -> String {
    let output = Command::new(PROGRAM)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let output = output.unwrap_or_else(|error| {
        panic!("{PROGRAM}: {error}: `make lab-build` installs it from Debian")
    });
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().unwrap_or(PROGRAM).to_owned()
}

impl Peer {
    /// Starts the guest of `config`, which has no disk, on host a, and waits until it is ready.
    pub(super) fn start(lab: TestLab, config: &PairConfig) -> Self {
        let windows = (0..WINDOWS).map(|index| {
            let base = FIRST_WINDOW + index * WINDOW_BYTES;
            let line = FIRST_LINE + index;
            format!(" virtio_mmio.device={WINDOW_BYTES}@{base:#x}:{line}")
        });
        let cmdline: String = std::iter::once(config.cmdline.clone())
            .chain(windows)
            .collect();
        let ram = evertwin::config::parse_size(&config.memory).unwrap();
        image::write(lab.directory(), ram, &cmdline);
        let (mut process, qmp) = start(&lab, Node::A, &config.memory, false);
        let ready = process.wait_for_console("ready", STEP);
        ready.unwrap_or_else(|error| panic!("{error}"));
        Self {
            here: (Node::A, process, qmp),
            memory: config.memory.clone(),
            lab,
        }
    }

    /// Starts a QEMU that takes the guest, on the host where it is not.
    pub(super) fn prepare(&self) -> (Process, Qmp) {
        start(&self.lab, self.here.0.peer(), &self.memory, true)
    }

    /// Moves the guest to there.
    pub(super) fn migrate(&mut self, (process, qmp): (Process, Qmp), limit_ms: u64) -> Migration {
        let to = self.here.0.peer();
        let source = &mut self.here.2;
        let parameters = json!({
            "max-bandwidth": MAX_BANDWIDTH,
            "downtime-limit": limit_ms,
        });
        source.execute("migrate-set-parameters", parameters);
        source.execute("migrate", json!({ "uri": uri(to) }));
        let until = Instant::now() + STEP;
        let end = loop {
            let now = source.execute("query-migrate", json!({}));
            match now["status"].as_str() {
                Some("completed") => break now,
                Some("failed" | "cancelled") => panic!("the migration failed: {now}"),
                _ => assert!(Instant::now() < until, "the migration has no end: {now}"),
            }
            std::thread::sleep(LOOK);
        };
        let field = |name: &str| end[name].as_u64().map(Duration::from_millis);
        let field = |name| field(name).unwrap_or_else(|| panic!("no {name}: {end}"));
        let (downtime, total) = (field("downtime"), field("total-time"));
        let (_, source, _) = std::mem::replace(&mut self.here, (to, process, qmp));
        Migration {
            downtime,
            total,
            _source: source,
        }
    }
}

fn start(lab: &TestLab, node: Node, memory: &str, incoming: bool) -> (Process, Qmp) {
    let mut command = lab.topology.host(node).command(PROGRAM);
    let socket = lab.path(&socket(node));
    // The last one's.
    let _ = std::fs::remove_file(&socket);
    command
        .args(arguments(node, memory, incoming))
        .current_dir(lab.directory());
    let name = format!("qemu-{}", node.name());
    let process = Process::start(command, &name, lab.directory());
    let process = process.unwrap_or_else(|error| panic!("{error}"));
    let qmp = Qmp::connect(&socket, &process);
    (process, qmp)
}

fn socket(node: Node) -> String {
    format!("qmp-{}.sock", node.name())
}

fn uri(node: Node) -> String {
    format!("tcp:{}:{PORT}", node.address().ip())
}

fn arguments(node: Node, memory: &str, incoming: bool) -> Vec<String> {
    let qmp = format!("unix:{},server=on,wait=off", socket(node));
    let tap = format!("tap,id=lan,ifname={TAP},script=no,downscript=no");
    let card = format!("virtio-net-device,netdev=lan,mac={GUEST_MAC}");
    let low_ram = format!("loader,file={LOW_RAM},addr=0,force-raw=on");
    let kernel = format!("loader,file={KERNEL}");
    let options = [
        ("-machine", MACHINE),
        ("-cpu", PROCESSOR),
        ("-smp", "1"),
        ("-m", memory),
        ("-display", "none"),
        ("-serial", "stdio"),
        ("-qmp", &qmp),
        ("-global", "virtio-mmio.force-legacy=false"),
        ("-netdev", &tap),
        ("-device", &card),
        ("-bios", FIRMWARE),
        ("-device", &low_ram),
        ("-device", &kernel),
    ];
    let mut arguments = vec!["-nodefaults".to_owned(), "-no-user-config".to_owned()];
    for (name, value) in options {
        arguments.extend([name.to_owned(), value.to_owned()]);
    }
    if incoming {
        arguments.extend(["-incoming".to_owned(), uri(node)]);
    }
    arguments
}

/// The commands, as in the report.
pub(super) fn commands(memory: &str, limits_ms: &[u64]) -> Vec<String> {
    let run = |node, incoming| format!("{PROGRAM} {}", arguments(node, memory, incoming).join(" "));
    let mut commands = vec![run(Node::A, false), run(Node::B, true)];
    for limit in limits_ms {
        commands.push(format!(
            "migrate-set-parameters max-bandwidth={MAX_BANDWIDTH} downtime-limit={limit}; migrate uri={}; query-migrate",
            uri(Node::B)
        ));
    }
    commands
}
