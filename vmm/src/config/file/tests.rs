use super::super::{OnLostCarrier, UplinkConfig};
use super::*;

const GOOD: &str = r#"
name = "demo"
cmdline = "workload=kv"
memory = "128M"
[[disk]]
path = "disk-{node}.img"
[[net]]
tap = "tap-{node}"
mac = "52:54:00:12:34:56"
[vsock]
cid = 3
socket = "vm-{node}.vsock"
[replication]
keys = "keys/{node}"
arbiter = "file:arbiter"
epoch = "5ms"
[node.a]
address = "192.168.50.1:7700"
[node.b]
address = "192.168.50.2:7700"
"#;

fn parse(text: &str, node: Option<&str>) -> Result<(VmConfig, Option<ReplicationConfig>), String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.toml");
    std::fs::write(&path, text).unwrap();
    load(&path, node).map_err(|e| e.to_string())
}

#[test]
fn a_link_may_have_several_paths() {
    let with = |addresses: &str| {
        let one = "address = \"192.168.50.1:7700\"";
        parse(
            &GOOD.replace(one, &format!("address = {addresses}")),
            Some("b"),
        )
    };
    let (_, replication) = with(r#"["192.168.50.1:7700", "10.0.0.1:7700"]"#).unwrap();
    assert_eq!(replication.unwrap().addresses.len(), 2);
    for (addresses, why) in [
        ("[]", "0 addresses"),
        (
            r#"["1.2.3.4:1", "1.2.3.4:2", "1.2.3.4:3", "1.2.3.4:4", "1.2.3.4:5"]"#,
            "5 addresses",
        ),
        (r#"["1.2.3.4:1", "here"]"#, "`here` is not an address"),
    ] {
        let error = with(addresses).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn the_fast_path_has_switches() {
    let with = |switches: &str| {
        let switches = format!("epoch = \"5ms\"\nfast_path = {{ {switches} }}");
        parse(&GOOD.replace("epoch = \"5ms\"", &switches), Some("a"))
    };
    let copies_ahead = |switches| with(switches).unwrap().1.unwrap().fast_path.copy_ahead;
    assert!(copies_ahead(""));
    assert!(!copies_ahead("copy_ahead = false"));
    let deltas = |switches| with(switches).unwrap().1.unwrap().fast_path.deltas;
    assert!(deltas("poll = false"));
    assert!(!deltas("deltas = false"));
    let packs = |switches| with(switches).unwrap().1.unwrap().fast_path.pack;
    assert!(packs("deltas = false"));
    assert!(!packs("pack = false"));
    for (bad, word) in [
        ("copy_ahead = 1", "boolean"),
        ("copyahead = true", "copyahead"),
    ] {
        let error = with(bad).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn what_was_sent_is_kept_up_to_a_size() {
    let with = |size: &str| {
        let size = format!("epoch = \"5ms\"\ndelta_cache = \"{size}\"");
        let parsed = parse(&GOOD.replace("epoch = \"5ms\"", &size), Some("a"));
        parsed.map(|(_, replication)| replication.unwrap().delta_cache)
    };
    assert_eq!(with("256M").unwrap(), 256 << 20);
    for bad in ["0", "100K", "32G", "much"] {
        let error = with(bad).unwrap_err();
        assert!(error.contains(&format!("delta_cache `{bad}`")), "{error}");
    }
}

#[test]
fn a_quiet_peer_is_suspected_after_its_heartbeat() {
    let with = |settings: &str| {
        let settings = format!("epoch = \"5ms\"\n{settings}");
        let parsed = parse(&GOOD.replace("epoch = \"5ms\"", &settings), Some("a"));
        parsed.map(|(_, replication)| replication.unwrap().suspect)
    };
    let millis = |millis| Some(Duration::from_millis(millis));
    assert_eq!(with("").unwrap(), millis(60));
    assert_eq!(with("heartbeat = \"100ms\"").unwrap(), millis(120));
    assert_eq!(with("suspect = \"200ms\"").unwrap(), millis(200));
    assert_eq!(with("suspect = \"off\"").unwrap(), None);
    for (bad, word) in [("50ms", "longer than the heartbeat"), ("soon", "`soon`")] {
        let error = with(&format!("suspect = \"{bad}\"")).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_copy_has_a_rate_that_ends() {
    let with = |rate: &str| {
        let rate = format!("epoch = \"5ms\"\nresync_rate = \"{rate}\"");
        parse(&GOOD.replace("epoch = \"5ms\"", &rate), Some("a"))
    };
    let (_, replication) = with("50M").unwrap();
    assert_eq!(replication.unwrap().resync_rate, Some(50 << 20));
    for bad in ["0", "100K", "fast", "-1M", ""] {
        let error = with(bad).unwrap_err();
        assert!(error.contains(&format!("resync_rate `{bad}`")), "{error}");
    }
}

#[test]
fn disks_are_compared_now_and_then() {
    let with = |settings: &str| {
        let settings = format!("epoch = \"5ms\"\n{settings}");
        let parsed = parse(&GOOD.replace("epoch = \"5ms\"", &settings), Some("a"));
        parsed.map(|(_, replication)| {
            let replication = replication.unwrap();
            (replication.scrub_every, replication.scrub_rate)
        })
    };
    let days = |days: u64| Some(Duration::from_secs(days * 24 * 3600));
    assert_eq!(with("").unwrap(), (days(7), 32 << 20));
    let given = "scrub_every = \"30d\"\nscrub_rate = \"100M\"";
    assert_eq!(with(given).unwrap(), (days(30), 100 << 20));
    for off in ["off", "0", "0s"] {
        let (every, _) = with(&format!("scrub_every = \"{off}\"")).unwrap();
        assert_eq!(every, None, "{off}");
    }
    for (key, bad) in [
        ("scrub_every", "10ms"),
        ("scrub_every", "often"),
        ("scrub_every", "99years"),
        ("scrub_rate", "100K"),
        ("scrub_rate", "0"),
    ] {
        let error = with(&format!("{key} = \"{bad}\"")).unwrap_err();
        assert!(error.contains(&format!("{key} `{bad}`")), "{error}");
    }
}

#[test]
fn a_level_of_protection_can_be_chosen() {
    let with = |text: &str, node| {
        let text = GOOD.replace("cmdline =", &format!("{text}\ncmdline ="));
        parse(&text, node).map(|(_, replication)| replication)
    };
    let lease = |text: &str| with(text, Some("b")).map(|found| found.unwrap().lease);
    assert_eq!(lease(""), Ok(None));
    assert_eq!(lease("protection = \"ft\""), Ok(None));
    let second = Duration::from_secs(1);
    assert_eq!(lease("protection = \"ha\""), Ok(Some(second)));
    for node in [None, Some("a")] {
        assert_eq!(with("protection = \"none\"", node), Ok(None));
    }
    let error = lease("protection = \"fault\"").unwrap_err();
    assert!(error.contains("`fault` can't be the protection"), "{error}");
    let error = with("protection = \"ha\"", None).unwrap_err();
    assert!(error.contains("--node a"), "{error}");

    let lease = |level: &str, lease: &str| {
        let text = GOOD.replace("cmdline =", &format!("protection = \"{level}\"\ncmdline ="));
        let text = text.replace("epoch =", &format!("lease = \"{lease}\"\nepoch ="));
        parse(&text, Some("a")).map(|(_, replication)| replication.unwrap().lease)
    };
    assert_eq!(lease("ha", "2s"), Ok(Some(second * 2)));
    for (level, text, why) in [
        ("ha", "499ms", "too short"),
        ("ha", "soon", "`soon` can't be the lease"),
        ("ft", "2s", "protection = \"ha\" only"),
    ] {
        let error = lease(level, text).unwrap_err();
        assert!(error.contains(why) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn a_card_may_have_an_uplink() {
    let with = |text: &str| {
        let text = GOOD.replace("[vsock]", &format!("{text}\n[vsock]"));
        parse(&text, Some("b")).map(|(vm, _)| vm.nets[0].uplink.clone())
    };
    let uplink = |name: &str, on_lost_carrier| {
        let name = name.to_owned();
        Ok(Some(UplinkConfig {
            name,
            on_lost_carrier,
        }))
    };
    assert_eq!(with(""), Ok(None));
    let found = with("uplink = \"eth-{node}\"");
    assert_eq!(found, uplink("eth-b", OnLostCarrier::Switchover));
    for (text, policy) in [
        ("switchover", OnLostCarrier::Switchover),
        ("ignore", OnLostCarrier::Ignore),
    ] {
        let found = with(&format!("uplink = \"eth0\"\non_lost_carrier = \"{text}\""));
        assert_eq!(found, uplink("eth0", policy));
    }
    for (text, why) in [
        (
            "on_lost_carrier = \"ignore\"",
            "of the card on `tap-b` needs an uplink: add uplink = ",
        ),
        (
            "uplink = \"eth0\"\non_lost_carrier = \"cry\"",
            "`cry` of the card on `tap-b` is unknown: write \"switchover\"",
        ),
        ("uplink = \"\"", "`` can't be an uplink's name"),
        ("uplink = \"a/b\"", "`a/b` can't be an uplink's name"),
    ] {
        let error = with(text).unwrap_err();
        assert!(error.contains(why) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn a_twin_whose_level_is_to_be_none_is_still_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.toml");
    let operated = |text: &str, node| {
        std::fs::write(&path, text).unwrap();
        load_operated(&path, node).map_err(|e| e.to_string())
    };
    let none = GOOD.replace("cmdline =", "protection = \"none\"\ncmdline =");
    let with_lease = none.replace("epoch =", "lease = \"2s\"\nepoch =");
    for text in [&none, &with_lease] {
        let found = operated(text, Some("b")).unwrap().unwrap();
        assert_eq!((found.protection, found.lease), (Protection::None, None));
        assert!(found.control.ends_with("demo-b.sock"));
    }
    assert!(operated(&none, None).unwrap_err().contains("--node a"));
    let plain = none.split("[replication]").next().unwrap();
    assert_eq!(operated(plain, Some("b")), Ok(None));
}

#[test]
fn each_node_sees_its_own_files_and_the_same_address() {
    let (vm, replication) = parse(GOOD, Some("b")).unwrap();
    let replication = replication.unwrap();
    assert!(vm.disks[0].path.ends_with("disk-b.img"));
    assert_eq!(vm.nets[0].tap, "tap-b");
    let vsock = vm.vsock.unwrap();
    assert_eq!(vsock.cid, 3);
    assert!(vsock.socket.as_path().ends_with("vm-b.vsock"));
    assert_eq!(replication.peer, "a");
    let addresses: Vec<_> = replication
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(addresses, ["192.168.50.1:7700"]);
    assert_eq!(replication.epoch, Duration::from_millis(5));
    assert!(replication.keys.unwrap().ends_with("keys/b"));
    assert!(matches!(replication.arbiter, Some(ArbiterConfig::File(p)) if p.ends_with("arbiter")));
}

#[test]
fn etcd_has_one_endpoint_or_more() {
    let endpoints = |list: &str| {
        let text = GOOD.replace("file:arbiter", &format!("etcd:{list}"));
        let (_, replication) = parse(&text, Some("a")).unwrap();
        replication.unwrap().arbiter
    };
    let etcd = |list: &[&str]| {
        let list = list.iter().map(|address| address.parse().unwrap());
        Some(ArbiterConfig::Etcd(list.collect()))
    };
    assert_eq!(endpoints("http://10.0.0.1:2379"), etcd(&["10.0.0.1:2379"]));
    assert_eq!(
        endpoints("http://10.0.0.1:2379, http://[::1]:2379/"),
        etcd(&["10.0.0.1:2379", "[::1]:2379"])
    );
}

#[test]
fn a_link_without_keys_stays_on_its_host() {
    let plain = GOOD.replace("keys = \"keys/{node}\"", "plaintext = true");
    let error = parse(&plain, Some("b")).unwrap_err();
    assert!(
        error.contains("192.168.50.1:7700") && error.contains("evertwin keys"),
        "{error}"
    );
    // The address of the node that listens counts, for both.
    let other = plain.replace("192.168.50.2", "127.0.0.1");
    parse(&other, Some("a")).unwrap_err();
    for address in ["127.0.0.1:7700", "127.3.2.1:7700", "[::1]:7700"] {
        let local = plain.replace("192.168.50.1:7700", address);
        let (_, replication) = parse(&local, Some("b")).unwrap();
        assert_eq!(replication.unwrap().keys, None);
    }
    for address in ["0.0.0.0:7700", "[::]:7700", "128.0.0.1:7700"] {
        parse(&plain.replace("192.168.50.1:7700", address), Some("a")).unwrap_err();
    }
}

#[test]
fn errors_are_one_line_and_name_the_thing() {
    let cases = [
        (GOOD.replace("128M", "lots"), "lots"),
        (GOOD.replace("[[disk]]", "vcpus = 9\n[[disk]]"), "9"),
        (
            GOOD.replace("[[disk]]", "on_panic = 'pray'\n[[disk]]"),
            "pray",
        ),
        (
            GOOD.replace("[[net]]", "serial = \"a serial\"\n[[net]]"),
            "`a serial`",
        ),
        (GOOD.replace("52:54", "zz:54"), "zz:54"),
        (
            GOOD.replace("[node.b]", "[node.a2]\naddress = \"1.2.3.4:1\"\n[node.b]"),
            "two nodes",
        ),
        (GOOD.replace("file:arbiter", "ouija"), "ouija"),
        (
            GOOD.replace("file:arbiter", "etcd:http://etcd:2379"),
            "`http://etcd:2379`",
        ),
        (
            GOOD.replace("file:arbiter", "etcd:http://1.2.3.4:1,https://1.2.3.4:2"),
            "`https://1.2.3.4:2`",
        ),
        (GOOD.replace("file:arbiter", "etcd:"), "endpoint"),
        (GOOD.replace("5ms", "never"), "never"),
        (GOOD.replace("keys = ", "# "), "evertwin keys keys --node"),
        (
            GOOD.replace("keys = ", "plaintext = true\nkeys = "),
            "exclude",
        ),
        (GOOD.replace("192.168.50.1:7700", "host"), "host"),
        (GOOD.replace("192.168.50.2:7700", "home"), "home"),
        (GOOD.replace("cmdline", "comandline"), "line 3"),
        (GOOD.replace("tap-{node}", "a/b"), "a/b"),
        (GOOD.replace("cid = 3", "cid = 2"), "2 can't be"),
        (GOOD.replace("cid = 3", ""), "`cid`"),
        (GOOD.replace("vm-{node}", &"x".repeat(90)), "at most 96"),
    ];
    for (text, needle) in cases {
        let error = parse(&text, Some("a")).unwrap_err();
        assert!(error.contains(needle) && !error.contains('\n'), "{error}");
    }
    assert!(parse(GOOD, Some("c")).unwrap_err().contains("--node a"));
    assert!(parse(GOOD, None).unwrap_err().contains("--node a"));
}
