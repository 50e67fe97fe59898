//! A ctdbd that is none: whatever it says is an error, in time.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use samba::CtdbError;
use samba::ctdb::Connection;

/// How long the client is told to wait for an answer.
const TIMEOUT: Duration = Duration::from_millis(300);

/// How long it may take then, on a machine that has other things to do.
const IN_TIME: Duration = Duration::from_secs(20);

const MAGIC: u32 = 0x4354_4442;
const REPLY_CALL: u32 = 1;
const REQ_MESSAGE: u32 = 5;
const REPLY_CONTROL: u32 = 8;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A packet whose length is right.
fn packet(operation: u32, request: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(32 + body.len()).expect("a small packet");
    [&words(&[length, MAGIC, 1, 0, operation, 0, 0, request])[..], body].concat()
}

/// The answer to a control.
fn reply(request: u32, status: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("a small packet");
    packet(REPLY_CONTROL, request, &[&words(&[status, length, 0])[..], data].concat())
}

/// Connects to a server that does what it likes with the connection, and asks that for something.
fn ask<R>(
    server: impl FnOnce(UnixStream) + Send + 'static,
    question: impl FnOnce(&Path) -> Result<R, CtdbError>,
) -> Result<R, CtdbError> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).expect("it is new");
    let server = thread::spawn(move || server(listener.accept().expect("the client connects").0));
    let asked = Instant::now();
    let answer = question(&socket);
    assert!(asked.elapsed() < IN_TIME, "it took {:?}", asked.elapsed());
    server.join().expect("the server does not panic");
    answer
}

/// What the client makes of these bytes as the answer to its first question, which is for its node's number.
fn first_answer(bytes: Vec<u8>) -> Result<u32, CtdbError> {
    let server = move |mut stream: UnixStream| {
        stream.write_all(&bytes).expect("the client reads");
        wait_for_the_end(&mut stream);
    };
    ask(server, |socket| Ok(Connection::open(socket, TIMEOUT)?.pnn().0))
}

/// Reads until the client has gone.
fn wait_for_the_end(stream: &mut UnixStream) {
    let mut bytes = [0; 1024];
    while stream.read(&mut bytes).is_ok_and(|length| length > 0) {}
}

#[test]
fn right_answer_is_understood() {
    assert_eq!(first_answer(reply(1, 7, b"")).unwrap(), 7);
    // ctdbd rounds lengths up.
    assert_eq!(first_answer(packet(REPLY_CONTROL, 1, &words(&[7, 0, 0, 0]))).unwrap(), 7);
    // Messages and answers to what was given up are passed over.
    let bytes = [packet(REQ_MESSAGE, 0, b"hello"), reply(9, 8, b""), reply(1, 7, b"")].concat();
    assert_eq!(first_answer(bytes).unwrap(), 7);
}

#[test]
fn nonsense_is_an_error() {
    let good = reply(1, 7, b"data");
    let with = |place: usize, word: u32| {
        let mut bytes = good.clone();
        bytes[4 * place..][..4].copy_from_slice(&word.to_ne_bytes());
        bytes
    };
    let nonsense = [
        ("length 0", with(0, 0)),
        ("length less than a header", with(0, 31)),
        ("a length that nobody has memory for", with(0, u32::MAX)),
        ("another protocol", with(1, u32::from_ne_bytes(*b"HTTP"))),
        ("another version", with(2, 2)),
        ("the answer to a call", with(4, REPLY_CALL)),
        ("no body", packet(REPLY_CONTROL, 1, &[])),
        ("half a body", packet(REPLY_CONTROL, 1, &words(&[0, 0]))),
        ("data that are not there", packet(REPLY_CONTROL, 1, &words(&[0, 5, 0, 0]))),
        ("a message that is not there", packet(REPLY_CONTROL, 1, &words(&[0, 4, u32::MAX, 0]))),
    ];
    for (what, bytes) in nonsense {
        let answer = first_answer(bytes);
        assert!(matches!(answer, Err(CtdbError::Packet(_))), "{what}: {answer:?}");
    }
}

#[test]
fn lists_that_end_too_early_are_errors() {
    let server = |data: Vec<u8>| {
        move |mut stream: UnixStream| {
            let bytes = [reply(1, 0, b""), reply(2, 0, &data)].concat();
            stream.write_all(&bytes).expect("the client reads");
            wait_for_the_end(&mut stream);
        }
    };
    for data in [words(&[]), words(&[1]), words(&[u32::MAX, 0, 0]), words(&[2, 0, 0, 0])] {
        let nodes = ask(server(data.clone()), |socket| Connection::open(socket, TIMEOUT)?.node_map());
        assert!(matches!(nodes, Err(CtdbError::Packet(_))), "{nodes:?}");
        let find = |socket: &Path| Connection::open(socket, TIMEOUT)?.find_databases(&["locking.tdb"]);
        let databases = ask(server(data), find);
        assert!(matches!(databases, Err(CtdbError::Packet(_))), "{databases:?}");
    }
}

#[test]
fn silence_takes_as_long_as_was_said() {
    let silent = |mut stream: UnixStream| wait_for_the_end(&mut stream);
    let answer = ask(silent, |socket| Connection::open(socket, TIMEOUT).map(drop));
    assert!(matches!(answer, Err(CtdbError::Timeout { .. })), "{answer:?}");
}

#[test]
fn talking_of_other_things_takes_no_longer() {
    let chatty =
        |mut stream: UnixStream| while stream.write_all(&packet(REQ_MESSAGE, 0, b"hello")).is_ok() {};
    let answer = ask(chatty, |socket| Connection::open(socket, TIMEOUT).map(drop));
    assert!(matches!(answer, Err(CtdbError::Timeout { .. })), "{answer:?}");

    let slow = |mut stream: UnixStream| {
        for byte in reply(1, 7, &[0; 1000]) {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    };
    let answer = ask(slow, |socket| Connection::open(socket, TIMEOUT).map(drop));
    assert!(matches!(answer, Err(CtdbError::Timeout { .. })), "{answer:?}");
}

#[test]
fn end_of_ctdbd_is_an_error_now_and_later() {
    let answer = ask(drop, |socket| Connection::open(socket, TIMEOUT).map(drop));
    assert!(matches!(answer, Err(CtdbError::Closed { .. } | CtdbError::Io { .. })), "{answer:?}");

    let one_answer = |mut stream: UnixStream| stream.write_all(&reply(1, 7, b"")).expect("the client reads");
    let answer = ask(one_answer, |socket| {
        let mut connection = Connection::open(socket, TIMEOUT)?;
        assert!(connection.node_map().is_err());
        connection.node_map()
    });
    assert!(matches!(answer, Err(CtdbError::Closed { .. } | CtdbError::Io { .. })), "{answer:?}");
}

#[test]
fn nobody_at_the_socket_is_an_error() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("socket");
    let answer = Connection::open(&socket, TIMEOUT);
    assert!(matches!(answer, Err(CtdbError::Connect { .. })), "{answer:?}");
    drop(UnixListener::bind(&socket).expect("it is new"));
    let answer = Connection::open(&socket, TIMEOUT);
    assert!(matches!(answer, Err(CtdbError::Connect { .. })), "{answer:?}");

    // One that is there and accepts nobody, as when it is stopped: its backlog fills up.
    let hung = directory.path().join("hung");
    let _listener = UnixListener::bind(&hung).expect("it is new");
    let asked = Instant::now();
    let clients: Vec<_> = (0..8).map(|_| Connection::open(&hung, TIMEOUT)).collect();
    assert!(clients.iter().all(Result::is_err), "nobody answers");
    assert!(asked.elapsed() < IN_TIME);
}
