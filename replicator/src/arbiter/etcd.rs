//! The arbiter in etcd: the one for twins on hosts of their own.
//!
//! One key holds the record. A swap is one transaction, which etcd makes durable on most of
//! its members before it answers; reads are linearizable. Spoken is the JSON form of etcd's
//! v3 API.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::Agent;

use super::text::{MAX_LEN, format, parse};
use super::{Arbiter, ArbiterError, CasOutcome, Record};

/// Longest wait for a connection to one endpoint.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest wait for one endpoint's whole answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest answer that is read: a record in base64 and what is around it.
const MAX_ANSWER: u64 = 4 * MAX_LEN as u64;

/// Most of an endpoint's own words that are passed on, in characters.
const MAX_WORDS: usize = 200;

/// A register in an etcd cluster: the key `evertwin/<vm>`.
pub struct EtcdArbiter {
    endpoints: Vec<SocketAddr>,
    /// The endpoint that answered last: the first to be asked.
    first: usize,
    key: String,
    agent: Agent,
    /// The cluster that answered first.
    cluster: Option<String>,
}

/// etcd could not be used.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// No endpoint gave an answer.
    #[error("etcd gave no answer: {0}: check that it runs and that this host can reach it")]
    NoAnswer(String),
    /// The key does not hold a record.
    #[error(
        "etcd's key {key} (at {endpoint}) is damaged: make sure that no twin runs, then remove it with \
         `etcdctl del {key}` and start the twin with the newer state first"
    )]
    Damaged {
        /// Who gave it.
        endpoint: SocketAddr,
        /// The key.
        key: String,
    },
    /// An endpoint is part of another cluster than the one that answered before.
    #[error(
        "etcd at {0} is of another cluster than the other endpoints: two clusters are two arbiters, \
         name the endpoints of one"
    )]
    OtherCluster(SocketAddr),
}

/// What is of use in an answer. Numbers are strings in etcd's JSON.
#[derive(Deserialize)]
struct Reply {
    header: Header,
    /// Of a transaction; left out when false.
    #[serde(default)]
    succeeded: bool,
    /// Of a transaction: one for each request of the branch taken.
    #[serde(default)]
    responses: Vec<Response>,
    /// Of a range.
    #[serde(default)]
    kvs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Header {
    cluster_id: String,
}

#[derive(Deserialize)]
struct Response {
    response_range: Option<Range>,
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Pair {
    #[serde(default)]
    value: String,
}

impl EtcdArbiter {
    /// The arbiter of the VM named `vm`. The endpoints are those of one cluster, and are
    /// tried in turn.
    pub fn new(endpoints: Vec<SocketAddr>, vm: &str) -> Self {
        let config = Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(ANSWER_TIMEOUT))
            // Never through what the environment names as a proxy, nor to where a redirection
            // points: this is the one register that decides.
            .proxy(None)
            .max_redirects(0)
            // A connection that was idle may be dead, and a swap is not sent twice blindly.
            .max_idle_connections(0)
            .http_status_as_error(false)
            .build();
        Self {
            endpoints,
            first: 0,
            key: format!("evertwin/{vm}"),
            agent: config.into(),
            cluster: None,
        }
    }

    /// The record. Unlike [`Arbiter::read`] the error says what kind it is.
    ///
    /// # Errors
    /// Any [`EtcdError`].
    pub fn load(&mut self) -> Result<Option<Record>, EtcdError> {
        let body = self.range();
        let (endpoint, reply) = self.ask("range", &body)?;
        self.record(endpoint, &reply.kvs)
    }

