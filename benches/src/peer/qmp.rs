//! QEMU's control socket (QMP): one command at a time.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use evertwin::lab::process::Process;
use evertwin_tests::lab::STEP;
use serde_json::{Value, json};

/// Between two looks whether QEMU has made its socket.
const LOOK: Duration = Duration::from_millis(2);

/// A connection to one QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    input: BufReader<UnixStream>,
    output: UnixStream,
}

impl Qmp {
    /// Connects to a QEMU that has just been started. When this is done, QEMU has set up all that its arguments say.
    pub(super) fn connect(socket: &Path, qemu: &Process) -> Self {
        let until = Instant::now() + STEP;
        let output = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if !qemu.is_running() || Instant::now() > until => {
                    let last = qemu.log().lines().pop().map(|line| line.text);
                    panic!("QEMU does not answer: {error}; its last words: {last:?}");
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        };
        let connected = output.set_read_timeout(Some(STEP)).and_then(|()| {
            let input = BufReader::new(output.try_clone()?);
            let mut qmp = Self { input, output };
            qmp.read()?; // The greeting.
            Ok(qmp)
        });
        let mut qmp = connected.unwrap_or_else(|error| panic!("QMP: {error}"));
        qmp.execute("qmp_capabilities", json!({}));
        qmp
    }

    /// Executes a command and returns its answer.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let answer = self.try_execute(command, arguments);
        let mut answer = answer.unwrap_or_else(|error| panic!("QMP {command}: {error}"));
        assert!(answer.get("error").is_none(), "QMP {command}: {answer}");
        answer["return"].take()
    }

    fn try_execute(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.output.write_all(format!("{line}\n").as_bytes())?;
        loop {
            let line = self.read()?;
            // Events come whenever they want to.
            if line.get("event").is_none() {
                return Ok(line);
            }
        }
    }

    fn read(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        match self.input.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(serde_json::from_str(&line)?),
        }
    }
}
