use super::*;
use crate::kv::log_format::{decode_batch, replay};

struct Fixture {
    store: Store,
    log: Batch,
}

impl Fixture {
    fn new() -> Self {
        Self {
            store: Store::new(4096),
            log: Batch::default(),
        }
    }

    fn run(&mut self, line: &str) -> String {
        let request: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let mut session = Session {
            store: &mut self.store,
            log: Some(&mut self.log),
            server: Server {
                append_only: true,
                ..Server::default()
            },
            reply_max: 512,
        };
        let mut out = Vec::new();
        execute(&mut session, &request, &mut out);
        String::from_utf8(out).unwrap()
    }
}

#[test]
fn reads_see_writes() {
    let mut kv = Fixture::new();
    assert_eq!(kv.run("SET a 1"), "+OK\r\n");
    assert_eq!(kv.run("get a"), "$1\r\n1\r\n");
    assert_eq!(kv.run("GET b"), "$-1\r\n");
    assert_eq!(kv.run("MSET b 2 c 3"), "+OK\r\n");
    assert_eq!(kv.run("MGET a x c"), "*3\r\n$1\r\n1\r\n$-1\r\n$1\r\n3\r\n");
    assert_eq!(kv.run("EXISTS a a x"), ":2\r\n");
    assert_eq!(kv.run("DEL a x"), ":1\r\n");
    assert_eq!(kv.run("DBSIZE"), ":2\r\n");
    assert_eq!(kv.run("FLUSHALL"), "+OK\r\n");
    assert_eq!(kv.run("DBSIZE"), ":0\r\n");
}

#[test]
fn increments_keep_to_redis_rules() {
    let mut kv = Fixture::new();
    assert_eq!(kv.run("INCR n"), ":1\r\n");
    assert_eq!(kv.run("INCRBY n -3"), ":-2\r\n");
    assert_eq!(kv.run("GET n"), "$2\r\n-2\r\n");
    kv.run("SET n 9223372036854775807");
    assert!(
        kv.run("INCR n")
            .starts_with("-ERR increment or decrement would overflow")
    );
    assert_eq!(kv.run("GET n"), "$19\r\n9223372036854775807\r\n");
    for text in ["x", "+1", "01", "-0", "1x", ""] {
        kv.run(&format!("SET n {text}"));
        assert!(
            kv.run("INCR n").starts_with("-ERR value is not an integer"),
            "{text:?}"
        );
    }
}

#[test]
fn a_full_store_refuses_whole_commands() {
    let mut kv = Fixture::new();
    let long = "v".repeat(3000);
    assert_eq!(kv.run(&format!("SET a {long}")), "+OK\r\n");
    assert!(kv.run(&format!("MSET b 1 c {long}")).starts_with("-OOM"));
    assert_eq!(kv.run("EXISTS b"), ":0\r\n");
    assert_eq!(kv.run("SET a x"), "+OK\r\n");
}

#[test]
fn a_reply_of_many_values_is_bounded() {
    let mut kv = Fixture::new();
    kv.run(&format!("SET a {}", "v".repeat(300)));
    assert!(
        kv.run("MGET a a")
            .starts_with("-ERR the reply is too large")
    );
    assert!(kv.run("MGET a").starts_with("*1\r\n$300"));
}

#[test]
fn wrong_commands_are_named() {
    let mut kv = Fixture::new();
    assert_eq!(
        kv.run("GET"),
        "-ERR wrong number of arguments for 'get' command\r\n"
    );
    assert_eq!(
        kv.run("MSET a 1 b"),
        "-ERR wrong number of arguments for 'mset' command\r\n"
    );
    assert_eq!(kv.run("FOO\r\nx"), "-ERR unknown command 'FOO  x'\r\n");
    assert_eq!(kv.run("SET a 1 EX 10"), "-ERR syntax error\r\n");
    assert_eq!(kv.run("SELECT 1"), "-ERR DB index is out of range\r\n");
}

#[test]
fn what_redis_benchmark_asks_at_its_start_is_answered() {
    let mut kv = Fixture::new();
    assert_eq!(kv.run("CONFIG GET save"), "*2\r\n$4\r\nsave\r\n$0\r\n\r\n");
    assert_eq!(
        kv.run("CONFIG GET appendonly"),
        "*2\r\n$10\r\nappendonly\r\n$3\r\nyes\r\n"
    );
    assert_eq!(kv.run("CONFIG GET nonsense"), "*0\r\n");
    assert_eq!(kv.run("COMMAND DOCS"), "*0\r\n");
}

#[test]
fn the_log_rebuilds_the_store() {
    let mut kv = Fixture::new();
    for line in [
        "SET a 1",
        "INCR a",
        "MSET b 2 c 3",
        "DEL b",
        "GET a",
        "FLUSHALL",
        "SET d 4",
    ] {
        kv.run(line);
    }
    let bytes = kv.log.seal(1, 1);
    let mut rebuilt = Store::new(4096);
    replay(decode_batch(&bytes, 1, 1).unwrap(), &mut rebuilt).unwrap();
    assert_eq!(rebuilt.iter().collect::<Vec<_>>(), [(&b"d"[..], &b"4"[..])]);
}
