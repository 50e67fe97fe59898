//! The messages of every gRPC service and of the log, and their conversions to checked types.
//!
//! An input is a byte that says which of `MESSAGES` it is, and the message.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use proto::WireError;
use proto::convert::{Asked, Attach, answer};
use proto::pb::events::v1 as events;
use proto::pb::handles::v1 as handles;
use proto::pb::ops::v1 as ops;
use proto::pb::raft::v1 as raft;
use proto::pb::smb::v1 as smb;
use proto::pb::storage::v1 as storage;
use statedb::{
    Command, Create, Event, Limits, Lock, LogId, Open, OpenDescription, Outcome, Record, Rejection, Request,
    State,
};

use crate::{Seed, story};

/// Checks an encoded message.
type Check = fn(&[u8]);

macro_rules! messages {
    ($($message:ty => $then:expr,)+) => {
        /// Every message that is received or read by itself, and what is checked of it beside its bytes. A place
        /// in this list is in the corpus: new messages go to the end.
        const MESSAGES: &[(&str, Check)] =
            &[$((stringify!($message), |bytes| message::<$message>(bytes, $then)),)+];
    };
}
messages! {
    storage::Command => converts::<_, Command>,
    storage::Record => converts::<_, Record>,
    storage::FromSmbNode => proposed_request_converts,
    storage::LogEntry => entry_converts,
    storage::AppliedMeta => drop,
    smb::Outcome => converts::<_, Outcome>,
    smb::Rejection => converts::<_, Rejection>,
    smb::Open => converts::<_, Open>,
    smb::OpenDescription => converts::<_, OpenDescription>,
    smb::Create => converts::<_, Create>,
    smb::Lock => converts::<_, Lock>,
    raft::AppendRequest => |request| {
        let payloads = request.entries.iter().map(|entry| storage::LogEntry::decode(&entry.payload[..]));
        payloads.filter_map(Result::ok).for_each(entry_converts);
    },
    raft::AppendResponse => drop,
    raft::VoteRequest => drop,
    raft::VoteResponse => drop,
    raft::SnapshotChunk => |chunk| {
        if let Some(raft::snapshot_chunk::Chunk::Records(records)) = chunk.chunk {
            records.records.into_iter().for_each(converts::<_, Record>);
        }
    },
    raft::SnapshotResponse => drop,
    raft::ProposeRequest => |request| request.command.into_iter().for_each(converts::<_, Command>),
    raft::ProposeResponse => |response| {
        if let Some(raft::propose_response::Result::Applied(applied)) = response.result {
            applied.outcome.into_iter().for_each(converts::<_, Outcome>);
        }
    },
    raft::KeepAliveRequest => drop,
    raft::KeepAliveResponse => drop,
    raft::FormRequest => drop,
    raft::FormResponse => drop,
    ops::StatusResponse => drop,
    ops::HandlesRequest => drop,
    ops::HandlesResponse => |response| response.opens.into_iter().for_each(converts::<_, Open>),
    handles::AttachRequest => |request| {
        let _ = Attach::try_from(request);
    },
    handles::AttachEvent => drop,
    handles::HandleRequest => asks,
    handles::HandleResponse => |response| {
        if let Some(handles::handle_response::Result::Answer(answer)) = response.result {
            answer_converts(answer);
        }
    },
    handles::Answer => answer_converts,
    handles::CreateRequest => asks,
    handles::AckOplockBreakRequest => asks,
    handles::AckLeaseBreakRequest => asks,
    handles::LockRequest => asks,
    handles::OperateRequest => asks,
    handles::NoteRequest => asks,
    handles::RequestResiliencyRequest => asks,
    handles::CloseRequest => asks,
    handles::DisconnectRequest => asks,
    handles::EndSessionRequest => asks,
    handles::ReplaceSessionRequest => asks,
    handles::EndTreeConnectRequest => asks,
    handles::FileDeletedRequest => asks,
    handles::ServeShareRequest => asks,
    handles::ReleaseShareRequest => asks,
    handles::GrantRequest => asks,
    handles::UpdateRequest => asks,
    handles::ReclaimRequest => asks,
    events::WatchRequest => drop,
    events::WatchResponse => |response| match response.response {
        Some(events::watch_response::Response::Event(event)) => converts::<_, Event>(event),
        Some(events::watch_response::Response::OpenNow(open)) => converts::<_, Open>(*open),
        _ => {}
    },
    raft::Hello => drop,
    raft::HelloAnswer => drop,
}

