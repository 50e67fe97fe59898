//! The other end of lanes: of a follower that is given entries, and of a leader that is asked to propose.

use std::sync::Arc;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, SinkExt, Stream, StreamExt, TryStreamExt};
use openraft::raft::AppendEntriesRequest;
use proto::WireError;
use proto::convert::required;
use proto::pb::raft::v1 as pb;
use statedb::Command;
use tokio::net::TcpStream;
use tracing::warn;

use super::super::types::TypeConfig;
use super::super::{ProposeError, RaftNode, convert};
use super::{Frames, Lane, LaneError};
use crate::telemetry::chain;

/// How many proposals of one lane are under way. Whoever has more waits to be read.
const UNDER_WAY_MAX: usize = 4096;

/// Serves one connection until its other end, or this node, goes away.
pub(in super::super) async fn serve(node: Arc<RaftNode>, stream: TcpStream) {
    let peer = stream.peer_addr().ok();
    match serve_lane(node, stream).await {
        Ok(()) => {}
        Err(error) if error.is_goodbye() => {}
        Err(error) => warn!(error = %chain(&error), ?peer, "a lane from a peer is given up"),
    }
}

async fn serve_lane(node: Arc<RaftNode>, stream: TcpStream) -> Result<(), LaneError> {
    let (hello, mut lane) = super::accept(stream).await?;
    let purpose = hello.lane();
    let from = match node.check(hello.envelope) {
        Ok(from) => from,
        Err(stranger) => {
            let refused_because = Some(stranger.to_string());
            return lane.send(pb::HelloAnswer { refused_because }).await;
        }
    };
    let welcome = pb::HelloAnswer { refused_because: None };
    match purpose {
        pb::Lane::Entries => {
            lane.send(welcome).await?;
            take_entries(&node, from, lane.map_codec(|_| Frames::default())).await
        }
        pb::Lane::Proposals => {
            lane.send(welcome).await?;
            propose(&node, lane.map_codec(|_| Frames::default())).await
        }
        pb::Lane::Unspecified => {
            let error = WireError::invalid("Hello", "lane", "is none that is known");
            lane.send(pb::HelloAnswer { refused_because: Some(error.to_string()) }).await
        }
    }
}

/// Gives a leader's entries to Raft, and the leader Raft's answers.
async fn take_entries(node: &RaftNode, from: u64, lane: Lane<pb::AppendRequest>) -> Result<(), LaneError> {
    let (mut outgoing, incoming) = lane.split();
    let mut answers = std::pin::pin!(node.raft.stream_append(requests(from, incoming)));
    while let Some(answer) = answers.next().await {
        // Raft has ended.
        let Ok(answer) = answer else { return Ok(()) };
        outgoing.send(convert::append_result_to_pb(&answer)).await?;
    }
    Ok(())
}

/// The requests of a lane, until one makes no sense: its sender is broken, and is answered no more.
fn requests(
    from: u64,
    incoming: impl Stream<Item = Result<pb::AppendRequest, LaneError>> + Send + 'static,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
    let requests = incoming.map(move |request| match request.map(convert::append_request_from_pb) {
        Ok(Ok(request)) => Some(request),
        Ok(Err(error)) => {
            warn!(%error, from, "a peer sent entries that make no sense");
            None
        }
        Err(error) if error.is_goodbye() => None,
        Err(error) => {
            warn!(error = %chain(&error), from, "a lane of entries is given up");
            None
        }
    });
    requests.take_while(|request| std::future::ready(request.is_some())).filter_map(std::future::ready)
}

/// Proposes what a peer asks for, much of it at the same time.
async fn propose(node: &RaftNode, lane: Lane<pb::ProposeRequest>) -> Result<(), LaneError> {
    let (mut outgoing, mut incoming) = lane.split();
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            request = incoming.try_next(), if under_way.len() < UNDER_WAY_MAX => match request? {
                Some(request) => under_way.push(answer(node, request)),
                None => return Ok(()),
            },
            Some(response) = under_way.next() => {
                outgoing.feed(response).await?;
                // Whatever was committed with it goes out with it.
                while let Some(Some(response)) = under_way.next().now_or_never() {
                    outgoing.feed(response).await?;
                }
                outgoing.flush().await?;
            }
        }
    }
}

async fn answer(node: &RaftNode, request: pb::ProposeRequest) -> pb::ProposeResponse {
    use pb::propose_response::Result as PbResult;
    let command = required("ProposeRequest", "command", request.command).and_then(Command::try_from);
    let proposed = match command {
        Ok(command) => node.propose_local(command).await,
        Err(error) => Err(ProposeError::Refused { reason: error.to_string() }),
    };
    let result = match proposed {
        Ok((log_id, outcome)) => {
            PbResult::Applied(pb::Applied { log_id: Some(log_id.into()), outcome: Some((&outcome).into()) })
        }
        Err(ProposeError::NotLeader { leader }) => {
            PbResult::NotLeader(pb::NotLeader { leader: leader.map(|leader| leader.0) })
        }
        Err(ProposeError::Refused { reason }) => PbResult::Refused(pb::Refused { reason }),
        Err(ProposeError::Unknown | ProposeError::NoLeader | ProposeError::ShuttingDown) => {
            PbResult::Unknown(pb::Unknown {})
        }
    };
    pb::ProposeResponse { id: request.id, result: Some(result) }
}
