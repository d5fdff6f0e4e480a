//! What the lab and its agents say to each other: one JSON object per line.

use serde::{Deserialize, Serialize};

/// A request with the number that its answer repeats.
#[derive(Debug, Serialize, Deserialize)]
pub struct Numbered {
    /// Chosen by the lab, never twice for one agent.
    pub id: u64,
    /// What is asked for.
    #[serde(flatten)]
    pub request: Request,
}

/// What the lab asks an agent to do on its host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Run a command to its end and answer with what it wrote.
    Run {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// Start a process whose output and end are told as they come.
    Start {
        /// What the lab calls it.
        name: String,
        /// Program and arguments.
        argv: Vec<String>,
        /// Environment variables on top of the agent's own.
        env: Vec<(String, String)>,
    },
    /// Write to the standard input of a process that was started.
    Input {
        /// The process.
        name: String,
        /// What to write.
        text: String,
    },
    /// Send a signal to a process that was started.
    Signal {
        /// The process.
        name: String,
        /// The signal's number.
        signal: i32,
    },
    /// Write a file.
    Write {
        /// Its path.
        path: String,
        /// Its contents.
        text: String,
        /// Its access rights.
        mode: u32,
    },
    /// Read a file.
    Read {
        /// Its path.
        path: String,
    },
}

/// What an agent says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum FromAgent {
    /// The host has booted and is set up.
    Hello,
    /// The host could not be set up.
    Failed {
        /// Why.
        reason: String,
    },
    /// An answer.
    Answer {
        /// The request's number.
        id: u64,
        /// What came of it, or why nothing did.
        result: Result<Answer, String>,
    },
    /// A process wrote something.
    Output {
        /// The process.
        name: String,
        /// Whether to standard error.
        error: bool,
        /// What it wrote; bytes that are not UTF-8 are replaced.
        text: String,
    },
    /// A process ended.
    Exit {
        /// The process.
        name: String,
        /// Its exit code, unless a signal ended it.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
    },
}

/// What came of a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done.
    Done,
    /// A command ended.
    Ended {
        /// Its exit code; none if a signal ended it.
        code: Option<i32>,
        /// Its standard output.
        output: String,
        /// Its standard error.
        error: String,
    },
    /// A file's contents.
    Contents(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_request_and_comes_back_the_same() {
        let line = serde_json::to_string(&Numbered {
            id: 7,
            request: Request::Signal {
                name: "evertwin".into(),
                signal: 9,
            },
        });
        let line = line.unwrap();
        assert!(!line.contains('\n'));
        let back: Numbered = serde_json::from_str(&line).unwrap();
        assert!(matches!(back.request, Request::Signal { signal: 9, .. }) && back.id == 7);
        assert!(serde_json::from_str::<Numbered>(r#"{"id":1,"op":"explode"}"#).is_err());
    }
}
