//! Two sessions with no socket between them, and keys of every kind.

#[path = "../../tests/twins/support/keys.rs"]
mod made;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use rustls::SupportedCipherSuite;
use tempfile::TempDir;

use super::keys::{Files, provider};
use super::*;
use crate::connection::{Queue, SEND_BYTES};
use crate::wire::{Frame, FrameReader, Kind, MAX_FRAME, MAX_PAYLOAD};
use made::Authority;

/// One side: its session, what waits there, and what has come.
struct End {
    session: Session,
    queue: Queue,
    reader: FrameReader,
    frames: Vec<(Kind, u64, usize)>,
}

impl End {
    fn new(session: Session) -> Self {
        Self {
            session,
            queue: Queue::default(),
            reader: FrameReader::new(),
            frames: Vec::new(),
        }
    }

    /// Seals what waits and gives the bytes for the wire.
    fn send(&mut self) -> Vec<u8> {
        self.session.seal(&mut self.queue).expect("a sound engine");
        let bytes = self.session.unsent().to_vec();
        self.session.sent(bytes.len());
        bytes
    }

    /// Takes bytes from the wire, in pieces of at most `piece`.
    fn receive(&mut self, bytes: &[u8], piece: usize) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = self.session.room();
            let len = rest.len().min(piece).min(room.len());
            assert!(len > 0, "a reader that was emptied has room");
            room[..len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
            self.session.received(len, &mut self.reader);
            while let Some((header, payload)) = self.reader.next().expect("whole frames") {
                self.frames.push((header.kind, header.epoch, payload.len()));
            }
        }
    }

    fn failure(&self) -> Option<TlsError> {
        self.session.failure().cloned()
    }
}

/// Carries bytes both ways until there are none.
fn talk(client: &mut End, server: &mut End, piece: usize) {
    loop {
        let (there, back) = (client.send(), server.send());
        if there.is_empty() && back.is_empty() {
            return;
        }
        server.receive(&there, piece);
        client.receive(&back, piece);
    }
}

/// Directories of keys, gone when this is dropped.
struct Chest(TempDir);

