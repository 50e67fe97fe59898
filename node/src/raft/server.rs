//! From its peers to this node, over gRPC: decode, delegate, encode. Strangers are refused.

use std::fmt;
use std::sync::Arc;

use openraft::SnapshotMeta;
use openraft::raft::{VoteRequest, VoteResponse};
use openraft::type_config::alias::SnapshotOf;
use proto::WireError;
use proto::convert::required;
use proto::pb::raft::v1 as pb;
use proto::pb::raft::v1::raft_server::{Raft, RaftServer};
use proto::pb::storage::v1 as stored;
use statedb::{DurableFileId, Owner, Record, State};
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use super::state_machine::SnapshotState;
use super::types::{StoredMembership, TypeConfig};
use super::{MESSAGE_LEN_MAX, RaftNode};
use crate::liveness::Answer;

/// How many records a snapshot may have: opens, a break for each, waiting requests, shares and deletions, as many as any
/// configuration allows.
const SNAPSHOT_RECORDS_MAX: usize = 16 * 1024 * 1024;

/// What peers ask that is not Raft's to answer.
pub trait Answers: Send + Sync + 'static {
    /// A sign of life of another node's SMB service, which arrived just now.
    fn sign_of_life(&self, owner: Owner) -> Answer;

    /// Whether the records of an open are as they should be, as far as this node is the one to say; by the entry at
    /// `applied` or a later one. See `SettledResponse`.
    fn is_settled(&self, open: DurableFileId, applied: u64) -> impl Future<Output = bool> + Send;
}

/// Answers peers.
pub struct RaftService<A> {
    node: Arc<RaftNode>,
    answers: A,
}

impl<A> fmt::Debug for RaftService<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftService").field("node", &self.node).finish_non_exhaustive()
    }
}

impl<A: Answers> RaftService<A> {
    pub(super) fn server(node: Arc<RaftNode>, answers: A) -> RaftServer<Self> {
        RaftServer::new(Self { node, answers })
            .max_decoding_message_size(MESSAGE_LEN_MAX)
            .max_encoding_message_size(MESSAGE_LEN_MAX)
    }

    fn check(&self, envelope: Option<pb::Envelope>) -> Result<u64, Status> {
        Ok(self.node.check(envelope)?)
    }

    fn vote_request(&self, request: pb::VoteRequest) -> Result<VoteRequest<TypeConfig>, Status> {
        self.check(request.envelope)?;
        let vote = convert::vote_from_pb("VoteRequest", request.vote).map_err(invalid)?;
        Ok(VoteRequest::new(vote, request.last_log_id.map(convert::log_id_from_pb)))
    }

    /// The state that came, if it is one and the one that was announced.
    async fn snapshot(
        &self,
        last_log_id: Option<stored::LogId>,
        last_membership: StoredMembership,
        records: Vec<Record>,
    ) -> Result<SnapshotOf<TypeConfig, SnapshotState>, WireError> {
        let invalid = |error: String| WireError::invalid("SnapshotChunk", "records", error);
        let limits = self.node.limits;
        // As long as it takes for all opens of the cluster, and others need this thread.
        let state = tokio::task::spawn_blocking(move || State::from_records(limits, records))
            .await
            .map_err(|error| invalid(error.to_string()))?
            .map_err(|error| invalid(error.to_string()))?;
        let applied = state.applied();
        if applied != last_log_id.map(Into::into) {
            let found = format!("{last_log_id:?} where the records are of {applied:?}");
            return Err(WireError::invalid("SnapshotHead", "last_log_id", found));
        }
        if applied.is_some_and(|applied| applied.index == u64::MAX) {
            return Err(WireError::invalid(
                "SnapshotHead",
                "last_log_id",
                "there is nothing after this index",
            ));
        }
        let meta = SnapshotMeta { last_log_id: last_log_id.map(convert::log_id_from_pb), last_membership };
        Ok(SnapshotOf::<TypeConfig, _> { meta, snapshot: SnapshotState::Whole(Box::new(state)) })
    }

    /// The answer of a node that must not vote yet: no to whoever asks, without promising anything.
    fn abstention(&self) -> pb::VoteResponse {
        let vote = self.node.vote();
        pb::VoteResponse { vote: Some(convert::vote_to_pb(&vote)), granted: false, last_log_id: None }
    }
}

/// Why somebody is not talked to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stranger {
    /// He does not say who he is.
    #[error(transparent)]
    Nameless(#[from] WireError),
    /// He is of another cluster.
    #[error(
        "node {from} has another cluster configuration than node {here}: compare their [cluster] sections"
    )]
    OfAnotherCluster {
        /// Who he says he is.
        from: u64,
        /// This node.
        here: u64,
    },
    /// He is no member of this cluster, or means another node.
    #[error("a message from node {from} to node {to} has come to node {here}: is an id used twice?")]
    Misled {
        /// Who he says he is.
        from: u64,
        /// Whom he means.
        to: u64,
        /// This node.
        here: u64,
    },
}

impl From<Stranger> for Status {
    fn from(stranger: Stranger) -> Self {
        match stranger {
            Stranger::Nameless(error) => invalid(error),
            Stranger::OfAnotherCluster { .. } | Stranger::Misled { .. } => {
                Self::failed_precondition(stranger.to_string())
            }
        }
    }
}

