//! The judge against scripted servers: it must find what is wrong, and nothing else.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::{Load, LoadOptions, Verdict};

/// What the scripted server does wrong at its 100th INCR.
#[derive(Clone, Copy, PartialEq)]
enum Sin {
    None,
    RepeatsIncr,
    ForgetsIncr,
    ForgetsKeys,
    Pauses,
    Closes,
    AnswersErrors,
}

/// A little Redis that sins once.
fn serve(mut stream: TcpStream, sin: Sin) -> std::io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut data = HashMap::<Vec<u8>, Vec<u8>>::new();
    let mut counter = 0_i64;
    let mut incrs = 0;
    loop {
        let words = read_command(&mut input)?;
        let answer = match words[0].as_slice() {
            b"INCR" => {
                counter += 1;
                incrs += 1;
                match sin {
                    _ if incrs != 100 => {}
                    Sin::RepeatsIncr => counter += 1,
                    Sin::ForgetsIncr => counter -= 2,
                    Sin::ForgetsKeys => data.clear(),
                    Sin::Pauses => thread::sleep(Duration::from_millis(300)),
                    Sin::Closes => return Ok(()),
                    Sin::None | Sin::AnswersErrors => {}
                }
                if sin == Sin::AnswersErrors && incrs == 100 {
                    "-ERR no\r\n".into()
                } else {
                    format!(":{counter}\r\n")
                }
            }
            b"SET" => {
                data.insert(words[1].clone(), words[2].clone());
                "+OK\r\n".into()
            }
            b"GET" => bulk((counter > 0).then(|| counter.to_string())),
            b"MGET" => words[1..]
                .iter()
                .fold(format!("*{}\r\n", words.len() - 1), |text, key| {
                    text + &bulk(
                        data.get(key)
                            .map(|value| String::from_utf8_lossy(value).into_owned()),
                    )
                }),
            other => panic!("unexpected command {other:?}"),
        };
        stream.write_all(answer.as_bytes())?;
    }
}

fn bulk(value: Option<String>) -> String {
    value.map_or_else(
        || "$-1\r\n".into(),
        |text| format!("${}\r\n{text}\r\n", text.len()),
    )
}

fn read_command(input: &mut BufReader<TcpStream>) -> std::io::Result<Vec<Vec<u8>>> {
    let mut number = |mark: char| {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let count: usize = line.trim_end().trim_start_matches(mark).parse().unwrap();
        if mark == '*' {
            return Ok((count, Vec::new()));
        }
        let mut word = vec![0; count + 2];
        input.read_exact(&mut word)?;
        word.truncate(count);
        Ok((count, word))
    };
    let (count, _) = number('*')?;
    (0..count)
        .map(|_| number('$').map(|(_, word)| word))
        .collect()
}

fn judge(sin: Sin) -> Verdict {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || serve(listener.accept().unwrap().0, sin));
    let options = LoadOptions {
        depth: 4,
        keys: 50,
        patience: Duration::from_secs(5),
    };
    let load = Load::start(TcpStream::connect(address).unwrap(), options).unwrap();
    load.wait_until(Duration::from_secs(10), |seen| seen.acked >= 400);
    let verdict = load.finish();
    // The server ends with the connection; how is the client's business.
    let _ = server.join().unwrap();
    verdict
}

#[test]
fn a_faithful_server_is_clean() {
    let verdict = judge(Sin::None);
    assert!(verdict.is_clean(), "{verdict:?}");
    assert!(verdict.progress.acked >= 400);
    assert!(verdict.summary().starts_with("connection=survived acked="));
}

#[test]
fn a_repeated_command_is_a_duplicate() {
    let verdict = judge(Sin::RepeatsIncr);
    assert_eq!(
        (verdict.progress.lost, verdict.progress.duplicated),
        (0, 1),
        "{verdict:?}"
    );
    assert!(!verdict.is_clean());
}

#[test]
fn a_forgotten_command_is_lost() {
    let verdict = judge(Sin::ForgetsIncr);
    assert_eq!(
        (verdict.progress.lost, verdict.progress.duplicated),
        (2, 0),
        "{verdict:?}"
    );
    assert!(!verdict.is_clean());
}

#[test]
fn forgotten_keys_are_found_at_the_end() {
    // After the 100th of at least 200 INCRs every one of the 50 keys is written again, so the load must stop early.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || serve(listener.accept().unwrap().0, Sin::ForgetsKeys));
    let options = LoadOptions {
        depth: 1,
        keys: 100_000,
        patience: Duration::from_secs(5),
    };
    let load = Load::start(TcpStream::connect(address).unwrap(), options).unwrap();
    assert!(load.wait_until(Duration::from_secs(10), |seen| seen.acked >= 250));
    let verdict = load.finish();
    let _ = server.join().unwrap();
    assert_eq!(
        (verdict.progress.lost, verdict.progress.duplicated),
        (99, 0),
        "{:?}",
        verdict.progress.complaints
    );
}

#[test]
fn the_longest_gap_is_measured() {
    let verdict = judge(Sin::Pauses);
    assert!(verdict.is_clean(), "{verdict:?}");
    let gap = verdict.progress.longest_gap;
    assert!(
        gap >= Duration::from_millis(290) && gap < Duration::from_secs(3),
        "{gap:?}"
    );
}

#[test]
fn a_gap_that_is_over_can_be_left_behind() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || serve(listener.accept().unwrap().0, Sin::Pauses));
    let stream = TcpStream::connect(address).unwrap();
    let load = Load::start(stream, LoadOptions::default()).unwrap();
    let pause = Duration::from_millis(290);
    assert!(load.wait_until(Duration::from_secs(10), |seen| seen.longest_gap >= pause));
    assert!(load.measure_anew().longest_gap >= pause);
    assert!(load.progress().longest_gap < pause);
    drop(load);
    let _ = server.join().unwrap();
}

#[test]
fn a_closed_connection_is_lost() {
    let verdict = judge(Sin::Closes);
    assert!(
        verdict.progress.broken.is_some() && !verdict.read_back && !verdict.is_clean(),
        "{verdict:?}"
    );
    assert!(verdict.summary().starts_with("connection=lost"));
}

#[test]
fn an_error_answer_is_not_clean() {
    let verdict = judge(Sin::AnswersErrors);
    assert!(
        !verdict.is_clean() && verdict.progress.complaints[0].contains("ERR no"),
        "{verdict:?}"
    );
}
