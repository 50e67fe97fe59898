//! What a node finds on its disk: frames, records of the applied state, entries of the log. A snapshot that a peer
//! sends consists of the same records.
//!
//! An input is a byte that says what the rest is: `FOUND`, `SEALED` or `REPLAYED`.

use prost::Message;
use proto::convert::decode;
use proto::pb::storage::v1 as pb;
use statedb::state::invariants::{step_violations, violations};
use statedb::store::format::{self, Kind};
use statedb::{Command, Limits, LogId, Record, State, Timestamp};

use crate::pieces::{Pieces, join};
use crate::wire_conversions::golden_files;
use crate::{Seed, story};

/// The rest is a frame as it was found.
const FOUND: u8 = 0;

/// The rest is where to damage a frame, two bytes, how, one byte, and the payload of the frame.
const SEALED: u8 = 1;

/// The rest is pieces: records of a state, and the entries of the log that come after it. Each begins with a byte
/// that says which of the two it is: [`RECORD`] or [`ENTRY`].
const REPLAYED: u8 = 2;

/// A piece is a record.
const RECORD: u8 = 0;

/// A piece is an entry of the log.
const ENTRY: u8 = 1;

/// Every kind of frame.
const KINDS: [Kind; 4] = [Kind::LogEntry, Kind::AppliedRecord, Kind::AppliedMeta, Kind::Generation];

/// Where the frames are stored.
const CONTEXT: &[u8] = b"key";

/// Bounds that an input of some hundred bytes can reach.
const LIMITS: Limits =
    Limits { opens_max: 4, open_bytes_max: 256, shares_max: 3, outstanding_max: 16, ..Limits::DEFAULT };

/// Reads the rest as what its first byte says.
pub fn check(input: &[u8]) {
    let Some((what, rest)) = input.split_first() else { return };
    match *what {
        FOUND => KINDS.into_iter().for_each(|kind| check_found(kind, rest)),
        SEALED => KINDS.into_iter().for_each(|kind| check_sealed(kind, rest)),
        REPLAYED => replay(rest),
        _ => {}
    }
}

fn check_found(kind: Kind, framed: &[u8]) {
    match format::open(kind, CONTEXT, framed) {
        Ok(payload) => assert_eq!(format::seal(kind, CONTEXT, payload), framed),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A frame gives back what was put into it, and notices any byte that has changed.
fn check_sealed(kind: Kind, input: &[u8]) {
    let Some(([p0, p1, damage], payload)) = input.split_first_chunk() else { return };
    let mut framed = format::seal(kind, CONTEXT, payload);
    assert_eq!(format::open(kind, CONTEXT, &framed), Ok(payload));
    let position = usize::from(u16::from_le_bytes([*p0, *p1])) % framed.len();
    framed[position] ^= damage;
    assert_eq!(format::open(kind, CONTEXT, &framed).is_ok(), *damage == 0);
}

/// Loads a state and applies what the log has after it, as a node does when it starts.
fn replay(input: &[u8]) {
    let (mut records, mut entries) = (Vec::new(), Vec::new());
    for piece in Pieces(input) {
        match piece.split_first() {
            Some((&RECORD, record)) => records.extend(decode::<pb::Record, Record>("Record", record)),
            Some((&ENTRY, entry)) => entries.extend(pb::LogEntry::decode(entry)),
            _ => {}
        }
    }
    // Where there is no record, the state is that before the first entry. Nothing but rules leads on from there.
    let is_first = records.is_empty();
    let mut state = if is_first {
        State::new(LIMITS)
    } else {
        let Ok(state) = State::from_records(LIMITS, records) else { return };
        assert_eq!(State::from_records(LIMITS, state.records()).as_ref(), Ok(&state));
        if !violations(&state).is_empty() {
            return;
        }
        state
    };

    for entry in entries {
        let before = state.clone();
        if apply(&mut state, entry).is_none() {
            return;
        }
        if is_first {
            assert_eq!(violations(&state), [] as [String; 0]);
            assert_eq!(step_violations(&before, &state), [] as [String; 0]);
        }
    }
}

/// `None` if there is nothing to apply, or no place for it.
fn apply(state: &mut State, entry: pb::LogEntry) -> Option<()> {
    let index = state.applied().map_or(Some(0), |applied| applied.index.checked_add(1))?;
    let log_id = LogId { term: 1, index };
    match entry.payload? {
        pb::log_entry::Payload::Blank(_) | pb::log_entry::Payload::Membership(_) => state.skip(log_id),
        pb::log_entry::Payload::Command(proposed) => {
            let command = Command::try_from(proposed.command?).ok()?;
            let outcome = state.apply(log_id, Timestamp(proposed.proposed_at_ms), &command);
            assert!(!outcome.to_string().is_empty());
            // As the node does; otherwise they would gather.
            state.take_changes();
            assert!(state.take_events().iter().all(|event| !event.to_string().is_empty()));
        }
    }
    Some(())
}

/// A frame of every kind, and the stories: whole, as the log of a new cluster, and each of their states with what comes
/// after it.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let payload = b"payload";
    for kind in KINDS {
        let found = [&[FOUND], format::seal(kind, CONTEXT, payload).as_slice()].concat();
        seeds.push((format!("found-{kind:?}").to_lowercase(), found));
    }
    seeds.push(("sealed".to_owned(), [&[SEALED, 3, 0, 0x80][..], payload].concat()));

    for (name, log) in story::all() {
        let entries: Vec<_> = log.iter().map(|(at, command)| entry_piece(*at, command)).collect();
        seeds.push((format!("{name}-log"), replayed(&entries)));
        let mut state = State::new(LIMITS);
        for (index, (at, command)) in (0..).zip(&log) {
            state.apply(LogId { term: 1, index }, *at, command);
            let mut pieces: Vec<_> = state.records().map(|record| record_piece(&record)).collect();
            pieces.extend(entries.get(index as usize + 1).cloned());
            seeds.push((format!("{name}-state-{index:02}"), replayed(&pieces)));
        }
    }
    for (message, name, record) in golden_files() {
        if message == "record" {
            let meta = Record::Meta { applied: None, now: Timestamp::default(), next_event: 0 };
            let pieces = [record_piece(&meta), [&[RECORD], record.as_slice()].concat()];
            seeds.push((format!("golden-{name}"), replayed(&pieces)));
        }
    }
    seeds
}

fn record_piece(record: &Record) -> Vec<u8> {
    [&[RECORD], pb::Record::from(record).encode_to_vec().as_slice()].concat()
}

fn entry_piece(at: Timestamp, command: &Command) -> Vec<u8> {
    let proposed = pb::ProposedCommand { proposed_at_ms: at.0, command: Some(command.into()) };
    let entry = pb::LogEntry { payload: Some(pb::log_entry::Payload::Command(proposed)) };
    [&[ENTRY], entry.encode_to_vec().as_slice()].concat()
}

fn replayed(pieces: &[Vec<u8>]) -> Vec<u8> {
    [vec![REPLAYED], join(pieces.iter().map(Vec::as_slice))].concat()
}