impl Chest {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn place(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Keys that were not looked at, as somebody hostile or careless may have them.
fn unchecked(directory: &Path, peer: &str) -> Keys {
    let files = Files::read(directory).expect("whole files");
    let peer = peer.parse().expect("a valid name");
    Keys::unchecked(files, peer, Arc::new(provider())).expect("keys that fit")
}

/// The ends of a connection that `b` dials and `a` accepts.
fn ends(b: &Keys, a: &Keys) -> (End, End) {
    let client = End::new(b.client().expect("a session"));
    let server = End::new(a.server().expect("a session"));
    (client, server)
}

/// Good keys of a pair, as `a` and `b` have them.
pub(crate) fn pair() -> (Keys, Keys) {
    let (chest, authority) = (Chest::new(), Authority::new());
    for node in ["a", "b"] {
        authority.certify(node, &chest.place(node));
    }
    (
        unchecked(&chest.place("a"), "b"),
        unchecked(&chest.place("b"), "a"),
    )
}

fn frame(epoch: u64, len: usize) -> Frame {
    Frame::new(Kind::State, 1, epoch, &vec![epoch as u8; len])
}

#[test]
fn frames_pass_both_ways_and_whole() {
    let (a, b) = pair();
    for piece in [1, 7, 1000, usize::MAX] {
        let (mut client, mut server) = ends(&b, &a);
        let lens = [0, 1, 100, 16_383, 16_384, 16_385, MAX_PAYLOAD as usize];
        for (epoch, len) in (1..).zip(lens) {
            client.queue.push_bulk(frame(epoch, len));
            server.queue.push_bulk(frame(epoch, len));
        }
        talk(&mut client, &mut server, piece);
        let want: Vec<_> = (1..)
            .zip(lens)
            .map(|(epoch, len)| (Kind::State, epoch, len))
            .collect();
        assert_eq!(client.frames, want, "in pieces of {piece}");
        assert_eq!(server.frames, want, "in pieces of {piece}");
        assert!(client.session.is_flushed() && !server.session.torn());
    }
}

#[test]
fn nothing_is_in_the_clear() {
    let (a, b) = pair();
    let (mut client, mut server) = ends(&b, &a);
    let secret = b"what the guest's memory holds";
    let mut wire = Vec::new();
    for _ in 0..4 {
        for end in [&mut client, &mut server] {
            end.queue.push_bulk(Frame::new(Kind::State, 1, 1, secret));
        }
        let (there, back) = (client.send(), server.send());
        server.receive(&there, usize::MAX);
        client.receive(&back, usize::MAX);
        wire.extend([there, back].concat());
    }
    assert!(!client.frames.is_empty() && !server.frames.is_empty());
    let seen = wire.windows(secret.len()).any(|bytes| bytes == secret);
    assert!(!seen, "among {} bytes", wire.len());
}

#[test]
fn nothing_is_sealed_before_the_peer_has_proved_who_it_is() {
    let (a, b) = pair();
    let (mut client, mut server) = ends(&b, &a);
    server.queue.push_control(frame(1, 10));
    client.queue.push_control(frame(2, 10));
    let hello = client.send();
    assert!(!client.session.is_ready() && !client.queue.is_empty());
    server.receive(&hello, usize::MAX);
    server.send();
    assert!(!server.session.is_ready() && !server.queue.is_empty());
}

#[test]
fn a_long_stream_gets_new_keys_again_and_again() {
    let (chest, authority) = (Chest::new(), Authority::new());
    let mut short = provider();
    for suite in &mut short.cipher_suites {
        let SupportedCipherSuite::Tls13(known) = *suite;
        let common = rustls::crypto::CipherSuiteCommon {
            // Records that one key may seal.
            confidentiality_limit: 40,
            ..known.common
        };
        let suite_of_few = rustls::Tls13CipherSuite { common, ..*known };
        *suite = SupportedCipherSuite::Tls13(Box::leak(Box::new(suite_of_few)));
    }
    let [a, b] = [("a", "b"), ("b", "a")].map(|(node, peer)| {
        authority.certify(node, &chest.place(node));
        let files = Files::read(&chest.place(node)).expect("whole files");
        let peer = peer.parse().expect("a valid name");
        Keys::unchecked(files, peer, Arc::new(short.clone())).expect("keys that fit")
    });
    let (mut client, mut server) = ends(&b, &a);
    talk(&mut client, &mut server, usize::MAX);
    // Each of these takes half of what a key may seal; the other side says next to nothing.
    for epoch in 1..=200 {
        server.queue.push_bulk(frame(epoch, MAX_PAYLOAD as usize));
        let bytes = server.send();
        client.receive(&bytes, 10_000);
        assert_eq!(client.failure(), None, "frame {epoch}");
        assert_eq!(client.frames.len() as u64, epoch);
    }
    client.queue.push_control(frame(1, 0));
    talk(&mut client, &mut server, usize::MAX);
    assert_eq!((client.failure(), server.failure()), (None, None));
    assert_eq!(server.frames.len(), 1);
}

#[test]
fn control_frames_wait_for_no_more_than_was_sealed() {
    let (a, b) = pair();
    let (mut client, mut server) = ends(&b, &a);
    talk(&mut client, &mut server, usize::MAX);
    for epoch in 1..=50 {
        client.queue.push_bulk(frame(epoch, MAX_PAYLOAD as usize));
    }
    let first = client.send();
    assert!(
        first.len() <= SEND_BYTES + MAX_FRAME + 1000,
        "{}",
        first.len()
    );
    client.queue.push_control(frame(99, 0));
    let second = client.send();
    server.receive(&first, usize::MAX);
    let before = server.frames.len();
    server.receive(&second, usize::MAX);
    assert_eq!(server.frames[before].1, 99);
}

#[test]
fn each_side_refuses_whoever_is_not_its_peer() {
    let (chest, ours, theirs) = (Chest::new(), Authority::new(), Authority::new());
    for node in ["a", "b", "c"] {
        ours.certify(node, &chest.place(node));
        theirs.certify(node, &chest.place(&format!("foreign-{node}")));
        ours.certify_for(-1, node, &chest.place(&format!("old-{node}")));
    }
    // Somebody who trusts the pair's CA without being of it.
    for node in ["a", "b"] {
        let place = chest.place(&format!("posing-{node}"));
        theirs.certify(node, &place);
        std::fs::copy(chest.place("a").join("ca.crt"), place.join("ca.crt")).expect("a file");
    }
    let ca = "not from the peer's CA";
    let cases = [
        // Who dials, who accepts, whose fault it is in the eyes of which side, and what the other reads.
        ("b", "foreign-a", Some(TlsError::Authority), None, ca),
        ("foreign-b", "a", Some(TlsError::Authority), None, ca),
        ("b", "posing-a", Some(TlsError::Authority), None, ca),
        ("posing-b", "a", None, Some(TlsError::Authority), ca),
        ("b", "c", Some(TlsError::Name), None, "expects"),
        ("c", "a", None, Some(TlsError::Name), "expects"),
        // A twin is not its own peer.
        ("b", "b", Some(TlsError::Name), None, "expects"),
        ("a", "a", None, Some(TlsError::Name), "expects"),
        ("b", "old-a", Some(TlsError::Expired), None, "expired"),
        ("old-b", "a", None, Some(TlsError::Expired), "expired"),
    ];
    for (dials, accepts, by_client, by_server, words) in cases {
        // Both mean to talk to the right one, but for an `a` that dials, which looks for itself.
        let (b, a) = (
            unchecked(&chest.place(dials), "a"),
            unchecked(&chest.place(accepts), "b"),
        );
        let (mut client, mut server) = ends(&b, &a);
        client.queue.push_control(frame(1, 0));
        server.queue.push_control(frame(1, 0));
        talk(&mut client, &mut server, usize::MAX);
        let case = format!("{dials} dials {accepts}");
        assert_eq!(server.frames, [], "{case}");
        assert_eq!(client.frames, [], "{case}");
        let (found, told) = match by_client {
            Some(found) => (found, server.failure()),
            None => (by_server.expect("one of them"), client.failure()),
        };
        let finders = [client.failure(), server.failure()];
        assert!(finders.contains(&Some(found)), "{case}: {finders:?}");
        let told = told.expect("the other side is told");
        assert!(told.to_string().contains(words), "{case}: {told}");
        assert!(told.is_lasting(), "{case}");
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let (chest, authority) = (Chest::new(), Authority::new());
    for node in ["a", "b"] {
        authority.certify(node, &chest.place(node));
    }
    let anonymous = Files::read(&chest.place("b")).expect("whole files");
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("a known version")
        .with_root_certificates(anonymous.roots().expect("a CA"))
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from("a-node.evertwin").expect("a name");
    let mut client = End::new(Session::client(Arc::new(config), name).expect("a session"));
    let keys = unchecked(&chest.place("a"), "b");
    let mut server = End::new(keys.server().expect("a session"));
    talk(&mut client, &mut server, usize::MAX);
    assert_eq!(server.failure(), Some(TlsError::NoCertificate));
    let told = client.failure().expect("it is told").to_string();
    assert!(told.contains("shows no certificate"), "{told}");
}

#[test]
fn what_does_not_speak_tls_is_named() {
    let (a, b) = pair();
    for (words, want) in [
        (&b"HTTP/1.1 400 Bad Request\r\n"[..], TlsError::NotTls),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", TlsError::NotTls),
        (&[0; 100], TlsError::NotTls),
        (b"EVTW\x02\0\x01\0\0\0\0\0\0\0\0\0", TlsError::Plaintext),
    ] {
        for piece in [1, usize::MAX] {
            let (mut client, mut server) = ends(&b, &a);
            for end in [&mut client, &mut server] {
                end.receive(words, piece);
                assert_eq!(end.failure(), Some(want.clone()), "in pieces of {piece}");
                assert!(want.is_lasting());
            }
        }
    }
}

#[test]
fn a_changed_record_is_not_opened() {
    let (a, b) = pair();
    let mut at = 0;
    loop {
        let (mut client, mut server) = ends(&b, &a);
        talk(&mut client, &mut server, usize::MAX);
        client.queue.push_control(frame(1, 100));
        let mut bytes = client.send();
        let Some(byte) = bytes.get_mut(at) else {
            return;
        };
        *byte ^= 0x10;
        server.receive(&bytes, usize::MAX);
        if at == 2 {
            // The lesser half of a record's version says nothing, and is not looked at (RFC 8446, 5.1).
            assert_eq!((server.frames.len(), server.failure()), (1, None));
            at += 1;
            continue;
        }
        assert_eq!(server.frames, [], "changed at {at}");
        // A longer record is waited for.
        let waits = (3..5).contains(&at) && server.session.torn();
        let failure = server.failure();
        assert!(waits || failure.is_some(), "changed at {at}");
        assert!(failure.is_none_or(|error| !error.is_lasting()));
        at += 1;
    }
}

#[test]
fn records_are_taken_once_and_in_order() {
    let (a, b) = pair();
    for harm in ["repeat", "leave out", "swap", "reflect"] {
        let (mut client, mut server) = ends(&b, &a);
        talk(&mut client, &mut server, usize::MAX);
        let records = [1, 2, 3].map(|epoch| {
            client.queue.push_control(frame(epoch, 10));
            client.send()
        });
        let [one, two, three] = &records;
        let order = match harm {
            "repeat" => [one, one, two],
            "leave out" => [one, three, two],
            "swap" => [two, one, three],
            _ => [three, three, three],
        };
        let end = if harm == "reflect" {
            &mut client
        } else {
            &mut server
        };
        for record in order {
            end.receive(record, usize::MAX);
        }
        assert_eq!(end.failure(), Some(TlsError::Forged), "{harm}");
        assert!(
            end.frames
                .iter()
                .map(|frame| frame.1)
                .eq(1..=end.frames.len() as u64)
        );
    }
}

#[test]
fn an_end_is_announced_and_a_cut_is_seen() {
    let (a, b) = pair();
    let (mut client, mut server) = ends(&b, &a);
    assert!(!server.session.close(), "nothing was begun");
    talk(&mut client, &mut server, usize::MAX);
    client.queue.push_bulk(frame(1, 10));
    assert!(client.session.close() && !client.session.close());
    let bytes = client.send();
    server.receive(&bytes, usize::MAX);
    assert_eq!(
        server.frames.len(),
        1,
        "what was queued before comes before"
    );
    assert_eq!(server.failure(), None);
    assert!(client.send().is_empty(), "it is said once");
    // The other side may still speak.
    server.queue.push_control(frame(2, 10));
    let bytes = server.send();
    client.receive(&bytes[..bytes.len() - 1], usize::MAX);
    assert!(client.session.torn() && client.frames.is_empty());
    client.receive(&bytes[bytes.len() - 1..], usize::MAX);
    assert!(!client.session.torn() && client.frames.len() == 1);
}

#[test]
fn wrong_files_are_named() {
    let (chest, authority) = (Chest::new(), Authority::new());
    let load = |name: &str| {
        let node = "a".parse().expect("a valid name");
        let loaded = Keys::load(&chest.place(name), node, "b".parse().expect("a valid name"));
        loaded.map(|(_, warnings)| warnings)
    };
    type Harm = fn(&Path);
    let cases: [(&str, Harm, &[&str]); 8] = [
        (
            "missing",
            |at| drop(std::fs::remove_file(at.join("node.key"))),
            &["node.key", "evertwin keys"],
        ),
        (
            "garbage",
            |at| write(&at.join("node.crt"), "no PEM"),
            &["node.crt", "no certificate"],
        ),
        (
            "no key",
            |at| write(&at.join("node.key"), ""),
            &["node.key", "no private key"],
        ),
        (
            "no ca",
            |at| {
                write(
                    &at.join("ca.crt"),
                    "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                )
            },
            &["ca.crt"],
        ),
        (
            "long",
            |at| write(&at.join("ca.crt"), &"x".repeat(100_000)),
            &["ca.crt"],
        ),
        (
            "foreign",
            |at| mix(at, "ca.crt"),
            &["node.crt", "node a", "not from the CA"],
        ),
        (
            "mixed",
            |at| mix(at, "node.key"),
            &["node.key is not the key of", "node.crt"],
        ),
        ("whole", |at| drop(std::fs::metadata(at)), &[]),
    ];
    for (name, harm, words) in cases {
        let at = chest.place(name);
        authority.certify("a", &at);
        harm(&at);
        match load(name) {
            Ok(warnings) => assert!(
                words.is_empty() && warnings.is_empty(),
                "{name}: {warnings:?}"
            ),
            Err(error) => {
                let text = error.to_string();
                assert!(!words.is_empty(), "{name}: {text}");
                for word in words {
                    assert!(text.contains(word), "{name}: {word:?} is not in {text:?}");
                }
            }
        }
    }
    authority.certify("b", &chest.place("other"));
    let error = load("other").expect_err("it is b's").to_string();
    assert!(error.contains("names another node"), "{error}");
    authority.certify_for(-1, "a", &chest.place("old"));
    let error = load("old").expect_err("it is over").to_string();
    assert!(error.contains("has expired"), "{error}");
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a few bytes");
}

/// Puts a file of somebody else's keys in place of one of these.
fn mix(at: &Path, name: &str) {
    let other = Chest::new();
    Authority::new().certify("a", &other.place("a"));
    std::fs::copy(other.place("a").join(name), at.join(name)).expect("a file");
}

#[test]
fn what_should_be_looked_after_is_told() {
    let (chest, authority) = (Chest::new(), Authority::new());
    let at = chest.place("a");
    let load = || {
        let (node, peer) = ("a".parse().expect("valid"), "b".parse().expect("valid"));
        Keys::load(&at, node, peer).expect("good keys").1
    };
    authority.certify("a", &at);
    assert_eq!(load(), []);
    let key = at.join(KEY_FILE);
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o640)).expect("our file");
    assert_eq!(load(), [KeysWarning::Exposed { path: key.clone() }]);
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("our file");
    for days in [0, 3, 29, 31] {
        authority.certify_for(days, "a", &at);
        let path = at.join(CERTIFICATE_FILE);
        let expiring = |days| KeysWarning::Expiring { path, days };
        let few = u64::try_from(days).ok().filter(|days| *days < 30);
        let want: Vec<_> = few.map(expiring).into_iter().collect();
        assert_eq!(load(), want);
    }
}

proptest! {
    #[test]
    fn hostile_bytes_cost_no_more_than_the_connection(
        noise in proptest::collection::vec(any::<u8>(), 0..2000),
        at in 0_usize..6000,
        rounds in 0_usize..4,
        record in any::<bool>(),
    ) {
        let (a, b) = pair();
        let (mut client, mut server) = ends(&b, &a);
        for _ in 0..rounds {
            let there = client.send();
            server.receive(&there, usize::MAX);
            let back = server.send();
            client.receive(&back, usize::MAX);
        }
        let mut noise = noise;
        if record {
            // Noise in the form of a handshake's record goes deeper.
            let len = (noise.len() as u16).to_be_bytes();
            noise.splice(0..0, [22, 3, 3, len[0], len[1]]);
        }
        for end in [&mut client, &mut server] {
            end.queue.push_control(frame(1, 100));
            let mut bytes = end.send();
            bytes.splice(at.min(bytes.len()).., noise.iter().copied());
            end.receive(&noise, 100);
            end.send();
            prop_assert!(end.frames.is_empty());
        }
    }
}
