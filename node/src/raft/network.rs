//! From this node to its peers.
//!
//! Entries, heartbeats and proposals go over lanes (`lane`), everything else over gRPC. Several connections per peer, so
//! that a snapshot or a burst of entries or proposals does not hold up a heartbeat: lanes for entries, for heartbeats
//! and for proposals, gRPC for snapshots and votes and for signs of life. All are made when they are first needed and
//! again after they broke; a peer that died closes them and is noticed at once, one that was cut off when it has
//! been silent for as long as a leader's lease.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{BasicNode, OptionalSend, RaftNetworkFactory};
use prost::Message;
use proto::pb::raft::v1 as pb;
use proto::pb::raft::v1::raft_client::RaftClient;
use proto::pb::raft::v1::snapshot_chunk::Chunk;
use proto::pb::storage::v1 as stored;
use statedb::Record;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tracing::{info, warn};

use super::convert;
use super::lane::{Forwarder, LaneError, LeaderLane};
use super::state_machine::SnapshotState;
use super::types::{TypeConfig, Vote};
use super::{MESSAGE_LEN_MAX, RaftTiming, StartError};
use crate::telemetry::chain;

/// A message of a snapshot is full when it has so many bytes. One record more fits below [`MESSAGE_LEN_MAX`]: an open
/// with its image and all the locks that it may have takes half a megabyte.
const SNAPSHOT_CHUNK_LEN: usize = 1024 * 1024;

/// How many messages of a snapshot are ready before the peer has taken them.
const SNAPSHOT_CHUNKS_AHEAD: usize = 2;

/// How often a peer is looked for that needs a snapshot and is not there.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The peers of this node, and how to reach them.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    id: u64,
    fingerprint: u64,
    connections: BTreeMap<u64, Connections>,
    /// After this long without an answer a peer counts as silent.
    silence_max: Duration,
}

#[derive(Debug)]
struct Connections {
    address: String,
    bulk: Channel,
    control: Channel,
    forwarder: Forwarder,
}

impl Peers {
    /// Connects to nobody yet. Called on a runtime, which runs what forwards proposals.
    pub(super) fn new(
        id: u64,
        fingerprint: u64,
        voters: &BTreeMap<u64, String>,
        timing: RaftTiming,
    ) -> Result<Self, StartError> {
        let silence_max = timing.election_timeout_max;
        let mut connections = BTreeMap::new();
        for (peer, address) in voters.iter().filter(|(peer, _)| **peer != id) {
            let endpoint = endpoint(address, timing).map_err(|source| StartError::Address {
                node: *peer,
                address: address.clone(),
                source,
            })?;
            let (bulk, control) = (endpoint.connect_lazy(), endpoint.connect_lazy());
            let envelope = pb::Envelope { cluster: fingerprint, from: id, to: *peer };
            let hello = hello(envelope, pb::Lane::Proposals);
            let forwarder = Forwarder::start(address.clone(), hello, silence_max);
            connections.insert(*peer, Connections { address: address.clone(), bulk, control, forwarder });
        }
        Ok(Self { shared: Arc::new(Shared { id, fingerprint, connections, silence_max }) })
    }

    /// Every peer.
    pub(super) fn ids(&self) -> impl Iterator<Item = u64> {
        self.shared.connections.keys().copied()
    }

    /// A client for small, urgent messages; `None` for a node that the configuration does not know.
    pub(super) fn control(&self, peer: u64) -> Option<Peer> {
        self.peer(peer, |connections| &connections.control)
    }

    /// Forwards proposals to a peer; `None` for a node that the configuration does not know.
    pub(super) fn forwarder(&self, peer: u64) -> Option<&Forwarder> {
        self.shared.connections.get(&peer).map(|connections| &connections.forwarder)
    }

    /// A client for what may be large; `None` for a node that the configuration does not know.
    pub(super) fn bulk(&self, peer: u64) -> Option<Peer> {
        self.peer(peer, |connections| &connections.bulk)
    }

    fn peer(&self, peer: u64, choose: impl FnOnce(&Connections) -> &Channel) -> Option<Peer> {
        let channel = choose(self.shared.connections.get(&peer)?).clone();
        let client = RaftClient::new(channel)
            .max_decoding_message_size(MESSAGE_LEN_MAX)
            .max_encoding_message_size(MESSAGE_LEN_MAX);
        let envelope = pb::Envelope { cluster: self.shared.fingerprint, from: self.shared.id, to: peer };
        Some(Peer { client, envelope })
    }

