//! Between Raft's types and their protobuf messages.
//!
//! Functions, not `From`: neither side of these conversions belongs to this crate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::BasicNode;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use prost::Message;
use proto::WireError;
use proto::convert::required;
use proto::pb::raft::v1 as pb;
use proto::pb::storage::v1 as stored;
use statedb::{Command, Timestamp};

use super::types::{
    CommittedLeaderId, Entry, LogId, Membership, Payload, Proposed, StoredMembership, TypeConfig, Vote,
};

/// A position as the replicated state counts it.
pub(super) fn state_log_id(log_id: &LogId) -> statedb::LogId {
    statedb::LogId { term: log_id.leader_id.term, index: log_id.index }
}

pub(super) fn log_id(log_id: statedb::LogId) -> LogId {
    LogId { leader_id: CommittedLeaderId::from(log_id.term), index: log_id.index }
}

pub(super) fn log_id_to_pb(log_id: &LogId) -> stored::LogId {
    state_log_id(log_id).into()
}

pub(super) fn log_id_from_pb(message: stored::LogId) -> LogId {
    log_id(message.into())
}

pub(super) fn vote_to_pb(vote: &Vote) -> pb::Vote {
    pb::Vote { term: vote.leader_id.term, voted_for: vote.leader_id.voted_for, committed: vote.committed }
}

pub(super) fn vote_from_pb(message: &'static str, vote: Option<pb::Vote>) -> Result<Vote, WireError> {
    let vote = required(message, "vote", vote)?;
    Ok(vote_from_parts(vote.term, vote.voted_for, vote.committed))
}

pub(super) fn vote_from_parts(term: u64, voted_for: u64, committed: bool) -> Vote {
    if committed { Vote::new_committed(term, voted_for) } else { Vote::new(term, voted_for) }
}

/// A command as an entry of the log.
pub(super) fn proposed(at: Timestamp, command: Command) -> Proposed {
    let message = stored::ProposedCommand { proposed_at_ms: at.0, command: Some((&command).into()) };
    Proposed { at, command, encoded: encode(stored::log_entry::Payload::Command(message)) }
}

fn encode(payload: stored::log_entry::Payload) -> Arc<[u8]> {
    stored::LogEntry { payload: Some(payload) }.encode_to_vec().into()
}

/// The bytes of a payload in the log and on the wire.
pub(super) fn encode_payload(payload: &Payload) -> Arc<[u8]> {
    use stored::log_entry::Payload as PbPayload;
    match payload {
        Payload::Blank => encode(PbPayload::Blank(stored::Blank {})),
        Payload::Normal(proposed) => Arc::clone(&proposed.encoded),
        Payload::Membership(membership) => encode(PbPayload::Membership(membership_to_pb(membership))),
    }
}

pub(super) fn decode_payload(encoded: Arc<[u8]>) -> Result<Payload, WireError> {
    use stored::log_entry::Payload as PbPayload;
    let message =
        stored::LogEntry::decode(&*encoded).map_err(|error| WireError::undecodable("LogEntry", &error))?;
    Ok(match required("LogEntry", "payload", message.payload)? {
        PbPayload::Blank(stored::Blank {}) => Payload::Blank,
        PbPayload::Command(proposed) => Payload::Normal(Arc::new(Proposed {
            at: Timestamp(proposed.proposed_at_ms),
            command: required("ProposedCommand", "command", proposed.command)?.try_into()?,
            encoded,
        })),
        PbPayload::Membership(membership) => Payload::Membership(membership_from_pb(membership)?),
    })
}

fn membership_to_pb(membership: &Membership) -> stored::Membership {
    let configs = membership
        .get_joint_config()
        .iter()
        .map(|voters| stored::VoterSet { node_ids: voters.iter().copied().collect() })
        .collect();
    let members = membership
        .nodes()
        .map(|(id, node)| stored::Member { node_id: *id, address: node.addr.clone() })
        .collect();
    stored::Membership { configs, members }
}

fn membership_from_pb(message: stored::Membership) -> Result<Membership, WireError> {
    let configs: Vec<BTreeSet<u64>> =
        message.configs.into_iter().map(|voters| voters.node_ids.into_iter().collect()).collect();
    let members: BTreeMap<u64, BasicNode> =
        message.members.into_iter().map(|member| (member.node_id, BasicNode::new(member.address))).collect();
    if configs.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, members)
        .map_err(|error| WireError::invalid("Membership", "configs", error.to_string()))
}

pub(super) fn stored_membership_to_pb(membership: &StoredMembership) -> stored::StoredMembership {
    stored::StoredMembership {
        log_id: membership.log_id().as_ref().map(log_id_to_pb),
        membership: Some(membership_to_pb(membership.membership())),
    }
}