/// Decodes the message that the first byte says.
pub fn check(input: &[u8]) {
    let Some((place, message)) = input.split_first() else { return };
    if let Some((_, check)) = MESSAGES.get(usize::from(*place)) {
        check(message);
    }
}

/// Decodes a message; what can be decoded is the same after it was encoded and decoded again.
fn message<M: Message + Default + Debug + PartialEq>(bytes: &[u8], then: impl FnOnce(M)) {
    let Ok(message) = M::decode(bytes) else { return };
    assert_eq!(M::decode(message.encode_to_vec().as_slice()).as_ref(), Ok(&message));
    then(message);
}

/// Converts a message; what makes sense is the same after it was converted back and again.
fn converts<M, T>(message: M)
where
    M: Message + Default + for<'a> From<&'a T>,
    T: TryFrom<M, Error = WireError> + Debug + PartialEq,
{
    match T::try_from(message) {
        Ok(checked) => {
            let again = proto::convert::decode::<M, T>("message", &M::from(&checked).encode_to_vec());
            assert_eq!(again.as_ref(), Ok(&checked));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn request_converts<M>(request: M)
where
    M: for<'a> From<&'a Request>,
    Request: TryFrom<M, Error = WireError>,
{
    match Request::try_from(request) {
        Ok(checked) => assert_eq!(Request::try_from(M::from(&checked)).as_ref(), Ok(&checked)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn proposed_request_converts(from: storage::FromSmbNode) {
    from.request.into_iter().for_each(request_converts);
}

/// What an SMB server asks for is converted in one direction only, but for the request in it.
fn asks<M: TryInto<Asked, Error = WireError>>(message: M) {
    match message.try_into() {
        Ok(asked) => request_converts(handles::handle_request::Request::from(&asked.request)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn answer_converts(answer: handles::Answer) {
    answer.outcome.into_iter().for_each(converts::<_, Outcome>);
    answer.open.into_iter().for_each(converts::<_, OpenDescription>);
}

fn entry_converts(entry: storage::LogEntry) {
    if let Some(storage::log_entry::Payload::Command(proposed)) = entry.payload {
        proposed.command.into_iter().for_each(converts::<_, Command>);
    }
}

/// The golden files, what comes of the stories, and a message of every other kind.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    let mut seeds = Seeds::default();
    for (message, name, bytes) in golden_files() {
        // Golden files are of stored messages; that some of these are words of SMB is no matter to them.
        let place = MESSAGES.iter().position(|(known, _)| {
            let known = known.strip_prefix("storage::").or(known.strip_prefix("smb::"));
            known.is_some_and(|known| known.eq_ignore_ascii_case(&message))
        });
        let place = place.unwrap_or_else(|| panic!("{message} is not among the messages"));
        seeds.add_at(place, &name, &bytes);
    }
    for (name, log) in story::all() {
        add_story(&mut seeds, name, &log);
    }
    add_others(&mut seeds);
    seeds.0
}

/// Commands, and the outcomes, events and records that they make.
fn add_story(seeds: &mut Seeds, name: &str, log: &story::Log) {
    let mut state = State::new(Limits::DEFAULT);
    for (index, (at, command)) in (0..).zip(log) {
        let name = format!("{name}-{index}");
        seeds.add(&name, &storage::Command::from(command));
        if let Command::FromSmbNode { proposer, request } = command {
            let request = Some(request.into());
            let (incarnation, request_id) = (proposer.owner.incarnation.0, proposer.sequence);
            seeds.add(&name, &handles::HandleRequest { incarnation, request_id, request });
        }
        let outcome = state.apply(LogId { term: 1, index }, *at, command);
        seeds.add(&name, &answer(&outcome, None, *at));
        for event in state.take_events() {
            let response = Some(events::watch_response::Response::Event((&event).into()));
            seeds.add(
                &format!("{name}-{}", event.sequence),
                &events::WatchResponse { now_ms: at.0, response },
            );
        }
    }
    for (index, record) in state.records().enumerate() {
        seeds.add(&format!("{name}-{index}"), &storage::Record::from(&record));
    }
}

/// Messages that are neither stored nor made by the state.
fn add_others(seeds: &mut Seeds) {
    let envelope = Some(raft::Envelope { cluster: 7, from: 1, to: 2 });
    let vote = Some(raft::Vote { term: 3, voted_for: 1, committed: true });
    let log_id = Some(storage::LogId { term: 3, index: 99 });
    let owner = Some(smb::Owner { node_id: 1, incarnation: 2 });
    let command = storage::Command::from(&Command::ExpireOpens);
    let proposed = storage::ProposedCommand { proposed_at_ms: 1000, command: Some(command.clone()) };
    let payload = storage::LogEntry { payload: Some(storage::log_entry::Payload::Command(proposed)) };
    let entries = vec![raft::Entry { log_id, payload: payload.encode_to_vec() }];
    seeds.add("sample", &raft::AppendRequest { vote, prev_log_id: log_id, entries, leader_commit: log_id });
    seeds.add("sample", &raft::Hello { envelope, lane: raft::Lane::Entries.into() });
    seeds.add("sample", &raft::HelloAnswer { refused_because: Some("a stranger".to_owned()) });
    let appended = raft::append_response::Result::Appended(raft::Appended { upto: log_id });
    seeds.add("sample", &raft::AppendResponse { result: Some(appended) });
    seeds.add("sample", &raft::VoteRequest { envelope, vote, last_log_id: log_id });
    seeds.add("sample", &raft::VoteResponse { vote, granted: true, last_log_id: log_id });
    let meta = storage::record::Record::Meta(storage::StateMeta { applied: log_id, ..Default::default() });
    let records = raft::SnapshotRecords { records: vec![storage::Record { record: Some(meta) }] };
    seeds.add("sample", &raft::SnapshotChunk { chunk: Some(raft::snapshot_chunk::Chunk::Records(records)) });
    seeds.add("sample", &raft::SnapshotResponse { vote });
    seeds.add("sample", &raft::ProposeRequest { id: 9, command: Some(command) });
    let applied = raft::Applied { log_id, outcome: Some((&Outcome::Granted).into()) };
    let applied = raft::propose_response::Result::Applied(applied);
    seeds.add("sample", &raft::ProposeResponse { id: 9, result: Some(applied) });
    seeds.add("sample", &raft::KeepAliveRequest { envelope, owner });
    let go_on = raft::keep_alive_response::Answer::GoOn(raft::GoOn { quorum_age_us: 5 });
    seeds.add("sample", &raft::KeepAliveResponse { answer: Some(go_on) });
    seeds.add("sample", &raft::FormRequest { envelope, all_are_new: true });
    seeds.add("sample", &raft::FormResponse { is_new: true });

    let share = ops::ShareStatus { share: "data".to_owned(), owner };
    let warnings = vec!["node 2 is down".to_owned()];
    let status = ops::StatusResponse { node_id: 1, shares: vec![share], warnings, ..Default::default() };
    seeds.add("sample", &status);
    seeds.add("sample", &ops::HandlesRequest { share: Some("data".to_owned()), ..Default::default() });

    seeds.add(
        "sample",
        &handles::AttachRequest { instance: vec![19; 16], arbiter: smb::Arbiter::Cluster.into() },
    );
    let attached =
        handles::Attached { incarnation: 2, lease_ms: 3000, node_id: 1, lease_until_monotonic_ns: 5 };
    let event = Some(handles::attach_event::Event::Attached(attached));
    seeds.add("sample", &handles::AttachEvent { event });
    seeds.add("sample", &events::WatchRequest { after_sequence: Some(3), incarnation: Some(2) });
}

/// Seeds, each under the name of its message.
#[derive(Default)]
struct Seeds(Vec<Seed>);

impl Seeds {
    fn add<M: Message>(&mut self, name: &str, message: &M) {
        let full = std::any::type_name::<M>();
        let place = MESSAGES.iter().position(|(known, _)| {
            let (package, message) = known.split_once("::").unwrap_or_default();
            full.ends_with(&format!("::{package}::v1::{message}"))
        });
        let place = place.unwrap_or_else(|| panic!("{full} is not among the messages"));
        self.add_at(place, name, &message.encode_to_vec());
    }

    fn add_at(&mut self, place: usize, name: &str, message: &[u8]) {
        let number = u8::try_from(place).expect("there are fewer than 256 messages");
        let known = MESSAGES[place].0.replace("::", "-");
        self.0.push((format!("{known}-{name}"), [&[number], message].concat()));
    }
}

/// The golden files of the stored messages: message in lower case, name, bytes.
pub(crate) fn golden_files() -> Vec<(String, String, Vec<u8>)> {
    let entries = |directory: &Path| {
        let entries =
            fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        entries.map(|entry| entry.expect("the directory can be read").path()).collect::<Vec<PathBuf>>()
    };
    let mut files = Vec::new();
    for directory in entries(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/testdata/v1")) {
        for file in entries(&directory) {
            let bytes = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let [message, name] = [&directory, &file]
                .map(|path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
            files.push((message, name, bytes));
        }
    }
    files.sort();
    files
}
