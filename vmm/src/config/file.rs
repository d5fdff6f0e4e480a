//! `vm.toml`: the same file on both hosts.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use evertwin_replicator::MAX_PATHS;
use serde::Deserialize;

use crate::control::default_socket;

use super::parse::{
    check_tap, check_uplink, check_vcpus, check_vsock, parse_cache, parse_mac, parse_serial,
    parse_size,
};
use super::{
    AfterEnd, ArbiterConfig, CacheMode, ConfigError, DiskConfig, FastPath, NetConfig, Protection,
    ReplicationConfig, VmConfig,
};

/// Most endpoints of etcd: each is given its time, and somebody waits for the answer.
const MAX_ENDPOINTS: usize = 8;
/// Slowest copy or comparison, in bytes per second: slower ones never come to their end.
const MIN_RATE: u64 = 1 << 20;
/// Bytes per second of a disk that are compared, unless the configuration says otherwise.
const DEFAULT_SCRUB_RATE: u64 = 32 << 20;

/// How much is kept of what was sent, if nothing else is said.
const DEFAULT_DELTA_CACHE: usize = 64 << 20;
/// Time from one comparison of the disks to the next, unless the configuration says otherwise: 7 days.
const DEFAULT_SCRUB_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);
/// Shortest lease: a busy host may keep a process waiting for a good part of it.
const MIN_LEASE: Duration = Duration::from_millis(200);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmFile {
    name: String,
    #[serde(default = "default_kernel")]
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    #[serde(default)]
    cmdline: String,
    memory: String,
    #[serde(default = "default_vcpus")]
    vcpus: u64,
    #[serde(default = "restart")]
    on_reboot: AfterEnd,
    #[serde(default = "exit")]
    on_panic: AfterEnd,
    #[serde(default)]
    disk: Vec<DiskEntry>,
    #[serde(default)]
    net: Vec<NetEntry>,
    vsock: Option<VsockEntry>,
    control: Option<PathBuf>,
    protection: Option<String>,
    replication: Option<ReplicationEntry>,
    #[serde(default)]
    node: BTreeMap<String, NodeEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskEntry {
    path: PathBuf,
    #[serde(default)]
    readonly: bool,
    serial: Option<String>,
    cache: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NetEntry {
    tap: String,
    mac: String,
    uplink: Option<String>,
    on_lost_carrier: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VsockEntry {
    cid: u64,
    socket: PathBuf,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct ReplicationEntry {
    keys: Option<PathBuf>,
    #[serde(default)]
    plaintext: bool,
    arbiter: Option<String>,
    epoch: Option<String>,
    heartbeat: Option<String>,
    timeout: Option<String>,
    lease: Option<String>,
    reconnect: Option<String>,
    resync_rate: Option<String>,
    scrub_every: Option<String>,
    scrub_rate: Option<String>,
    delta_cache: Option<String>,
    suspect: Option<String>,
    #[serde(default)]
    fast_path: FastPath,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeEntry {
    address: Addresses,
}

/// One address, or one for each path between the hosts.
#[derive(Deserialize)]
#[serde(untagged)]
enum Addresses {
    One(String),
    Several(Vec<String>),
}

fn default_kernel() -> PathBuf {
    "pico".into()
}

fn default_vcpus() -> u64 {
    1
}

fn restart() -> AfterEnd {
    AfterEnd::Restart
}

fn exit() -> AfterEnd {
    AfterEnd::Exit
}

/// Reads `path` as `node` sees it: `{node}` in the names of files and TAPs becomes the node's
/// name, and relative file names start at the file's own directory. Without a node, the VM is plain.
///
/// # Errors
/// Everything that can be wrong with the file, each by name.
pub fn load(
    path: &Path,
    node: Option<&str>,
) -> Result<(VmConfig, Option<ReplicationConfig>), ConfigError> {
    load_unless(path, node, |_, level| level == Some(Protection::None))
}

/// The same for who asks a twin that runs: its level may be none, and the file still says where it is.
///
/// # Errors
/// As above.
pub fn load_operated(
    path: &Path,
    node: Option<&str>,
) -> Result<Option<ReplicationConfig>, ConfigError> {
    let (_, replication) = load_unless(path, node, |file, level| {
        level == Some(Protection::None) && file.node.is_empty()
    })?;
    Ok(replication)
}

fn load_unless(
    path: &Path,
    node: Option<&str>,
    is_plain: impl Fn(&VmFile, Option<Protection>) -> bool,
) -> Result<(VmConfig, Option<ReplicationConfig>), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.into(),
        source,
    })?;
    let file: VmFile = toml::from_str(&text).map_err(|e| ConfigError::Syntax {
        path: path.into(),
        reason: syntax_reason(&text, &e),
    })?;
    let base = path.parent().unwrap_or(Path::new(""));
    let for_node = |name: &str| match node {
        Some(node) => name.replace("{node}", node),
        None => name.to_owned(),
    };
    let place = |name: &Path| base.join(for_node(&name.to_string_lossy()));
    let protection = protection(&file)?;
    let replication = match node {
        _ if is_plain(&file, protection) => None,
        Some(node) => {
            let level = protection.unwrap_or(Protection::Ft);
            Some(replication(&file, node, level, &place)?)
        }
        None if file.replication.is_some() || protection.is_some() => {
            return Err(ConfigError::Value(format!(
                "{} describes a protected VM: say which node this is, with --node {}",
                path.display(),
                node_names(&file).join(" or --node ")
            )));
        }
        None => None,
    };
    check_name("VM", &file.name)?;
    let kernel = if file.kernel.as_os_str() == "pico" {
        file.kernel.clone()
    } else {
        place(&file.kernel)
    };
    let disks = file.disk.iter().map(|disk| {
        Ok(DiskConfig {
            path: place(&disk.path),
            read_only: disk.readonly,
            serial: disk.serial.as_deref().map(parse_serial).transpose()?,
            cache: disk
                .cache
                .as_deref()
                .map_or(Ok(CacheMode::Auto), parse_cache)?,
        })
    });
    let nets = file.net.iter().map(|net| {
        let tap = check_tap(&for_node(&net.tap))?;
        let uplink = net.uplink.as_deref().map(for_node);
        let on_lost_carrier = net.on_lost_carrier.as_deref();
        Ok(NetConfig {
            uplink: check_uplink(&tap, uplink.as_deref(), on_lost_carrier)?,
            mac: parse_mac(&net.mac)?,
            tap,
        })
    });
    let vsock = file.vsock.as_ref();
    let vsock = vsock.map(|vsock| check_vsock(vsock.cid, &place(&vsock.socket)));
    let vm = VmConfig {
        kernel: kernel.into(),
        initrd: file.initrd.as_deref().map(place),
        cmdline: file.cmdline.clone(),
        memory: parse_size(&file.memory)?,
        vcpus: check_vcpus(file.vcpus)?,
        on_reboot: file.on_reboot,
        on_panic: file.on_panic,
        disks: disks.collect::<Result<_, ConfigError>>()?,
        nets: nets.collect::<Result<_, ConfigError>>()?,
        vsock: vsock.transpose()?,
        name: file.name,
    };
    Ok((vm, replication))
}

/// The level of protection that the file asks for, if it says one.
fn protection(file: &VmFile) -> Result<Option<Protection>, ConfigError> {
    Ok(Some(match file.protection.as_deref() {
        None => return Ok(None),
        Some("ft") => Protection::Ft,
        Some("ha") => Protection::Ha,
        Some("none") => Protection::None,
        Some(other) => {
            return Err(ConfigError::Value(format!(
                "`{other}` can't be the protection: write \"ft\" (the guest goes on at the other host), \"ha\" (it is \
                 booted there, from its mirrored disks) or \"none\" (a plain VM)"
            )));
        }
    }))
}

/// One line: where, and what.
fn syntax_reason(text: &str, error: &toml::de::Error) -> String {
    let what = error.message().replace('\n', " ");
    match error.span() {
        Some(span) => {
            let before = text.get(..span.start).unwrap_or("");
            format!("line {}: {what}", before.matches('\n').count() + 1)
        }
        None => what,
    }
}

fn node_names(file: &VmFile) -> Vec<&str> {
    file.node.keys().map(String::as_str).collect()
}

fn check_name(what: &str, name: &str) -> Result<(), ConfigError> {
    let fine = (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fine {
        Ok(())
    } else {
        Err(ConfigError::Value(format!(
            "`{name}` can't be a {what}'s name: use 1 to 32 letters, digits, - or _"
        )))
    }
}

fn replication(
    file: &VmFile,
    node: &str,
    level: Protection,
    place: &dyn Fn(&Path) -> PathBuf,
) -> Result<ReplicationConfig, ConfigError> {
    let names = node_names(file);
    let [first, second] = names[..] else {
        return Err(ConfigError::Value(format!(
            "a protected VM has two nodes, [node.a] and [node.b], but {} of them are given",
            names.len()
        )));
    };
    for name in &names {
        check_name("node", name)?;
    }
    if node != first && node != second {
        return Err(ConfigError::Value(format!(
            "there is no node `{node}` in the configuration: use --node {first} or --node {second}"
        )));
    }
    let addresses = addresses(file, first)?;
    self::addresses(file, second)?;
    let entry = file.replication.as_ref();
    let arbiter = match entry.and_then(|r| r.arbiter.as_deref()) {
        None => None,
        Some(text) => Some(arbiter(text, place)?),
    };
    let timeout = time("timeout", entry.and_then(|r| r.timeout.as_deref()), 500)?;
    let heartbeat = time("heartbeat", entry.and_then(|r| r.heartbeat.as_deref()), 50)?;
    let config = ReplicationConfig {
        lease: lease(entry.and_then(|r| r.lease.as_deref()), level, timeout)?,
        protection: level,
        node: node.into(),
        peer: if node == first { second } else { first }.into(),
        keys: keys(entry, &addresses, place)?,
        addresses,
        arbiter,
        epoch: time("epoch", entry.and_then(|r| r.epoch.as_deref()), 20)?,
        heartbeat,
        suspect: suspect(entry.and_then(|r| r.suspect.as_deref()), heartbeat)?,
        timeout,
        reconnect: match entry.and_then(|r| r.reconnect.as_deref()) {
            None => None,
            given => Some(time("reconnect", given, 0)?),
        },
        resync_rate: entry
            .and_then(|r| r.resync_rate.as_deref())
            .map(|text| rate("resync_rate", text))
            .transpose()?,
        scrub_every: scrub_every(entry.and_then(|r| r.scrub_every.as_deref()))?,
        scrub_rate: match entry.and_then(|r| r.scrub_rate.as_deref()) {
            None => DEFAULT_SCRUB_RATE,
            Some(text) => rate("scrub_rate", text)?,
        },
        delta_cache: delta_cache(entry.and_then(|r| r.delta_cache.as_deref()))?,
        control: match &file.control {
            Some(path) => place(path),
            None => default_socket(&file.name, node),
        },
        fast_path: entry.map_or_else(FastPath::default, |entry| entry.fast_path),
    };
    if config.timeout < config.heartbeat * 2 {
        return Err(ConfigError::Value(format!(
            "timeout {:?} is too short: it must be at least twice the heartbeat, {:?}",
            config.timeout, config.heartbeat
        )));
    }
    Ok(config)
}

/// The lease of a guest of which only the disks are replicated.
fn lease(
    text: Option<&str>,
    level: Protection,
    timeout: Duration,
) -> Result<Option<Duration>, ConfigError> {
    match (level, text) {
        (Protection::Ha, None) => Ok(Some((timeout * 2).max(MIN_LEASE))),
        (Protection::Ha, given) => match time("lease", given, 0)? {
            lease if lease >= timeout.max(MIN_LEASE) => Ok(Some(lease)),
            lease => Err(ConfigError::Value(format!(
                "lease {lease:?} is too short: it must be at least {MIN_LEASE:?} and the timeout, {timeout:?}"
            ))),
        },
        (Protection::None, _) | (_, None) => Ok(None),
        (Protection::Ft, Some(lease)) => Err(ConfigError::Value(format!(
            "lease = \"{lease}\" is of use with protection = \"ha\" only: remove it, or set that"
        ))),
    }
}

/// Where the keys are, or none for a link that is said to need none.
fn keys(
    entry: Option<&ReplicationEntry>,
    addresses: &[SocketAddr],
    place: &dyn Fn(&Path) -> PathBuf,
) -> Result<Option<PathBuf>, ConfigError> {
    let keys = entry.and_then(|entry| entry.keys.as_deref());
    let plaintext = entry.is_some_and(|entry| entry.plaintext);
    let elsewhere = addresses.iter().find(|address| !address.ip().is_loopback());
    match (keys, plaintext, elsewhere) {
        (Some(keys), false, _) => Ok(Some(place(keys))),
        (None, true, None) => Ok(None),
        (None, true, Some(address)) => Err(ConfigError::Value(format!(
            "plaintext = true is for twins on one host, with addresses such as 127.0.0.1:7700, but they meet at {address}: \
             make keys with `evertwin keys`, and give keys = \"DIR\" in [replication]"
        ))),
        (Some(_), true, _) => Err(ConfigError::Value(
            "keys and plaintext = true exclude each other in [replication]: remove one".into(),
        )),
        (None, false, _) => Err(ConfigError::Value(
            "the twins have no keys: make some with `evertwin keys keys --node NAME --node NAME`, and give \
             keys = \"keys/{node}\" in [replication]"
                .into(),
        )),
    }
}

fn arbiter(text: &str, place: &dyn Fn(&Path) -> PathBuf) -> Result<ArbiterConfig, ConfigError> {
    match text.split_once(':') {
        Some(("file", name)) if !name.is_empty() => Ok(ArbiterConfig::File(place(Path::new(name)))),
        Some(("manual", name)) if !name.is_empty() => {
            Ok(ArbiterConfig::Manual(place(Path::new(name))))
        }
        Some(("etcd", endpoints)) => {
            let endpoints = endpoints.split(',').map(endpoint);
            let endpoints: Vec<SocketAddr> = endpoints.collect::<Result<_, _>>()?;
            if endpoints.len() > MAX_ENDPOINTS {
                return Err(ConfigError::Value(format!(
                    "`{text}` has {} endpoints: {MAX_ENDPOINTS} are the most",
                    endpoints.len()
                )));
            }
            Ok(ArbiterConfig::Etcd(endpoints))
        }
        _ => Err(ConfigError::Value(format!(
            "`{text}` is not an arbiter: write file:PATH, manual:PATH or etcd:http://IP:PORT[,http://IP:PORT...]"
        ))),
    }
}

fn endpoint(text: &str) -> Result<SocketAddr, ConfigError> {
    let address = text.trim().strip_prefix("http://");
    let address = address.map(|address| address.trim_end_matches('/'));
    address
        .and_then(|address| address.parse().ok())
        .ok_or_else(|| {
            ConfigError::Value(format!(
                "`{text}` is not an endpoint of etcd: write http://IP:PORT, for example http://192.168.50.3:2379"
            ))
        })
}

fn addresses(file: &VmFile, node: &str) -> Result<Vec<SocketAddr>, ConfigError> {
    let given = match &file.node[node].address {
        Addresses::One(address) => std::slice::from_ref(address),
        Addresses::Several(addresses) => addresses,
    };
    if !(1..=MAX_PATHS).contains(&given.len()) {
        return Err(ConfigError::Value(format!(
            "node {node} has {} addresses: give it 1 to {MAX_PATHS}, one for each path between the hosts",
            given.len()
        )));
    }
    let parse = |address: &String| {
        address.parse().map_err(|_| {
            ConfigError::Value(format!(
                "`{address}` is not an address for node {node}: write IP:PORT, for example 192.168.50.1:7700"
            ))
        })
    };
    given.iter().map(parse).collect()
}

/// Bytes per second, from `50M` and the like.
fn rate(key: &str, text: &str) -> Result<u64, ConfigError> {
    match parse_size(text) {
        Ok(rate) if rate >= MIN_RATE => Ok(rate),
        _ => Err(ConfigError::Value(format!(
            "{key} `{text}` is not a number of bytes per second, 1M or more: write for example 100M"
        ))),
    }
}

/// How much is kept of what was sent.
fn delta_cache(text: Option<&str>) -> Result<usize, ConfigError> {
    let Some(text) = text else {
        return Ok(DEFAULT_DELTA_CACHE);
    };
    let size = parse_size(text)
        .ok()
        .and_then(|size| usize::try_from(size).ok());
    let size = size.filter(|size| (1 << 20..=1 << 34).contains(size));
    size.ok_or_else(|| {
        ConfigError::Value(format!(
            "delta_cache `{text}` is not a size from 1M to 16G: write for example 64M"
        ))
    })
}

/// After how long a silence the peer's host is looked for: a little after a heartbeat was due, if nothing is said.
fn suspect(text: Option<&str>, heartbeat: Duration) -> Result<Option<Duration>, ConfigError> {
    match text {
        None => Ok(Some(heartbeat * 6 / 5)),
        Some("off") => Ok(None),
        Some(_) => match time("suspect", text, 0)? {
            after if after > heartbeat => Ok(Some(after)),
            after => Err(ConfigError::Value(format!(
                "suspect {after:?} is too short: it must be longer than the heartbeat, {heartbeat:?}, or \"off\""
            ))),
        },
    }
}

/// How often the disks are compared: a time, or not at all.
fn scrub_every(text: Option<&str>) -> Result<Option<Duration>, ConfigError> {
    let Some(text) = text else {
        return Ok(Some(DEFAULT_SCRUB_EVERY));
    };
    let (minute, years) = (
        Duration::from_secs(60),
        Duration::from_secs(10 * 366 * 24 * 3600),
    );
    match humantime::parse_duration(text) {
        _ if text == "off" || text == "0" => Ok(None),
        Ok(time) if time.is_zero() => Ok(None),
        Ok(time) if (minute..=years).contains(&time) => Ok(Some(time)),
        _ => Err(ConfigError::Value(format!(
            "scrub_every `{text}` is not a time from 1min to 10years: write for example 7d, or off"
        ))),
    }
}

fn time(key: &str, text: Option<&str>, default_ms: u64) -> Result<Duration, ConfigError> {
    let Some(text) = text else {
        return Ok(Duration::from_millis(default_ms));
    };
    match humantime::parse_duration(text) {
        Ok(time) if (Duration::from_millis(1)..=Duration::from_secs(10)).contains(&time) => {
            Ok(time)
        }
        _ => Err(ConfigError::Value(format!(
            "`{text}` can't be the {key}: write a time from 1ms to 10s"
        ))),
    }
}
