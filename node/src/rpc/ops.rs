//! The operators' service: what this node knows of the cluster.
//!
//! Answers come from this node's copy of the state, which may lag behind the leader's; they say how far it is.

use std::pin::Pin;
use std::sync::Arc;

use proto::pb::ops::v1 as pb;
use proto::pb::ops::v1::ops_server::{Ops, OpsServer};
use statedb::{DurableFileId, NodeState, Open, ShareName, State};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::config::Config;
use crate::raft::RaftNode;

/// Opens in one message of a listing: about 100 KiB, far below what gRPC clients accept.
const OPENS_PER_MESSAGE: usize = 256;

/// Answers operators.
#[derive(Debug)]
pub struct OpsService {
    config: Arc<Config>,
    raft: Arc<RaftNode>,
    process_nonce: u64,
}

impl OpsService {
    /// A service to be added to a gRPC server. `process_nonce` was drawn at random when this process started.
    #[must_use]
    pub fn server(config: Arc<Config>, raft: Arc<RaftNode>, process_nonce: u64) -> OpsServer<Self> {
        OpsServer::new(Self { config, raft, process_nonce })
    }

    fn node_status(&self, state: &State) -> Vec<pb::NodeStatus> {
        let status = |member: &crate::config::Member| {
            let id = statedb::NodeId(member.id);
            let node = state.node(id);
            let down_since_ms = match node.map(|node| node.state) {
                Some(NodeState::Down { since }) => Some(since.0),
                Some(NodeState::Up) | None => None,
            };
            let owned = |open: &&Open| open.connected_through().is_some_and(|owner| owner.node == id);
            pb::NodeStatus {
                node_id: member.id,
                address: member.address.clone(),
                incarnation: node.map_or(0, |node| node.incarnation.0),
                up: node.is_some_and(|node| node.state == NodeState::Up),
                down_since_ms,
                opens: state.opens().filter(owned).count() as u64,
            }
        };
        self.config.cluster.nodes.iter().map(status).collect()
    }
}

#[tonic::async_trait]
impl Ops for OpsService {
    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let raft = self.raft.status();
        let quorum_age_ms = self.raft.last_quorum_acked().map(|acked| acked.elapsed().as_millis());
        let troubles = self.raft.events().troubles();
        let response = self.raft.read(|state| pb::StatusResponse {
            node_id: self.config.node.id,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: raft.role.to_owned(),
            term: raft.term,
            leader: raft.leader.map(|node| node.0),
            last_log_index: raft.last_log_index,
            applied_index: state.applied().map(|log_id| log_id.index),
            now_ms: state.now().0,
            quorum_age_ms: quorum_age_ms.and_then(|age| u64::try_from(age).ok()),
            opens: state.opens_len() as u64,
            disconnected_opens: state.opens().filter(|open| open.deadline().is_some()).count() as u64,
            nodes: self.node_status(state),
            shares: state
                .shares()
                .map(|(share, serving)| pb::ShareStatus {
                    share: share.to_string(),
                    owner: Some(serving.owner.into()),
                })
                .collect(),
            warnings: raft
                .leader
                .is_none()
                .then(|| "no leader is known: a quorum of nodes does not answer".to_owned())
                .into_iter()
                .collect(),
            process_nonce: self.process_nonce,
            waiting_requests: state.waiting_requests().count() as u64,
            breaks_under_way: state.breaks().count() as u64,
            deletes_pending: state.deletes_pending().count() as u64,
            contradictions: troubles.contradictions,
            conflicts_refused: troubles.conflicts_refused,
            next_event: state.next_event(),
        });
        Ok(Response::new(response))
    }

    type HandlesStream = Pin<Box<dyn Stream<Item = Result<pb::HandlesResponse, Status>> + Send>>;

    async fn handles(
        &self,
        request: Request<pb::HandlesRequest>,
    ) -> Result<Response<Self::HandlesStream>, Status> {
        let request = request.into_inner();
        let share = request.share.as_deref().map(ShareName::new);
        let limit = if request.limit == 0 {
            usize::MAX
        } else {
            usize::try_from(request.limit).unwrap_or(usize::MAX)
        };
        let after = request.after.map(DurableFileId);
        let wanted = move |open: &&Open| {
            after.is_none_or(|after| open.description.durable_file_id > after)
                && share.as_ref().is_none_or(|share| open.description.share == *share)
                && request
                    .node_id
                    .is_none_or(|node| open.holder().is_some_and(|holder| holder.node.0 == node))
                && request.disconnected.is_none_or(|disconnected| open.deadline().is_some() == disconnected)
        };
        // Copied in one go, so that the listing is of one moment; the images, most of it, stay where they are.
        let (now_ms, opens) = self.raft.read(|state| {
            let opens = state.opens().filter(wanted).take(limit).map(without_image).collect::<Vec<_>>();
            (state.now().0, opens)
        });
        let messages: Vec<_> = opens
            .chunks(OPENS_PER_MESSAGE)
            .map(|opens| Ok(pb::HandlesResponse { opens: opens.to_vec(), now_ms }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }
}

fn without_image(open: &Open) -> proto::pb::smb::v1::Open {
    let mut open = open.clone();
    open.description.image = Arc::default();
    (&open).into()
}
