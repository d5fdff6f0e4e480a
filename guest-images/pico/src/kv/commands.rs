//! The commands: what each does to the store, to the log and to the reply.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use super::log_format::Batch;
use super::resp;
use super::store::Store;

const OUT_OF_MEMORY: &str = "OOM command not allowed when used memory > 'maxmemory'.";
const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
const SYNTAX: &str = "ERR syntax error";

/// What INFO and CONFIG GET tell about the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Server {
    /// Seconds since the server began.
    pub uptime_s: u64,
    /// Connected clients.
    pub clients: usize,
    /// Most clients at once.
    pub clients_max: usize,
    /// Commands executed.
    pub commands: u64,
    /// TCP port.
    pub port: u16,
    /// Whether writes are logged on disk.
    pub append_only: bool,
}

/// Whether the connection goes on after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It does.
    Continue,
    /// It is closed once the reply is out.
    Close,
}

/// Where a command takes effect.
pub struct Session<'a> {
    /// The data.
    pub store: &'a mut Store,
    /// Where changes are recorded, if they are logged.
    pub log: Option<&'a mut Batch>,
    /// About the server.
    pub server: Server,
    /// Longest reply in bytes that reads of several keys may make.
    pub reply_max: usize,
}

/// One command: name, number of arguments without the name (least, most), what it does.
struct Command {
    name: &'static str,
    arguments: (usize, usize),
    run: fn(&mut Session<'_>, &[&[u8]], &mut Vec<u8>) -> Next,
}

const ANY: usize = usize::MAX;

const COMMANDS: &[Command] = &[
    Command {
        name: "get",
        arguments: (1, 1),
        run: get,
    },
    Command {
        name: "set",
        arguments: (2, ANY),
        run: set,
    },
    Command {
        name: "incr",
        arguments: (1, 1),
        run: increment,
    },
    Command {
        name: "incrby",
        arguments: (2, 2),
        run: increment,
    },
    Command {
        name: "ping",
        arguments: (0, 1),
        run: ping,
    },
    Command {
        name: "mset",
        arguments: (2, ANY),
        run: set_many,
    },
    Command {
        name: "mget",
        arguments: (1, ANY),
        run: get_many,
    },
    Command {
        name: "del",
        arguments: (1, ANY),
        run: delete,
    },
    Command {
        name: "exists",
        arguments: (1, ANY),
        run: exists,
    },
    Command {
        name: "echo",
        arguments: (1, 1),
        run: echo,
    },
    Command {
        name: "dbsize",
        arguments: (0, 0),
        run: size,
    },
    Command {
        name: "flushall",
        arguments: (0, 1),
        run: flush_all,
    },
    Command {
        name: "info",
        arguments: (0, ANY),
        run: info,
    },
    Command {
        name: "command",
        arguments: (0, ANY),
        run: command,
    },
    Command {
        name: "config",
        arguments: (1, ANY),
        run: config,
    },
    Command {
        name: "select",
        arguments: (1, 1),
        run: select,
    },
    Command {
        name: "quit",
        arguments: (0, 0),
        run: quit,
    },
];

/// Runs one request, the command's name first; there is at least that. The reply is
/// appended to `out`.
pub fn execute(session: &mut Session<'_>, request: &[&[u8]], out: &mut Vec<u8>) -> Next {
    let [name, arguments @ ..] = request else {
        return Next::Continue;
    };
    let found = COMMANDS
        .iter()
        .find(|command| name.eq_ignore_ascii_case(command.name.as_bytes()));
    match found {
        Some(command) if (command.arguments.0..=command.arguments.1).contains(&arguments.len()) => {
            (command.run)(session, arguments, out)
        }
        Some(command) => {
            let mut text = String::new();
            let _ = write!(
                text,
                "ERR wrong number of arguments for '{}' command",
                command.name
            );
            resp::error(out, &text);
            Next::Continue
        }
        None => {
            let name = String::from_utf8_lossy(&name[..name.len().min(64)]);
            let mut text = String::new();
            let _ = write!(text, "ERR unknown command '{name}'");
            resp::error(out, &text);
            Next::Continue
        }
    }
}

fn integer(text: &[u8]) -> Option<i64> {
    // Redis takes no plus sign, and no leading zeros.
    match text {
        [b'0'] => Some(0),
        [b'1'..=b'9', ..] | [b'-', b'1'..=b'9', ..] => {
            core::str::from_utf8(text).ok()?.parse().ok()
        }
        _ => None,
    }
}

fn get(session: &mut Session<'_>, arguments: &[&[u8]], out: &mut Vec<u8>) -> Next {
    resp::bulk(out, session.store.get(arguments[0]));
    Next::Continue
}

fn set(session: &mut Session<'_>, arguments: &[&[u8]], out: &mut Vec<u8>) -> Next {
    let [key, value] = arguments else {
        resp::error(out, SYNTAX);
        return Next::Continue;
    };
    if store_value(session, key, value, out) {
        resp::simple(out, "OK");
    }
    Next::Continue
}

/// Sets and logs one key. False: there was no room, which is the reply.
fn store_value(session: &mut Session<'_>, key: &[u8], value: &[u8], out: &mut Vec<u8>) -> bool {
    if session.store.set(key, value).is_err() {
        resp::error(out, OUT_OF_MEMORY);
        return false;
    }
    if let Some(log) = &mut session.log {
        log.set(key, value);
    }
    true
}

fn increment(session: &mut Session<'_>, arguments: &[&[u8]], out: &mut Vec<u8>) -> Next {
    let key = arguments[0];
    let step = arguments.get(1).map_or(Some(1), |step| integer(step));
    let value = session.store.get(key).map_or(Some(0), integer);
    let Some((value, step)) = value.zip(step) else {
        resp::error(out, NOT_AN_INTEGER);
        return Next::Continue;
    };
    let Some(sum) = value.checked_add(step) else {
        resp::error(out, "ERR increment or decrement would overflow");
        return Next::Continue;
    };
    // 20 bytes hold any 64-bit number.
    let mut text = Vec::with_capacity(20);
    let _ = write!(resp::Text(&mut text), "{sum}");
    if store_value(session, key, &text, out) {
        resp::integer(out, sum);
    }
    Next::Continue
}

fn set_many(session: &mut Session<'_>, arguments: &[&[u8]], out: &mut Vec<u8>) -> Next {
    let (pairs, []) = arguments.as_chunks::<2>() else {
        resp::error(out, "ERR wrong number of arguments for 'mset' command");
        return Next::Continue;
    };
    let all = pairs.iter().map(|[key, value]| (*key, *value));
    if session.store.check_room(all).is_err() {
        resp::error(out, OUT_OF_MEMORY);
        return Next::Continue;
    }
    for [key, value] in pairs {
        if !store_value(session, key, value, out) {
            return Next::Continue;
        }
    }
    resp::simple(out, "OK");
    Next::Continue
}

fn get_many(session: &mut Session<'_>, arguments: &[&[u8]], out: &mut Vec<u8>) -> Next {
    let values = arguments.iter().map(|key| session.store.get(key));
    let bytes: usize = values
        .clone()
        .map(|value| value.map_or(0, <[u8]>::len) + 32)
        .sum();
    if bytes > session.reply_max {
        resp::error(out, "ERR the reply is too large: ask for fewer keys");
        return Next::Continue;
    }
    resp::array(out, arguments.len());
    values.for_each(|value| resp::bulk(out, value));
    Next::Continue
}

fn delete(session: &mut Session<'_>, arguments: &[&[u8]], out: &mut Vec<u8>) -> Next {
    let mut removed = 0;
    for key in arguments {
        if session.store.remove(key) {
            removed += 1;
            if let Some(log) = &mut session.log {
                log.remove(key);
            }
        }
    }
    resp::integer(out, removed);
    Next::Continue
}

fn exists(session: &mut Session<'_>, arguments: &[&[u8]], out: &mut Vec<u8>) -> Next {
    let found = arguments
        .iter()
        .filter(|key| session.store.get(key).is_some())
        .count();
    resp::integer(out, found as i64);
    Next::Continue
}

fn ping(_: &mut Session<'_>, arguments: &[&[u8]], out: &mut Vec<u8>) -> Next {
    match arguments {
        [text] => resp::bulk(out, Some(text)),
        _ => resp::simple(out, "PONG"),
    }
    Next::Continue
}

fn echo(_: &mut Session<'_>, arguments: &[&[u8]], out: &mut Vec<u8>) -> Next {
    resp::bulk(out, Some(arguments[0]));
    Next::Continue
}

fn size(session: &mut Session<'_>, _: &[&[u8]], out: &mut Vec<u8>) -> Next {
    resp::integer(out, session.store.len() as i64);
    Next::Continue
}

fn flush_all(session: &mut Session<'_>, arguments: &[&[u8]], out: &mut Vec<u8>) -> Next {
    let known =
        |word: &&[u8]| word.eq_ignore_ascii_case(b"sync") || word.eq_ignore_ascii_case(b"async");
    if !arguments.iter().all(known) {
        resp::error(out, SYNTAX);
        return Next::Continue;
    }
    session.store.clear();
    if let Some(log) = &mut session.log {
        log.clear();
    }
    resp::simple(out, "OK");
    Next::Continue
}

fn info(session: &mut Session<'_>, _: &[&[u8]], out: &mut Vec<u8>) -> Next {
    let (server, store) = (session.server, &session.store);
    let mut text = String::new();
    let _ = write!(
        text,
        "# Server\r\nredis_version:7.0.0\r\nserver_name:pico\r\nredis_mode:standalone\r\n\
         tcp_port:{}\r\nuptime_in_seconds:{}\r\n\
         # Clients\r\nconnected_clients:{}\r\nmaxclients:{}\r\n\
         # Memory\r\nused_memory:{}\r\nmaxmemory:{}\r\n\
         # Persistence\r\naof_enabled:{}\r\n\
         # Stats\r\ntotal_commands_processed:{}\r\n\
         # Keyspace\r\n",
        server.port,
        server.uptime_s,
        server.clients,
        server.clients_max,
        store.used(),
        store.limit(),
        u8::from(server.append_only),
        server.commands,
    );
    if !store.is_empty() {
        let _ = write!(text, "db0:keys={},expires=0,avg_ttl=0\r\n", store.len());
    }
    resp::bulk(out, Some(text.as_bytes()));
    Next::Continue
}

/// COMMAND and COMMAND DOCS describe nothing; redis-cli is content with that.
fn command(_: &mut Session<'_>, arguments: &[&[u8]], out: &mut Vec<u8>) -> Next {
    match arguments {
        [word] if word.eq_ignore_ascii_case(b"count") => {
            resp::integer(out, COMMANDS.len() as i64);
        }
        _ => resp::array(out, 0),
    }
    Next::Continue
}

fn config(session: &mut Session<'_>, arguments: &[&[u8]], out: &mut Vec<u8>) -> Next {
    let [word, patterns @ ..] = arguments else {
        return Next::Continue;
    };
    if !word.eq_ignore_ascii_case(b"get") || patterns.is_empty() {
        resp::error(out, "ERR only CONFIG GET is supported");
        return Next::Continue;
    }
    let mut limit = String::new();
    let _ = write!(limit, "{}", session.store.limit());
    let mut clients = String::new();
    let _ = write!(clients, "{}", session.server.clients_max);
    let append_only = if session.server.append_only {
        "yes"
    } else {
        "no"
    };
    let settings = [
        ("save", ""),
        ("appendonly", append_only),
        ("appendfsync", "always"),
        ("maxmemory", &*limit),
        ("maxclients", &*clients),
        ("databases", "1"),
    ];
    let asked = |name: &str| {
        patterns
            .iter()
            .any(|p| *p == b"*" || p.eq_ignore_ascii_case(name.as_bytes()))
    };
    let found = settings.iter().filter(|(name, _)| asked(name));
    resp::array(out, 2 * found.clone().count());
    for (name, value) in found {
        resp::bulk(out, Some(name.as_bytes()));
        resp::bulk(out, Some(value.as_bytes()));
    }
    Next::Continue
}

fn select(_: &mut Session<'_>, arguments: &[&[u8]], out: &mut Vec<u8>) -> Next {
    match integer(arguments[0]) {
        Some(0) => resp::simple(out, "OK"),
        Some(_) => resp::error(out, "ERR DB index is out of range"),
        None => resp::error(out, NOT_AN_INTEGER),
    }
    Next::Continue
}

fn quit(_: &mut Session<'_>, _: &[&[u8]], out: &mut Vec<u8>) -> Next {
    resp::simple(out, "OK");
    Next::Close
}

#[cfg(test)]
#[path = "commands_tests.rs"]
mod tests;
