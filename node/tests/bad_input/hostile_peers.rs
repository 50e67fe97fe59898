//! Hostile bytes and messages on the port for peers and operators: refused with a status that says why, and the node
//! lives.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use node::config::Config;
use prost::Message;
use proto::pb::raft::v1 as pb;
use proto::pb::raft::v1::raft_client::RaftClient;
use proto::pb::smb::v1 as smb;
use proto::pb::storage::v1 as storage;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::sidecar::{PATIENCE, Sidecar, Site, assert_says, wait_until};

/// What a lane begins with, as it is on the wire: not what the node under test says that it is.
const PREFACE: &[u8; 8] = b"HOLDFAST";

/// A node of three, of which it is the only one that runs.
pub(crate) struct Lonely {
    pub(crate) site: Site,
    sidecar: Sidecar,
    fingerprint: u64,
}

impl Lonely {
    pub(crate) fn start() -> Self {
        let site = Site::with_members(3);
        let sidecar = Sidecar::spawn(site.run());
        sidecar.wait_for_log("waiting for all nodes of a new cluster");
        let config = Config::load(&site.config()).expect("it is sound");
        Self { site, sidecar, fingerprint: config.cluster.fingerprint() }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.site.address()).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream
    }

    async fn peer(&self) -> RaftClient<Channel> {
        RaftClient::new(self.site.connect().await)
    }

    /// Opens a lane as node 2 would.
    fn lane(&self, purpose: pb::Lane) -> Lane {
        let mut lane = Lane(self.connect());
        lane.send(PREFACE);
        lane.say(&pb::Hello { envelope: Some(self.envelope()), lane: purpose.into() });
        let answer = lane.hear::<pb::HelloAnswer>().expect("an answer");
        assert_eq!(answer.refused_because, None);
        lane
    }

    /// As node 2 would write it.
    fn envelope(&self) -> pb::Envelope {
        pb::Envelope { cluster: self.fingerprint, from: 2, to: 1 }
    }

    #[track_caller]
    pub(crate) fn assert_well(mut self) {
        self.sidecar.assert_lives();
        assert_eq!(self.site.status()["node_id"], 1);
        self.sidecar.stop();
    }
}

/// A connection for frames.
struct Lane(TcpStream);

impl Lane {
    fn send(&mut self, bytes: &[u8]) {
        // The other end may have hung up.
        let _ = self.0.write_all(bytes);
    }

    fn say(&mut self, message: &impl Message) {
        let message = message.encode_to_vec();
        let len = u32::try_from(message.len()).expect("it is short");
        self.send(&[&len.to_le_bytes()[..], &message].concat());
    }

    /// The next message, or `None` after the end of the connection.
    fn hear<M: Message + Default>(&mut self) -> Option<M> {
        let mut len = [0; 4];
        match self.0.read_exact(&mut len) {
            Ok(()) => {}
            Err(error) => {
                use io::ErrorKind::{ConnectionReset, UnexpectedEof};
                assert!(matches!(error.kind(), ConnectionReset | UnexpectedEof), "{error}");
                return None;
            }
        }
        let mut message = vec![0; u32::from_le_bytes(len) as usize];
        self.0.read_exact(&mut message).expect("the rest of it");
        Some(M::decode(&message[..]).expect("a message"))
    }
}

#[track_caller]
pub(crate) fn assert_refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, expected: &[&str]) {
    let status = answer.expect_err("it is refused");
    assert_eq!(status.code(), code, "{status}");
    assert_says(status.message(), expected);
}

