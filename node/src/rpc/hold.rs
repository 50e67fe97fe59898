//! Holds a client that wants its opens back through this node while another node has them.
//!
//! More likely than not that node is dead, and nobody has found out yet. A refusal now would be for good, since clients
//! give a handle up that they are refused; and to take the opens from a node that is only paused would give them two
//! owners until its lease runs off. So the client waits for the verdict. When the time in which there would be one is
//! over, that node lives, and the cluster decides as if the client had come at once.

use std::time::Duration;

use statedb::{Create, NodeId, Open, Request, State};
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::raft::RaftNode;

/// Whether a request would take an open from a living SMB service of another node than `node`.
pub(super) fn takes_from_another_node(state: &State, node: NodeId, request: &Request) -> bool {
    let is_elsewhere =
        |open: &Open| open.connected_through().is_some_and(|owner| owner.node != node && state.is_up(owner));
    match request {
        Request::ReplaceSession { previous, user } => state
            .opens_of_session(*previous)
            .any(|open| open.description.durable_owner == *user && is_elsewhere(open)),
        Request::Create(create) => wanted_back(state, create)
            .any(|open| open.description.durable_owner == create.client.user && is_elsewhere(open)),
        _ => false,
    }
}

/// The opens that a CREATE means which were there before: by a reconnect or a replay.
fn wanted_back<'a>(state: &'a State, create: &Create) -> impl Iterator<Item = &'a Open> {
    let contexts = &create.contexts;
    let replayed =
        contexts.durable_request_v2.filter(|_| create.is_replay).map(|request| request.create_guid);
    let reconnected = contexts.durable_reconnect_v2;
    let id = contexts.durable_reconnect.or(reconnected.map(|reconnect| reconnect.durable_file_id));
    let create_guid = replayed.or(reconnected.map(|reconnect| reconnect.create_guid));
    let by_guid = create_guid.map(|guid| state.opens_of_create_guid(create.client.client_guid, guid));
    id.and_then(|id| state.open(id)).into_iter().chain(by_guid.into_iter().flatten())
}

/// Returns when the request takes nothing from another node any more, or `verdict_within` is over.
pub(super) async fn until_verdict(
    raft: &RaftNode,
    node: NodeId,
    request: &Request,
    verdict_within: Duration,
) {
    let began = Instant::now();
    let verdict = raft.until(|state| !takes_from_another_node(state, node, request));
    let came = timeout(verdict_within, verdict).await.is_ok();
    debug!(request = request.verb(), held = ?began.elapsed(), came, "a client was held until the verdict");
}
