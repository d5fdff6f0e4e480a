//! What the report says of the host.

use std::fs;
use std::time::SystemTime;

use evertwin_tests::lab::evertwin_binary;
use serde::Serialize;

use crate::pin;

/// Facts that figures depend on.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// The kernel's release and version.
    pub kernel: String,
    /// The processor's name.
    pub processor: String,
    /// Processors that are online.
    pub cores: usize,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Which implementation of KVM it is.
    pub kvm: String,
    /// How processes were kept on processors.
    pub pinning: String,
    /// What was measured.
    pub binary: String,
    /// When the measurement began (RFC 3339).
    pub begun: String,
    /// The command line of the measurement.
    pub command: String,
}

impl Host {
    /// Of this host, now.
    #[must_use]
    pub fn of_this() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let meminfo = read("/proc/meminfo");
        let kib = field(&meminfo, "MemTotal").and_then(|value| value.strip_suffix(" kB"));
        let release = read("/proc/sys/kernel/osrelease");
        let version = read("/proc/sys/kernel/version");
        Self {
            kernel: format!("{} {}", release.trim(), version.trim()),
            processor: field(&cpuinfo, "model name").unwrap_or("unknown").into(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kib.and_then(|kib| kib.parse().ok()).unwrap_or(0_u64) << 10,
            kvm: kvm(&cpuinfo),
            pinning: pin::describe(),
            binary: evertwin_binary().display().to_string(),
            begun: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
        }
    }

    /// All of it, for people.
    #[must_use]
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("kernel", self.kernel.clone()),
            (
                "processor",
                format!("{}, {} cores", self.processor, self.cores),
            ),
            (
                "memory",
                format!("{:.1} GiB", self.memory_bytes as f64 / (1_u64 << 30) as f64),
            ),
            ("KVM", self.kvm.clone()),
            ("pinning", self.pinning.clone()),
            ("binary", self.binary.clone()),
            ("begun", self.begun.clone()),
            ("command", self.command.clone()),
        ]
    }
}

/// The module that serves /dev/kvm, and whether the processor's own help is there.
fn kvm(cpuinfo: &str) -> String {
    let modules = ["kvm_intel", "kvm_amd", "kvm_pvm"];
    let loaded = modules.map(|name| (name, format!("/sys/module/{name}")));
    let found = loaded
        .iter()
        .find(|(_, path)| fs::exists(path).unwrap_or(false));
    let flags = field(cpuinfo, "flags").unwrap_or_default();
    let has = |wanted: &str| flags.split(' ').any(|flag| flag == wanted);
    let help = match (has("vmx"), has("svm")) {
        (true, _) => "VMX",
        (_, true) => "SVM",
        _ => "no VMX and no SVM: a software KVM with shadow paging",
    };
    let nested = if has("hypervisor") {
        ", itself a guest"
    } else {
        ""
    };
    format!(
        "{} ({help}{nested})",
        found.map_or("built in, or unknown", |(name, _)| *name)
    )
}

/// The first value of that name in a list of `name : value` lines.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