#[test]
fn another_protocol_on_the_port_is_hung_up_on() {
    let node = Lonely::start();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let huge_frame = [preface.as_slice(), &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat();
    let garbage: Vec<u8> = (0..=255).cycle().skip(1).take(64 * 1024).collect();
    for (what, bytes) in [
        ("HTTP/1.1", b"GET /status HTTP/1.1\r\nHost: holdfast\r\n\r\n".to_vec()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("garbage", garbage),
        ("a huge HTTP/2 frame", huge_frame),
    ] {
        let mut stream = node.connect();
        // It may hang up before everything is sent.
        let _ = stream.write_all(&bytes);
        // Some protocols wait for more of what looks like their beginning.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{what}: {error}"),
        }
    }
    node.assert_well();
}

#[tokio::test]
async fn strangers_and_the_misled_are_told_why_they_are_refused() {
    let node = Lonely::start();
    let mut peer = node.peer().await;
    let sound = node.envelope();
    let keep_alive =
        |envelope| pb::KeepAliveRequest { envelope, owner: Some(smb::Owner { node_id: 2, incarnation: 1 }) };

    let stranger = pb::Envelope { cluster: sound.cluster ^ 1, ..sound };
    assert_refused(
        peer.keep_alive(keep_alive(Some(stranger))).await,
        Code::FailedPrecondition,
        &["another cluster configuration", "compare their [cluster] sections"],
    );
    for misled in [
        pb::Envelope { to: 3, ..sound },
        pb::Envelope { from: 9, ..sound },
        pb::Envelope { from: 1, ..sound },
    ] {
        let expected = format!("from node {} to node {} has come to node 1", misled.from, misled.to);
        assert_refused(
            peer.keep_alive(keep_alive(Some(misled))).await,
            Code::FailedPrecondition,
            &[&expected, "is an id used twice?"],
        );
        let vote = pb::VoteRequest { envelope: Some(misled), vote: None, last_log_id: None };
        assert_refused(peer.vote(vote).await, Code::FailedPrecondition, &[&expected]);
    }
    assert_refused(peer.keep_alive(keep_alive(None)).await, Code::InvalidArgument, &["envelope"]);
    peer.keep_alive(keep_alive(Some(sound))).await.expect("a peer is answered");
    node.assert_well();
}

#[tokio::test]
async fn messages_that_make_no_sense_are_told_which_field() {
    let node = Lonely::start();
    let mut peer = node.peer().await;
    let envelope = Some(node.envelope());
    let mut proposals = node.lane(pb::Lane::Proposals);
    let short =
        storage::RegisterNode { node_id: 2, instance: vec![1, 2, 3], ..storage::RegisterNode::default() };
    let short = storage::Command { command: Some(storage::command::Command::RegisterNode(short)) };
    let empty = storage::Command::default();
    for (id, command, expected) in [
        (1, None, &["command"][..]),
        (u64::MAX, Some(empty), &["Command"]),
        (1, Some(short), &["instance", "3"]),
    ] {
        proposals.say(&pb::ProposeRequest { command, id });
        let answer = proposals.hear::<pb::ProposeResponse>().expect("an answer");
        assert_eq!(answer.id, id);
        let Some(pb::propose_response::Result::Refused(refused)) = answer.result else {
            panic!("{answer:?}")
        };
        assert_says(&refused.reason, expected);
    }

    let vote = pb::VoteRequest { envelope, vote: None, last_log_id: None };
    assert_refused(peer.vote(vote).await, Code::InvalidArgument, &["vote"]);
    assert_refused(peer.pre_vote(vote).await, Code::InvalidArgument, &["vote"]);
    let keep_alive = pb::KeepAliveRequest { envelope, owner: None };
    assert_refused(peer.keep_alive(keep_alive).await, Code::InvalidArgument, &["owner"]);

    let records =
        pb::SnapshotChunk { chunk: Some(pb::snapshot_chunk::Chunk::End(pb::SnapshotEnd { records: 0 })) };
    let headless = peer.install_snapshot(tokio_stream::iter([records])).await;
    assert_refused(headless, Code::InvalidArgument, &["head"]);

    // Without a vote: its sender is broken, and gets no answer.
    let mut entries = node.lane(pb::Lane::Entries);
    entries.say(&pb::AppendRequest::default());
    assert_eq!(entries.hear::<pb::AppendResponse>(), None);
    node.assert_well();
}

/// What only a broken peer sends: a log that contradicts itself, or numbers at the end of their range.
#[test]
fn entries_that_make_no_log_are_not_taken() {
    let log_id = |index| storage::LogId { term: 1, index };
    let blank = || storage::LogEntry { payload: Some(storage::log_entry::Payload::Blank(storage::Blank {})) };
    let entry = |log_id| pb::Entry { log_id: Some(log_id), payload: blank().encode_to_vec() };
    let sound = pb::AppendRequest {
        vote: Some(pb::Vote { term: 1, voted_for: 2, committed: true }),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    };
    let broken = [
        ("a hole", pb::AppendRequest { entries: vec![entry(log_id(0)), entry(log_id(2))], ..sound.clone() }),
        ("no beginning", pb::AppendRequest { entries: vec![entry(log_id(5))], ..sound.clone() }),
        (
            "a gap after what is before",
            pb::AppendRequest {
                prev_log_id: Some(log_id(3)),
                entries: vec![entry(log_id(9))],
                ..sound.clone()
            },
        ),
        (
            "an earlier term",
            pb::AppendRequest {
                entries: vec![entry(log_id(0)), entry(storage::LogId { term: 0, index: 1 })],
                ..sound.clone()
            },
        ),
        (
            "a term after the leader's",
            pb::AppendRequest { entries: vec![entry(storage::LogId { term: 2, index: 0 })], ..sound.clone() },
        ),
        (
            "the last index",
            pb::AppendRequest {
                prev_log_id: Some(log_id(u64::MAX - 1)),
                entries: vec![entry(log_id(u64::MAX))],
                ..sound.clone()
            },
        ),
        ("the last index before", pb::AppendRequest { prev_log_id: Some(log_id(u64::MAX)), ..sound.clone() }),
        ("the last commit", pb::AppendRequest { leader_commit: Some(log_id(u64::MAX)), ..sound.clone() }),
        (
            "a vote that is not granted",
            pb::AppendRequest {
                vote: sound.vote.map(|vote| pb::Vote { committed: false, ..vote }),
                ..sound.clone()
            },
        ),
    ];
    let mut node = Lonely::start();
    for (what, request) in broken {
        let mut lane = node.lane(pb::Lane::Entries);
        lane.say(&request);
        assert_eq!(lane.hear::<pb::AppendResponse>(), None, "{what} is acknowledged");
        node.sidecar.assert_lives();
    }
    node.assert_well();
}

#[tokio::test]
async fn a_snapshot_that_makes_no_state_is_not_taken() {
    use pb::snapshot_chunk::Chunk;
    let mut node = Lonely::start();
    let mut peer = node.peer().await;
    let voters = storage::VoterSet { node_ids: vec![1, 2, 3] };
    let member = |node_id| storage::Member { node_id, address: "127.0.0.1:1".to_owned() };
    let members = [1, 2, 3].map(member).to_vec();
    let membership = storage::Membership { configs: vec![voters], members };
    let head = |index| {
        Chunk::Head(pb::SnapshotHead {
            envelope: Some(node.envelope()),
            vote: Some(pb::Vote { term: 1, voted_for: 2, committed: true }),
            last_log_id: Some(storage::LogId { term: 1, index }),
            membership: Some(storage::StoredMembership {
                log_id: None,
                membership: Some(membership.clone()),
            }),
        })
    };
    let records = |records| Chunk::Records(pb::SnapshotRecords { records });
    let end = |records| Chunk::End(pb::SnapshotEnd { records });
    let record = |record| storage::Record { record: Some(record) };
    let meta = |index| {
        let applied = Some(storage::LogId { term: 1, index });
        record(storage::record::Record::Meta(storage::StateMeta { applied, ..storage::StateMeta::default() }))
    };
    for (what, chunks) in [
        ("no records", vec![head(5), end(0)]),
        ("other records than announced", vec![head(5), records(vec![meta(5)]), end(2)]),
        ("no end", vec![head(5), records(vec![meta(5)])]),
        ("two heads", vec![head(5), head(5), end(0)]),
        ("an undecodable record", vec![head(5), records(vec![storage::Record::default()]), end(1)]),
        ("another state than announced", vec![head(5), records(vec![meta(4)]), end(1)]),
        ("two beginnings", vec![head(5), records(vec![meta(5), meta(5)]), end(2)]),
        ("the last index", vec![head(u64::MAX), records(vec![meta(u64::MAX)]), end(1)]),
    ] {
        let chunks = chunks.into_iter().map(|chunk| pb::SnapshotChunk { chunk: Some(chunk) });
        let answer = peer.install_snapshot(tokio_stream::iter(chunks.collect::<Vec<_>>())).await;
        let status = answer.expect_err(what);
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
        node.sidecar.assert_lives();
    }
    node.assert_well();
}

#[test]
fn strangers_are_told_why_no_lane_is_opened_for_them() {
    let node = Lonely::start();
    let sound = node.envelope();
    let entries = pb::Lane::Entries.into();
    for (envelope, lane, expected) in [
        (None, entries, &["envelope"][..]),
        (
            Some(pb::Envelope { cluster: sound.cluster ^ 1, ..sound }),
            entries,
            &["another cluster configuration"],
        ),
        (Some(pb::Envelope { to: 3, ..sound }), entries, &["from node 2 to node 3 has come to node 1"]),
        (
            Some(pb::Envelope { from: 9, ..sound }),
            entries,
            &["from node 9 to node 1", "is an id used twice?"],
        ),
        (Some(sound), 0, &["lane", "none that is known"]),
        (Some(sound), 77, &["lane", "none that is known"]),
    ] {
        let mut stranger = Lane(node.connect());
        stranger.send(PREFACE);
        stranger.say(&pb::Hello { envelope, lane });
        let answer = stranger.hear::<pb::HelloAnswer>().expect("an answer");
        assert_says(&answer.refused_because.expect("it is refused"), expected);
        assert_eq!(stranger.hear::<pb::HelloAnswer>(), None, "and it is hung up");
    }
    node.assert_well();
}

#[test]
fn frames_that_make_no_sense_cost_the_lane_and_nothing_else() {
    let node = Lonely::start();
    let length = |length: u32| length.to_le_bytes().to_vec();
    for (what, bytes) in [
        ("the largest length", length(u32::MAX)),
        ("a length beyond every message", length(64 * 1024 * 1024)),
        ("what is no message", [length(3), vec![0xff; 3]].concat()),
        ("a field longer than its frame", [length(2), vec![0x12, 0x7f]].concat()),
    ] {
        // Where the hello should be, and after it.
        let mut hello = Lane(node.connect());
        hello.send(PREFACE);
        hello.send(&bytes);
        assert_eq!(hello.hear::<pb::HelloAnswer>(), None, "{what}");
        for purpose in [pb::Lane::Entries, pb::Lane::Proposals] {
            let mut lane = node.lane(purpose);
            lane.send(&bytes);
            assert_eq!(lane.hear::<pb::ProposeResponse>(), None, "{what} on {purpose:?}");
        }
    }
    // Almost a lane, and half of one.
    let mut other = Lane(node.connect());
    other.send(b"HTTP/1.1");
    assert_eq!(other.hear::<pb::HelloAnswer>(), None);
    drop(node.lane(pb::Lane::Entries));
    let mut cut_off = node.lane(pb::Lane::Proposals);
    cut_off.send(&length(1000));
    drop(cut_off);
    node.assert_well();
}

#[test]
fn a_message_beyond_every_limit_is_refused_before_it_is_held() {
    let node = Lonely::start();
    let mut lane = node.lane(pb::Lane::Proposals);
    let long = vec![0; 64 * 1024 * 1024];
    lane.send(&u32::try_from(long.len()).expect("it fits").to_le_bytes());
    lane.send(&long);
    assert_eq!(lane.hear::<pb::ProposeResponse>(), None);
    let peak = std::fs::read_to_string(format!("/proc/{}/status", node.sidecar.pid())).expect("Linux");
    let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak").trim().to_owned();
    let peak_kib: u64 = peak.trim_end_matches(" kB").parse().expect("a number");
    // What a node needs by itself, and one message of the longest kind.
    assert!(peak_kib < 128 * 1024, "it held {peak}");
    node.assert_well();
}

#[test]
fn connections_that_use_up_the_descriptors_are_said_and_survived() {
    let site = Site::alone();
    let mut sidecar = Sidecar::spawn(site.run_after("ulimit -n 128"));
    sidecar.wait_for_log("a new cluster is formed");
    let mut silent = Vec::new();
    let exhausted = "cannot accept a connection of a peer or an operator error=Too many open files";
    wait_until(
        || {
            // Whether the backlog has room does not matter.
            silent.extend(TcpStream::connect_timeout(&site.address(), Duration::from_millis(100)));
            sidecar.log().contains(exhausted)
        },
        || "the descriptors are not used up".to_owned(),
    );
    sidecar.assert_lives();
    drop(silent);
    assert_eq!(site.status()["role"], "leader");
    sidecar.stop();
}