    fn connection(&self, target: u64) -> Connection {
        let address = self.shared.connections.get(&target).map(|connections| connections.address.clone());
        let (peer, silence_max) = (self.bulk(target), self.shared.silence_max);
        Connection {
            target,
            address: address.unwrap_or_default(),
            peer,
            lane: LeaderLane::default(),
            silence_max,
            is_reached: true,
        }
    }
}

fn hello(envelope: pb::Envelope, lane: pb::Lane) -> pb::Hello {
    pb::Hello { envelope: Some(envelope), lane: lane.into() }
}

fn endpoint(address: &str, timing: RaftTiming) -> Result<Endpoint, tonic::transport::Error> {
    // A peer that has not answered within a leader's lease is as good as dead to an election, and to the
    // connection.
    let silence_max = timing.election_timeout_max;
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(silence_max)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(silence_max)
        .keep_alive_timeout(silence_max)
        .keep_alive_while_idle(true))
}

/// One peer, over one of its connections.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) client: RaftClient<Channel>,
    pub(super) envelope: pb::Envelope,
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _: &BasicNode) -> Connection {
        self.connection(target)
    }
}

/// What Raft talks to a peer through. It has one for entries, one for heartbeats and one for votes.
#[derive(Debug)]
pub(super) struct Connection {
    target: u64,
    address: String,
    peer: Option<Peer>,
    lane: LeaderLane,
    /// How long a peer may take to open a lane. Raft would allow a fraction of a heartbeat, and on a busy machine begin
    /// anew for ever; what a slow peer costs is seen by the heartbeats.
    silence_max: Duration,
    /// Whether the last attempt has reached the peer. There are many, and only a change is worth a line in the log.
    is_reached: bool,
}

impl Connection {
    fn peer(&self) -> Result<Peer, RPCError<TypeConfig>> {
        self.peer.clone().ok_or_else(|| {
            let unknown = format!("node {} is not in the configuration of this cluster", self.target);
            RPCError::Unreachable(Unreachable::from_string(unknown))
        })
    }

    /// Whether somebody listens at the peer's address.
    async fn is_reachable(&self) -> bool {
        let attempt = tokio::time::timeout(self.silence_max, TcpStream::connect(&self.address));
        matches!(attempt.await, Ok(Ok(_)))
    }

    fn vote_request(peer: &Peer, rpc: &VoteRequest<TypeConfig>) -> pb::VoteRequest {
        pb::VoteRequest {
            envelope: Some(peer.envelope),
            vote: Some(convert::vote_to_pb(&rpc.vote)),
            last_log_id: rpc.last_log_id.as_ref().map(convert::log_id_to_pb),
        }
    }

    fn vote_response(response: pb::VoteResponse) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let vote = convert::vote_from_pb("VoteResponse", response.vote).map_err(|error| nonsense(&error))?;
        let last_log_id = response.last_log_id.map(convert::log_id_from_pb);
        Ok(VoteResponse::new(vote, last_log_id, response.granted))
    }
}

/// Takes note of what came of an attempt to reach a peer.
fn note<T>(node_id: u64, is_reached: &mut bool, attempt: &Result<T, LaneError>) {
    match attempt {
        Ok(_) if !*is_reached => info!(node_id, "a peer is reached again"),
        Err(error) if *is_reached => warn!(node_id, error = %chain(error), "a peer cannot be reached"),
        _ => {}
    }
    *is_reached = attempt.is_ok();
}

/// An answer that makes no sense. Asking again at once would bring the same.
fn nonsense(error: &proto::WireError) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(error))
}

/// A refusal or a broken connection. A peer that is not there is left alone for a moment.
fn failed(status: &Status) -> RPCError<TypeConfig> {
    match status.code() {
        Code::Unavailable | Code::FailedPrecondition => RPCError::Unreachable(Unreachable::new(status)),
        _ => RPCError::Network(NetworkError::new(status)),
    }
}

/// A lane that cannot be made, or has broken. The peer is left alone for a moment.
fn lane_failed(error: &LaneError) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(error))
}

/// Bounds an RPC by what Raft allows for it.
async fn bounded<T>(
    option: &RPCOption,
    rpc: impl Future<Output = Result<T, Status>>,
) -> Result<T, RPCError<TypeConfig>> {
    within(option.soft_ttl(), rpc).await.map_err(|status| failed(&status))
}