    fn swap(&mut self, expected: Option<&Record>, new: &Record) -> Result<CasOutcome, EtcdError> {
        let key = BASE64.encode(&self.key);
        let compare = match expected {
            Some(record) => json!({
                "key": key, "target": "VALUE", "result": "EQUAL",
                "value": BASE64.encode(format(record)),
            }),
            // A key that is not there has version 0.
            None => json!({
                "key": key, "target": "VERSION", "result": "EQUAL", "version": "0",
            }),
        };
        let put = json!({ "key": key, "value": BASE64.encode(format(new)) });
        let body = json!({
            "compare": [compare],
            "success": [{ "request_put": put }],
            "failure": [{ "request_range": self.range() }],
        });
        let (endpoint, reply) = self.ask("txn", &body)?;
        if reply.succeeded {
            return Ok(CasOutcome::Won);
        }
        let Some(Response {
            response_range: Some(range),
        }) = reply.responses.first()
        else {
            return Err(no_answer(endpoint, "a refusal without the current value"));
        };
        // It may be `new`, when an earlier attempt's answer was lost. Whether that is ours is
        // for the protocol to say.
        self.record(endpoint, &range.kvs).map(CasOutcome::Lost)
    }

    fn range(&self) -> Value {
        json!({ "key": BASE64.encode(&self.key) })
    }

    fn record(&self, endpoint: SocketAddr, kvs: &[Pair]) -> Result<Option<Record>, EtcdError> {
        let Some(Pair { value }) = kvs.first() else {
            return Ok(None);
        };
        let text = BASE64.decode(value).ok();
        let text = text.and_then(|text| String::from_utf8(text).ok());
        let record = text.and_then(|text| parse(&text));
        record.map(Some).ok_or_else(|| EtcdError::Damaged {
            endpoint,
            key: self.key.clone(),
        })
    }

    /// Asks one endpoint after the other until one answers. A swap may be asked of several:
    /// at most one of its copies finds what it expects, for no record ever comes again.
    fn ask(&mut self, what: &str, body: &Value) -> Result<(SocketAddr, Reply), EtcdError> {
        let mut failures = Vec::new();
        for turn in 0..self.endpoints.len() {
            let index = (self.first + turn) % self.endpoints.len();
            let endpoint = self.endpoints[index];
            match self.post(endpoint, what, body) {
                Ok(reply) => {
                    let cluster = reply.header.cluster_id.clone();
                    if *self.cluster.get_or_insert(cluster) != reply.header.cluster_id {
                        return Err(EtcdError::OtherCluster(endpoint));
                    }
                    self.first = index;
                    return Ok((endpoint, reply));
                }
                Err(reason) => failures.push(failure(endpoint, &reason)),
            }
        }
        Err(EtcdError::NoAnswer(failures.join(", ")))
    }

    fn post(&self, endpoint: SocketAddr, what: &str, body: &Value) -> Result<Reply, String> {
        let url = format!("http://{endpoint}/v3/kv/{what}");
        let request = self.agent.post(&url).content_type("application/json");
        let mut response = request
            .send(body.to_string())
            .map_err(|error| error.to_string())?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(MAX_ANSWER);
        let text = body.read_to_string().map_err(|error| error.to_string())?;
        if status.as_u16() != 200 {
            let words: String = text.trim().chars().take(MAX_WORDS).collect();
            return Err(format!(
                "status {}, {}",
                status.as_u16(),
                words.escape_debug()
            ));
        }
        serde_json::from_str(&text).map_err(|error| format!("no answer of etcd's v3 API: {error}"))
    }
}

fn failure(endpoint: SocketAddr, reason: &str) -> String {
    format!("http://{endpoint} ({reason})")
}

fn no_answer(endpoint: SocketAddr, reason: &str) -> EtcdError {
    EtcdError::NoAnswer(failure(endpoint, reason))
}

impl Arbiter for EtcdArbiter {
    fn read(&mut self) -> Result<Option<Record>, ArbiterError> {
        self.load().map_err(ArbiterError::new)
    }

    fn compare_and_swap(
        &mut self,
        expected: Option<&Record>,
        new: &Record,
    ) -> Result<CasOutcome, ArbiterError> {
        self.swap(expected, new).map_err(ArbiterError::new)
    }
}
