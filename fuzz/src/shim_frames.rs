//! What the shim and the sidecar say to each other.
//!
//! An input is four bytes that say where the stream is cut, and the stream.

use std::fmt::Debug;

use frame::frame::PROTOCOL;
use frame::{Database, FrameBuffer, FrameError, Record, RecordKey, Reply, Request, TdbError};

use crate::Seed;

/// How many lengths of pieces an input has. They are used in turn, for ever.
const CUTS_LEN: usize = 4;

/// Reads the stream as one process may send it, in pieces, and its frames as the two sides do.
pub fn check(input: &[u8]) {
    let Some((cuts, stream)) = input.split_first_chunk::<CUTS_LEN>() else { return };
    check_frame(stream);

    let whole = cut_into_frames([stream].into_iter());
    assert_eq!(cut_into_frames(in_pieces(cuts, stream)), whole, "the pieces make a difference");
    for frame in &whole.0 {
        check_frame(frame);
    }
}

/// A stream, cut at odd places.
fn in_pieces<'a>(cuts: &'a [u8; CUTS_LEN], mut stream: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    cuts.iter().cycle().map_while(move |cut| {
        let (piece, rest) = stream.split_at(stream.len().min(1 + usize::from(*cut)));
        stream = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The frames of a stream, and why there are no more of them.
fn cut_into_frames<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Option<FrameError>) {
    let mut buffer = FrameBuffer::new();
    let mut frames = Vec::new();
    for piece in pieces {
        buffer.push(piece).expect("there is memory");
        loop {
            match buffer.take_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fn check_frame(frame: &[u8]) {
    check_message(frame, Request::decode, Request::encode);
    check_message(frame, Reply::decode, Reply::encode);
}

/// A message has one form only, so what was decoded is encoded to the same bytes.
fn check_message<M: Debug>(
    frame: &[u8],
    decode: impl Fn(&[u8]) -> Result<(u32, M), FrameError>,
    encode: impl Fn(&M, u32, &mut Vec<u8>) -> Result<(), FrameError>,
) {
    match decode(frame) {
        Ok((request_id, message)) => {
            let mut again = Vec::new();
            encode(&message, request_id, &mut again).expect("it came out of a frame");
            assert_eq!(again, frame, "{message:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A frame of every kind, alone and in one stream.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    let record = |value| Record { database: Database::Leases, key: vec![7; 32], value };
    let wanted = |database| RecordKey { database, key: vec![5; 24] };
    let requests = [
        ("hello", Request::Hello { protocol: PROTOCOL, instance: [0xA1; 16], main_pid: 17, pid: 4711 }),
        (
            "store",
            Request::Store { database: Database::OpenGlobal, key: vec![0, 0, 0, 9], value: vec![3; 64] },
        ),
        ("delete", Request::Delete { database: Database::TconGlobal, key: vec![1, 2, 3, 4] }),
        ("records", Request::Records { records: vec![record(None), record(Some(vec![1, 2]))] }),
        ("abandon", Request::Abandon { tdb_error: TdbError::Oom }),
        ("look", Request::Look { database: Database::OpenGlobal, key: vec![0, 0, 0, 9] }),
    ];
    let replies = [
        ("welcome", Reply::Welcome),
        ("proceed", Reply::Proceed),
        ("refuse", Reply::Refuse { tdb_error: TdbError::Lock }),
        ("need", Reply::Need { keys: vec![wanted(Database::Locking), wanted(Database::Brlock)] }),
        ("fence", Reply::Fence),
    ];

    let mut frames = Vec::new();
    for (request_id, (name, request)) in (1..).zip(requests) {
        let mut frame = Vec::new();
        request.encode(request_id, &mut frame).expect("it is small");
        frames.push((name, frame));
    }
    for (request_id, (name, reply)) in (1..).zip(replies) {
        let mut frame = Vec::new();
        reply.encode(request_id, &mut frame).expect("it is small");
        frames.push((name, frame));
    }
    let stream = frames.iter().flat_map(|(_, frame)| frame).copied().collect();
    frames.push(("stream", stream));

    let cuts = [0, 2, 11, 40];
    frames.into_iter().map(|(name, frame)| (name.to_owned(), [&cuts[..], &frame].concat())).collect()
}