impl RaftNode {
    /// Refuses who is of another cluster, is no member of this one, or means another node. Returns who he is.
    pub(super) fn check(&self, envelope: Option<pb::Envelope>) -> Result<u64, Stranger> {
        let pb::Envelope { cluster, from, to } = required("request", "envelope", envelope)?;
        let here = self.id;
        if cluster != self.fingerprint {
            return Err(Stranger::OfAnotherCluster { from, here });
        }
        if to != here || !self.voters.contains_key(&from) || from == here {
            return Err(Stranger::Misled { from, to, here });
        }
        Ok(from)
    }
}

fn invalid(error: WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: impl fmt::Display) -> Status {
    Status::unavailable(format!("the node is stopping: {error}"))
}

fn vote_response(response: &VoteResponse<TypeConfig>) -> pb::VoteResponse {
    pb::VoteResponse {
        vote: Some(convert::vote_to_pb(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(convert::log_id_to_pb),
    }
}

#[tonic::async_trait]
impl<A: Answers> Raft for RaftService<A> {
    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let request = self.vote_request(request.into_inner())?;
        if !self.node.voting.is_allowed() {
            return Ok(Response::new(self.abstention()));
        }
        let response = self.node.raft.vote(request).await.map_err(stopped)?;
        Ok(Response::new(vote_response(&response)))
    }

    async fn pre_vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        let request = self.vote_request(request.into_inner())?;
        if !self.node.voting.is_allowed() {
            return Ok(Response::new(self.abstention()));
        }
        let response = self.node.raft.pre_vote(request).await.map_err(stopped)?;
        Ok(Response::new(vote_response(&response)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotChunk>>,
    ) -> Result<Response<pb::SnapshotResponse>, Status> {
        use pb::snapshot_chunk::Chunk;
        const MESSAGE: &str = "SnapshotChunk";
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.and_then(|chunk| chunk.chunk);
        let Some(Chunk::Head(head)) = first else { return Err(invalid(WireError::missing(MESSAGE, "head"))) };
        self.check(head.envelope)?;
        let vote = convert::vote_from_pb("SnapshotHead", head.vote).map_err(invalid)?;
        let membership = required("SnapshotHead", "membership", head.membership)
            .and_then(convert::stored_membership_from_pb)
            .map_err(invalid)?;

        let mut records: Vec<Record> = Vec::new();
        loop {
            let chunk = required(MESSAGE, "end", chunks.message().await?).map_err(invalid)?;
            match required(MESSAGE, "chunk", chunk.chunk).map_err(invalid)? {
                Chunk::Head(_) => return Err(invalid(WireError::invalid(MESSAGE, "head", "comes twice"))),
                Chunk::Records(more) => {
                    for record in more.records {
                        records.push(record.try_into().map_err(invalid)?);
                    }
                    if records.len() > SNAPSHOT_RECORDS_MAX {
                        return Err(invalid(WireError::invalid(MESSAGE, "records", "are too many")));
                    }
                }
                Chunk::End(end) if end.records == records.len() as u64 => break,
                Chunk::End(end) => {
                    let what = format!("{} where {} have come", end.records, records.len());
                    return Err(invalid(WireError::invalid("SnapshotEnd", "records", what)));
                }
            }
        }
        let snapshot = self.snapshot(head.last_log_id, membership, records).await.map_err(invalid)?;
        let response = self.node.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(pb::SnapshotResponse { vote: Some(convert::vote_to_pb(&response.vote)) }))
    }

    async fn keep_alive(
        &self,
        request: Request<pb::KeepAliveRequest>,
    ) -> Result<Response<pb::KeepAliveResponse>, Status> {
        use pb::keep_alive_response::Answer as PbAnswer;
        let request = request.into_inner();
        self.check(request.envelope)?;
        let owner: Owner = required("KeepAliveRequest", "owner", request.owner).map_err(invalid)?.into();
        let answer = match self.answers.sign_of_life(owner) {
            Answer::GoOn { quorum_age } => {
                let quorum_age_us = u64::try_from(quorum_age.as_micros()).unwrap_or(u64::MAX);
                PbAnswer::GoOn(pb::GoOn { quorum_age_us })
            }
            Answer::Fenced => PbAnswer::Fenced(pb::IncarnationFenced {}),
            Answer::AskAgain => PbAnswer::AskAgain(pb::AskAgain {}),
            Answer::NotLeader => {
                PbAnswer::NotLeader(pb::NotLeader { leader: self.node.leader().map(|leader| leader.0) })
            }
        };
        Ok(Response::new(pb::KeepAliveResponse { answer: Some(answer) }))
    }

    async fn settled(
        &self,
        request: Request<pb::SettledRequest>,
    ) -> Result<Response<pb::SettledResponse>, Status> {
        let request = request.into_inner();
        self.check(request.envelope)?;
        let open = DurableFileId(request.durable_file_id);
        let is_settled = self.answers.is_settled(open, request.applied).await;
        Ok(Response::new(pb::SettledResponse { is_settled }))
    }

    async fn form(&self, request: Request<pb::FormRequest>) -> Result<Response<pb::FormResponse>, Status> {
        let request = request.into_inner();
        self.check(request.envelope)?;
        let is_new = self.node.is_new();
        if request.all_are_new && is_new {
            self.node.voting.remember().map_err(|error| Status::internal(error.to_string()))?;
        }
        Ok(Response::new(pb::FormResponse { is_new }))
    }
}