/// Bounds an RPC by `length`.
pub(super) async fn within<T>(
    length: Duration,
    rpc: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    tokio::time::timeout(length, rpc)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer within {length:?}"))))
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = SnapshotState;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let last_log_id = rpc.entries.last().map(|entry| entry.log_id).or(rpc.prev_log_id);
        let input = futures::stream::iter([rpc]);
        let silence_max = self.silence_max;
        let mut output = self.stream_append(input, option).await?;
        let first = tokio::time::timeout(silence_max, output.next()).await.ok().flatten();
        let silent = || RPCError::Network(NetworkError::from_string("the peer has not answered"));
        Ok(match first.ok_or_else(silent)?? {
            Ok(upto) if upto < last_log_id => AppendEntriesResponse::PartialSuccess(upto),
            Ok(_) => AppendEntriesResponse::Success,
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        _: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let hello = hello(self.peer()?.envelope, pb::Lane::Entries);
            // Raft lets a peer that cannot be reached alone for a moment by holding its first request back, so that is waited
            // for before the peer is tried again.
            let first = futures::stream::iter(input.next().await);
            let input = first.chain(input);
            let results = self.lane.append(&self.address, hello, self.silence_max, input).await;
            note(self.target, &mut self.is_reached, &results);
            let results = results.map_err(|error| lane_failed(&error))?;
            Ok(results.map_err(|error| lane_failed(&error)).boxed())
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut peer = self.peer()?;
        let request = Self::vote_request(&peer, &rpc);
        Self::vote_response(bounded(&option, peer.client.vote(request)).await?.into_inner())
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut peer = self.peer()?;
        let request = Self::vote_request(&peer, &rpc);
        Self::vote_response(bounded(&option, peer.client.pre_vote(request)).await?.into_inner())
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotState>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut peer = self.peer()?;
        let cancel = std::pin::pin!(cancel);
        if !self.is_reachable().await {
            // Each attempt takes a copy of the whole state, and a node may be away for days.
            drop(snapshot);
            let again = async {
                while !self.is_reachable().await {
                    tokio::time::sleep(LOOK_AGAIN_AFTER).await;
                }
            };
            tokio::select! {
                () = again => {}
                closed = cancel => return Err(StreamingError::Closed(closed)),
            }
            return Err(StreamingError::Unreachable(Unreachable::from_string("the peer was not there")));
        }
        let head = pb::SnapshotHead {
            envelope: Some(peer.envelope),
            vote: Some(convert::vote_to_pb(&vote)),
            last_log_id: snapshot.meta.last_log_id.as_ref().map(convert::log_id_to_pb),
            membership: Some(convert::stored_membership_to_pb(&snapshot.meta.last_membership)),
        };
        let state = snapshot.snapshot.whole().map_err(|error| NetworkError::new(&error))?;
        let (chunks, receiver) = mpsc::channel(SNAPSHOT_CHUNKS_AHEAD);
        // As long as it takes for all opens of the cluster, and others need this thread. It ends with the receiver.
        tokio::task::spawn_blocking(move || {
            for chunk in snapshot_chunks(head, state.records()) {
                if chunks.blocking_send(pb::SnapshotChunk { chunk: Some(chunk) }).is_err() {
                    return;
                }
            }
        });
        let sent = bounded(&option, peer.client.install_snapshot(ReceiverStream::new(receiver)));
        let response = tokio::select! {
            response = sent => response?.into_inner(),
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        let vote =
            convert::vote_from_pb("SnapshotResponse", response.vote).map_err(|error| nonsense(&error))?;
        Ok(SnapshotResponse::new(vote))
    }
}

/// A snapshot as messages, as many records in each as fit.
fn snapshot_chunks(
    head: pb::SnapshotHead,
    mut records: impl Iterator<Item = Record>,
) -> impl Iterator<Item = Chunk> {
    let mut head = Some(head);
    let mut sent = Some(0);
    std::iter::from_fn(move || {
        if let Some(head) = head.take() {
            return Some(Chunk::Head(head));
        }
        let count = sent.as_mut()?;
        let (mut chunk, mut len) = (Vec::new(), 0);
        while len < SNAPSHOT_CHUNK_LEN
            && let Some(record) = records.next()
        {
            let record = stored::Record::from(&record);
            len += record.encoded_len();
            chunk.push(record);
        }
        *count += chunk.len() as u64;
        Some(match chunk.is_empty() {
            true => Chunk::End(pb::SnapshotEnd { records: sent.take()? }),
            false => Chunk::Records(pb::SnapshotRecords { records: chunk }),
        })
    })
}

#[cfg(test)]
mod tests {
    use proto::pb::smb::v1 as smb;
    use statedb::{Limits, LogId, Timestamp};

    use super::super::tests::TIMING;
    use super::super::types::StoredMembership;
    use super::*;

    #[tokio::test]
    async fn a_snapshot_for_a_peer_that_is_away_is_given_up_and_taken_anew_when_it_is_back() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let voters = BTreeMap::from([(1, "127.0.0.1:1".to_owned()), (2, address.to_string())]);
        let peers = Peers::new(1, 0, &voters, TIMING).unwrap();
        let snapshot = || SnapshotOf::<TypeConfig, _> {
            meta: openraft::SnapshotMeta { last_log_id: None, last_membership: StoredMembership::default() },
            snapshot: SnapshotState::Whole(Box::new(statedb::State::new(Limits::DEFAULT))),
        };
        let option = || RPCOption::new(Duration::from_secs(60));

        let mut connection = peers.connection(2);
        let cancel = std::future::ready(ReplicationClosed::new("another leader"));
        let cancelled = connection.full_snapshot(Vote::new(1, 1), snapshot(), cancel, option()).await;
        assert!(matches!(cancelled, Err(StreamingError::Closed(_))), "{cancelled:?}");

        let sending = connection.full_snapshot(Vote::new(1, 1), snapshot(), std::future::pending(), option());
        let mut sending = std::pin::pin!(sending);
        let waited = tokio::time::timeout(5 * LOOK_AGAIN_AFTER, &mut sending).await;
        assert!(waited.is_err(), "{waited:?}");
        let _listener = std::net::TcpListener::bind(address).unwrap();
        let given_up = tokio::time::timeout(Duration::from_secs(30), sending).await.unwrap();
        assert!(matches!(given_up, Err(StreamingError::Unreachable(_))), "{given_up:?}");
    }

    #[test]
    fn a_message_of_a_snapshot_holds_whatever_an_open_may_have() {
        let limits = Limits::DEFAULT;
        let lock = smb::ByteRangeLock { offset: u64::MAX, length: u64::MAX, exclusive: true };
        let record = |id| -> Record {
            let description = smb::OpenDescription {
                durable_file_id: id,
                create_guid: vec![1; 16],
                client_guid: vec![2; 16],
                share: "data".to_owned(),
                file: Some(smb::FileKey { device: 1, inode: id, extid: 0 }),
                oplock: Some(smb::open_description::Oplock::OplockLevel(smb::OplockLevel::Batch.into())),
                oplock_state: smb::OplockState::Held.into(),
                durability: smb::Durability::V2.into(),
                byte_range_locks: vec![lock; usize::try_from(limits.locks_max).expect("few")],
                image: vec![0; usize::try_from(limits.open_bytes_max).expect("few")],
                ..smb::OpenDescription::default()
            };
            let owner = smb::Owner { node_id: 1, incarnation: 1 };
            let state = smb::open::State::Connected(smb::Connected { owner: Some(owner), session_id: None });
            let open = smb::Open {
                description: Some(description),
                state: Some(state),
                arbiter: smb::Arbiter::SmbServer.into(),
            };
            let record = stored::record::Record::Open(Box::new(open));
            stored::Record { record: Some(record) }.try_into().expect("it is sound")
        };
        let meta = Record::Meta { applied: Some(LogId::default()), now: Timestamp(0), next_event: 0 };
        let records: Vec<Record> = (0..40).map(record).chain([meta]).collect();
        let chunks = snapshot_chunks(pb::SnapshotHead::default(), records.clone().into_iter());
        let chunks: Vec<_> = chunks.map(|chunk| pb::SnapshotChunk { chunk: Some(chunk) }).collect();
        assert!(chunks.len() > 3);
        assert!(chunks.iter().all(|chunk| chunk.encoded_len() < MESSAGE_LEN_MAX));
        assert!(matches!(chunks[0].chunk, Some(Chunk::Head(_))));
        let end = pb::SnapshotEnd { records: records.len() as u64 };
        assert_eq!(chunks.last().and_then(|last| last.chunk.clone()), Some(Chunk::End(end)));
        let sent = chunks.into_iter().flat_map(|chunk| match chunk.chunk {
            Some(Chunk::Records(chunk)) => chunk.records,
            _ => Vec::new(),
        });
        let sent: Result<Vec<Record>, _> = sent.map(TryInto::try_into).collect();
        assert_eq!(sent.expect("they are sound"), records, "all of them, in order");
    }
}
