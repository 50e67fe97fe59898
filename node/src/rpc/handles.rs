//! The service for an SMB server that has no shim: it attaches, and asks for itself.
//!
//! What the shim does for `smbd` such a server does by its own means: it stops serving when its lease ends, and asks
//! before it tells a client anything. The cluster holds it to its incarnation either way.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proto::convert::required;
use proto::pb::handles::v1 as pb;
use proto::pb::handles::v1::attach_event::Event;
use proto::pb::handles::v1::handles_server::{Handles, HandlesServer};
use statedb::{Instance, NodeId, Owner, Request as SmbRequest};
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::lease::ServiceLease;
use crate::proposer::{Proposer, RequestError};
use crate::raft::RaftNode;
use crate::registration::{self, Registered};

/// Events that may wait for an SMB server that does not read; one comes with every heartbeat. A server that is further
/// behind is taken for gone: it may serve to the end of its lease, and is declared down then.
const EVENTS_LEN: usize = 64;

/// Answers SMB servers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HandlesService {
    raft: Arc<RaftNode>,
    lease: Arc<ServiceLease>,
    node: NodeId,
    /// False beside a Samba: a node has one SMB service.
    accepts: bool,
    /// Taken from the attempt to attach to the end of the incarnation: there is one SMB server at a time.
    place: Arc<Place>,
    attached: Arc<Mutex<Option<Attached>>>,
}

type Place = tokio::sync::Mutex<()>;

/// The SMB server that is attached.
#[derive(Debug)]
struct Attached {
    owner: Owner,
    proposer: Arc<Proposer>,
    ended: CancellationToken,
}

impl HandlesService {
    /// A service of `node`. With `accepts` false every server is turned away.
    #[must_use]
    pub fn new(raft: Arc<RaftNode>, lease: Arc<ServiceLease>, node: NodeId, accepts: bool) -> Self {
        Self { raft, lease, node, accepts, place: Arc::default(), attached: Arc::default() }
    }

    /// To be added to a gRPC server.
    #[must_use]
    pub fn server(&self) -> HandlesServer<Self> {
        HandlesServer::new(self.clone())
    }

    /// The cluster has declared this incarnation down.
    pub fn fence(&self, owner: Owner) {
        if let Some(attached) = self.attached().as_ref().filter(|attached| attached.owner == owner) {
            attached.ended.cancel();
        }
    }

    /// One incarnation from its registration to its end. `events` leads to the SMB server.
    async fn serve(
        self,
        instance: Instance,
        events: mpsc::Sender<Result<pb::AttachEvent, Status>>,
        place: OwnedMutexGuard<()>,
    ) {
        let registered = tokio::select! {
            registered = registration::register(&self.raft, self.node, instance) => registered,
            // Without a quorum that takes for ever. If it is registered after all, nobody keeps it alive.
            () = events.closed() => return,
        };
        let Some(Registered { owner, proposer, ended }) = registered else {
            let _ = events.send(event(Event::Fenced(pb::Fenced {}))).await;
            return;
        };
        info!(incarnation = %owner.incarnation, "an SMB server is attached");
        *self.attached() = Some(Attached { owner, proposer, ended: ended.clone() });
        self.lease.begin(owner);
        self.pass_lease_on(owner, &events, &ended).await;
        if ended.is_cancelled() {
            // One that does not read what it is told stops by its lease.
            let _ = events.try_send(event(Event::Fenced(pb::Fenced {})));
        }
        ended.cancel();
        let may_serve_until = *self.lease.until().borrow();
        self.lease.end(owner);
        *self.attached() = None;
        // Only its stream is known to have ended. A server that has not noticed yet may go on as long as it was told.
        if let Some(until) = may_serve_until {
            info!(incarnation = %owner.incarnation, "the SMB server has left, its lease runs off");
            tokio::time::sleep_until(until.into()).await;
        }
        registration::declare_down(&self.raft, owner).await;
        drop(place);
        warn!(incarnation = %owner.incarnation, "the SMB server is gone");
    }

    /// Tells the SMB server of its lease until one of the two is gone.
    async fn pass_lease_on(
        &self,
        owner: Owner,
        events: &mpsc::Sender<Result<pb::AttachEvent, Status>>,
        ended: &CancellationToken,
    ) {
        let mut until = self.lease.until();
        let mut is_first = true;
        loop {
            let lease_ms = until.borrow_and_update().map(milliseconds_left);
            if let Some(lease_ms) = lease_ms {
                let next = if is_first {
                    Event::Attached(pb::Attached { incarnation: owner.incarnation.0, lease_ms })
                } else {
                    Event::LeaseExtended(pb::LeaseExtended { lease_ms })
                };
                is_first = false;
                // Gone, or too far behind.
                if events.try_send(event(next)).is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = until.changed() => if changed.is_err() { return },
                () = events.closed() => return,
                () = ended.cancelled() => return,
            }
        }
    }

    fn attached(&self) -> MutexGuard<'_, Option<Attached>> {
        self.attached.lock().expect("no holder of this lock can panic")
    }
}

fn event(event: Event) -> Result<pb::AttachEvent, Status> {
    Ok(pb::AttachEvent { event: Some(event) })
}

/// Rounded down: a lease must not get longer by being told.
fn milliseconds_left(until: Instant) -> u64 {
    let left: Duration = until.saturating_duration_since(Instant::now());
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
}

fn not_attached() -> Status {
    Status::failed_precondition(
        "this incarnation is not attached to this sidecar (any more): stop serving, and attach as a new instance",
    )
}

#[tonic::async_trait]
impl Handles for HandlesService {
    type AttachStream = ReceiverStream<Result<pb::AttachEvent, Status>>;

    async fn attach(
        &self,
        request: Request<pb::AttachRequest>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        if !self.accepts {
            return Err(Status::failed_precondition(
                "this sidecar serves a Samba ([samba] in its configuration); an SMB server of another kind needs a sidecar of its own",
            ));
        }
        let instance = request.into_inner().instance;
        let instance = Instance(
            instance
                .as_slice()
                .try_into()
                .map_err(|_| Status::invalid_argument("instance: must have 16 bytes"))?,
        );
        let place = Arc::clone(&self.place).try_lock_owned().map_err(|_| {
            Status::failed_precondition("an SMB server is attached to this sidecar already, or about to be")
        })?;
        let (sender, receiver) = mpsc::channel(EVENTS_LEN);
        tokio::spawn(self.clone().serve(instance, sender, place));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn ask(&self, request: Request<pb::AskRequest>) -> Result<Response<pb::AskResponse>, Status> {
        let request = request.into_inner();
        let proposer = {
            let attached = self.attached();
            let asks = |attached: &&Attached| attached.owner.incarnation.0 == request.incarnation;
            Arc::clone(&attached.as_ref().filter(asks).ok_or_else(not_attached)?.proposer)
        };
        let what: SmbRequest = required("AskRequest", "what", request.what)
            .and_then(|what| required("FromSmbNode", "request", what.request))
            .and_then(TryInto::try_into)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        match proposer.propose(what).await {
            Ok((_, outcome)) => Ok(Response::new(pb::AskResponse { outcome: Some((&outcome).into()) })),
            Err(RequestError::Ended) => Err(not_attached()),
            Err(error @ RequestError::Refused { .. }) => Err(Status::invalid_argument(error.to_string())),
        }
    }
}
