//! What happens in the cluster, told to the SMB server that has to act on it, and to operators.
//!
//! A caller who comes too late for the events that are kept is told the present state instead: read in one moment,
//! with the number of the event that comes next, so that nothing lies between the two.

use std::sync::Arc;

use proto::pb::events::v1 as pb;
use proto::pb::events::v1::break_now::Notice;
use proto::pb::events::v1::event::Kind;
use proto::pb::events::v1::event_service_server::{EventService as Rpc, EventServiceServer};
use proto::pb::events::v1::watch_response::Response as Told;
use statedb::{
    Break, BreakTarget, DeleteState, Event, EventKind, LeaseState, Open, OplockLevel, Owner, State, Timestamp,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::attach::{AttachPoint, Attached};
use crate::events::Subscription;
use crate::raft::RaftNode;

/// Responses that may wait for a caller that does not read. Events wait behind them as long as they are kept.
const RESPONSES_LEN: usize = 256;

/// Tells events. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EventService {
    raft: Arc<RaftNode>,
    point: AttachPoint,
}

impl EventService {
    /// To be added to a gRPC server. The SMB servers that are told are those attached at `point`.
    #[must_use]
    pub fn server(raft: Arc<RaftNode>, point: AttachPoint) -> EventServiceServer<Self> {
        EventServiceServer::new(Self { raft, point })
    }
}

#[tonic::async_trait]
impl Rpc for EventService {
    type WatchStream = ReceiverStream<Result<pb::WatchResponse, Status>>;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let pb::WatchRequest { after_sequence, incarnation } = request.into_inner();
        let server = incarnation.map(|incarnation| self.point.attached(incarnation)).transpose()?;
        let (responses, stream) = mpsc::channel(RESPONSES_LEN);
        let teller = Teller { raft: Arc::clone(&self.raft), point: self.point.clone(), server, responses };
        tokio::spawn(teller.run(after_sequence));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Tells one caller.
struct Teller {
    raft: Arc<RaftNode>,
    point: AttachPoint,
    /// `None` for an operator.
    server: Option<Arc<Attached>>,
    responses: mpsc::Sender<Result<pb::WatchResponse, Status>>,
}

/// The caller has gone.
struct Gone;

impl Teller {
    async fn run(self, after_sequence: Option<u64>) {
        let told = tokio::select! {
            told = self.tell(after_sequence) => told,
            () = self.is_over() => Ok(self.point.gone()),
            () = self.responses.closed() => Err(Gone),
        };
        if let Ok(status) = told {
            let _ = self.responses.send(Err(status)).await;
        }
    }

    /// Tells until the caller must call again; returns what it is told last.
    async fn tell(&self, after_sequence: Option<u64>) -> Result<Status, Gone> {
        let next_event = self.raft.read(State::next_event);
        let first = after_sequence.map_or(next_event, |seen| seen.saturating_add(1));
        let mut events = self.raft.events().subscribe(first);
        if after_sequence.is_none() && self.server.is_some() {
            self.resync(&mut events).await?;
        }
        let mut is_first = true;
        loop {
            match events.read().await {
                Ok(events) => {
                    let now = self.raft.read(State::now);
                    for event in events.iter().filter(|event| self.concerns_caller(event)) {
                        self.say(now, Told::Event(event.as_ref().into())).await?;
                    }
                }
                Err(missed) if is_first => match &self.server {
                    Some(_) => self.resync(&mut events).await?,
                    None => {
                        events.go_on_from(missed.first);
                        self.resync_operator(missed.first).await?;
                    }
                },
                Err(missed) => {
                    return Ok(Status::resource_exhausted(format!("{missed}: call again")));
                }
            }
            is_first = false;
        }
    }

    /// Tells an SMB server of what it has and has to do, as of now, and goes on with the events after that.
    async fn resync(&self, events: &mut Subscription) -> Result<(), Gone> {
        let Some(server) = &self.server else { return Ok(()) };
        let owner = server.owner;
        let (now, next_sequence, opens, others) = self.raft.read(|state| {
            let opens: Vec<Open> =
                state.opens().filter(|open| open.holder() == Some(owner)).cloned().collect();
            let breaks =
                state.breaks().filter_map(|(target, under_way)| notice(state, owner, target, under_way));
            let is_its_own = DeleteState::Due(Some(owner));
            let deletes = state.deletes_pending().filter(|(_, pending)| pending.state == is_its_own);
            let deletes = deletes.map(|(file, pending)| {
                let (share, path) = (pending.share.to_string(), pending.path.as_ref().to_owned());
                Told::DeleteNow(pb::DeleteFile { file: Some(file.into()), share, path })
            });
            (state.now(), state.next_event(), opens, breaks.chain(deletes).collect::<Vec<_>>())
        });
        events.go_on_from(next_sequence);
        self.say(now, Told::Resync(pb::Resync { next_sequence })).await?;
        for open in &opens {
            self.say(now, Told::OpenNow(Box::new(open.into()))).await?;
        }
        for other in others {
            self.say(now, other).await?;
        }
        self.say(now, Told::Synced(pb::Synced { next_sequence })).await
    }

    /// Tells an operator where the events begin that are kept.
    async fn resync_operator(&self, next_sequence: u64) -> Result<(), Gone> {
        let now = self.raft.read(State::now);
        self.say(now, Told::Resync(pb::Resync { next_sequence })).await?;
        self.say(now, Told::Synced(pb::Synced { next_sequence })).await
    }

    fn concerns_caller(&self, event: &Event) -> bool {
        // The end of a request is the answer to it, and comes where it was asked for.
        self.server.as_ref().is_none_or(|server| {
            event.to == Some(server.owner) && !matches!(event.kind, EventKind::RequestFinished { .. })
        })
    }

    async fn say(&self, now: Timestamp, told: Told) -> Result<(), Gone> {
        let response = pb::WatchResponse { now_ms: now.0, response: Some(told) };
        self.responses.send(Ok(response)).await.map_err(|_| Gone)
    }

    /// Waits until the caller's incarnation or this process ends.
    async fn is_over(&self) {
        let ended = async {
            match &self.server {
                Some(server) => server.ended.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ended => {}
            () = self.point.stop().cancelled() => {}
        }
    }
}

/// What the SMB server `owner` was told of a break under way, if it is the one to act on it.
fn notice(state: &State, owner: Owner, target: BreakTarget, under_way: Break) -> Option<Told> {
    let Break { to, ack_until, .. } = under_way;
    let is_its_own = |open: &&Open| open.connected_through() == Some(owner);
    let kind = match target {
        BreakTarget::Oplock(id) => {
            state.open(id).filter(is_its_own)?;
            let to = if to == LeaseState::NONE { OplockLevel::None } else { OplockLevel::LevelII };
            EventKind::OplockBreak { open: id, to, ack_until }
        }
        BreakTarget::Lease(id) => {
            let lease = state.opens_of_lease(id).find(is_its_own)?.description.oplock.lease()?;
            let (from, epoch, version) = (lease.state, lease.epoch, lease.version);
            EventKind::LeaseBreak { lease: id, from, to, epoch, version, ack_until }
        }
    };
    let notice = match Kind::from(&kind) {
        Kind::OplockBreak(notice) => Notice::OplockBreak(notice),
        Kind::LeaseBreak(notice) => Notice::LeaseBreak(notice),
        _ => return None,
    };
    Some(Told::BreakNow(pb::BreakNow { notice: Some(notice) }))
}