pub(super) fn stored_membership_from_pb(
    message: stored::StoredMembership,
) -> Result<StoredMembership, WireError> {
    let membership = membership_from_pb(required("StoredMembership", "membership", message.membership)?)?;
    Ok(StoredMembership::new(message.log_id.map(log_id_from_pb), membership))
}

pub(super) fn append_request_to_pb(request: AppendEntriesRequest<TypeConfig>) -> pb::AppendRequest {
    let entries = request
        .entries
        .iter()
        .map(|entry| pb::Entry {
            log_id: Some(log_id_to_pb(&entry.log_id)),
            payload: encode_payload(&entry.payload).to_vec(),
        })
        .collect();
    pb::AppendRequest {
        vote: Some(vote_to_pb(&request.vote)),
        prev_log_id: request.prev_log_id.as_ref().map(log_id_to_pb),
        entries,
        leader_commit: request.leader_commit.as_ref().map(log_id_to_pb),
    }
}

pub(super) fn append_request_from_pb(
    request: pb::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    let entries = request
        .entries
        .into_iter()
        .map(|entry| {
            Ok(Entry {
                log_id: log_id_from_pb(required("Entry", "log_id", entry.log_id)?),
                payload: decode_payload(entry.payload.into())?,
            })
        })
        .collect::<Result<_, WireError>>()?;
    let request = AppendEntriesRequest {
        vote: vote_from_pb("AppendRequest", request.vote)?,
        prev_log_id: request.prev_log_id.map(log_id_from_pb),
        entries,
        leader_commit: request.leader_commit.map(log_id_from_pb),
    };
    check_append_request(&request)?;
    Ok(request)
}

/// Refuses what no leader says. Raft believes its peers, and a store that is asked for a log with a hole stops
/// the node.
fn check_append_request(request: &AppendEntriesRequest<TypeConfig>) -> Result<(), WireError> {
    const MESSAGE: &str = "AppendRequest";
    if !request.vote.committed {
        return Err(WireError::invalid(MESSAGE, "vote", "is not a leader's"));
    }
    let next_after = |field, log_id: &LogId| {
        let next = log_id.index.checked_add(1);
        next.ok_or_else(|| WireError::invalid(MESSAGE, field, "there is nothing after this index"))
    };
    let (mut term, mut next) = match &request.prev_log_id {
        Some(prev) => (prev.leader_id.term, next_after("prev_log_id", prev)?),
        None => (0, 0),
    };
    for entry in &request.entries {
        let log_id = &entry.log_id;
        if log_id.index != next || log_id.leader_id.term < term {
            let found = format!(
                "entry {} of term {} where entry {next} of term {term} or later comes",
                log_id.index, log_id.leader_id.term
            );
            return Err(WireError::invalid(MESSAGE, "entries", found));
        }
        (term, next) = (log_id.leader_id.term, next_after("entries", log_id)?);
    }
    if term > request.vote.leader_id.term {
        return Err(WireError::invalid(
            MESSAGE,
            "entries",
            format!("are of term {term}, after the leader's"),
        ));
    }
    request.leader_commit.as_ref().map_or(Ok(0), |commit| next_after("leader_commit", commit)).map(drop)
}

pub(super) fn append_result_to_pb(result: &StreamAppendResult<TypeConfig>) -> pb::AppendResponse {
    use pb::append_response::Result as PbResult;
    let result = match result {
        Ok(upto) => PbResult::Appended(pb::Appended { upto: upto.as_ref().map(log_id_to_pb) }),
        Err(StreamAppendError::Conflict(expect)) => {
            PbResult::Conflict(pb::Conflict { expect: Some(log_id_to_pb(expect)) })
        }
        Err(StreamAppendError::HigherVote(vote)) => PbResult::HigherVote(vote_to_pb(vote)),
    };
    pb::AppendResponse { result: Some(result) }
}

pub(super) fn append_result_from_pb(
    response: pb::AppendResponse,
) -> Result<StreamAppendResult<TypeConfig>, WireError> {
    use pb::append_response::Result as PbResult;
    Ok(match required("AppendResponse", "result", response.result)? {
        PbResult::Appended(appended) => Ok(appended.upto.map(log_id_from_pb)),
        PbResult::Conflict(conflict) => {
            let expect = required("Conflict", "expect", conflict.expect)?;
            Err(StreamAppendError::Conflict(log_id_from_pb(expect)))
        }
        PbResult::HigherVote(vote) => {
            Err(StreamAppendError::HigherVote(vote_from_parts(vote.term, vote.voted_for, vote.committed)))
        }
    })
}
