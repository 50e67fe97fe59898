//! The place of the SMB server that has no shim: who is attached to this sidecar, and for how long.
//!
//! What the shim does for `smbd` such a server does by its own means: it stops serving when its lease ends, and asks
//! before it tells a client anything. The cluster holds it to its incarnation either way.
//!
//! There is one place, taken from the first word of a server to the end of its incarnation:
//!
//! ```text
//!  Attach ──► registering ──► attached ──► stream breaks ──► lease runs off ──► declared down ──► free
//!                                 ▲               │
//!                                 └── Attach, same instance
//! ```
//!
//! A server whose stream breaks may be alive, and may serve as long as it was told; so nobody declares it down sooner.
//! Meanwhile it can attach again, and goes on.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proto::pb::handles::v1 as pb;
use proto::pb::handles::v1::attach_event::Event;
use statedb::{Arbiter, Instance, NodeId, Owner};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{info, warn};

use crate::lease::{ServiceLease, monotonic_ns};
use crate::proposer::Proposer;
use crate::raft::RaftNode;
use crate::registration::{self, Registered};

/// Events that may wait for an SMB server that does not read; one comes with every heartbeat. A stream that is further
/// behind is taken for broken.
const EVENTS_LEN: usize = 64;

/// New streams of one instance that may wait for their turn. Each takes the place of the one before it.
const STREAMS_LEN: usize = 4;

/// How many bytes the requests of an SMB server that are under way may have together. Far less would do: an open has at
/// most 64 KiB, and rarely 1 KiB.
const BYTES_UNDER_WAY_MAX: usize = 64 * 1024 * 1024;

/// What an SMB server hears while it is attached.
pub type AttachStream = ReceiverStream<Result<pb::AttachEvent, Status>>;

type Events = mpsc::Sender<Result<pb::AttachEvent, Status>>;

/// The place for one SMB server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AttachPoint {
    raft: Arc<RaftNode>,
    lease: Arc<ServiceLease>,
    node: NodeId,
    /// False beside a Samba: a node has one SMB service.
    accepts: bool,
    stop: CancellationToken,
    place: Arc<Mutex<Option<Occupant>>>,
}

/// Who has the place.
#[derive(Debug)]
struct Occupant {
    instance: Instance,
    /// To attach again by.
    streams: mpsc::Sender<Events>,
    /// `None` until it is registered, and again when its time is up.
    attached: Option<Arc<Attached>>,
}

/// An SMB server that is attached, or may attach again any moment.
#[derive(Debug)]
pub struct Attached {
    /// Who it is.
    pub owner: Owner,
    /// What asks in its name.
    pub proposer: Arc<Proposer>,
    /// Cancelled when its incarnation is over.
    pub ended: CancellationToken,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// Room for a request that is under way, given back when this is dropped.
#[derive(Debug)]
pub struct Room {
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

impl Attached {
    /// Waits until there is room for a request of so many bytes.
    pub async fn room(&self, bytes: usize) -> Room {
        let bytes = u32::try_from(bytes.min(BYTES_UNDER_WAY_MAX)).unwrap_or(u32::MAX);
        let request = Arc::clone(&self.requests).acquire_owned().await;
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(bytes).await;
        let never_closed = "nobody closes these semaphores";
        Room { _request: request.expect(never_closed), _bytes: bytes.expect(never_closed) }
    }
}

/// Why the SMB server at an [`AttachPoint`] is told no more through a stream.
enum StreamEnd {
    /// It has gone, or does not read.
    Broken,
    /// It has attached again.
    Replaced(Events),
    /// The incarnation is over.
    Fenced,
    /// This process ends.
    Stopped,
}

impl AttachPoint {
    /// The place at `node`. With `accepts` false every server is turned away. `stop` ends the streams, and no
    /// incarnation: its server attaches to the next run of this process.
    #[must_use]
    pub fn new(
        raft: Arc<RaftNode>,
        lease: Arc<ServiceLease>,
        node: NodeId,
        accepts: bool,
        stop: CancellationToken,
    ) -> Self {
        Self { raft, lease, node, accepts, stop, place: Arc::default() }
    }

    /// Takes the place, or goes on in it.
    ///
    /// # Errors
    ///
    /// If somebody else has it.
    pub fn attach(&self, instance: Instance, arbiter: Arbiter) -> Result<AttachStream, Status> {
        if !self.accepts {
            return Err(Status::failed_precondition(
                "this sidecar serves a Samba ([samba] in its configuration); an SMB server of another kind needs a sidecar of its own",
            ));
        }
        let (events, stream) = mpsc::channel(EVENTS_LEN);
        let mut place = self.place();
        match place.as_ref() {
            None => {
                let (sender, streams) = mpsc::channel(STREAMS_LEN);
                *place = Some(Occupant { instance, streams: sender, attached: None });
                tokio::spawn(self.clone().serve(instance, arbiter, events, streams));
            }
            Some(occupant) if occupant.instance == instance => {
                occupant.streams.try_send(events).map_err(|_| {
                    Status::failed_precondition(
                        "the time of this instance is up, or it attaches too often: stop serving, and attach as a new instance",
                    )
                })?;
            }
            Some(_) => {
                return Err(Status::failed_precondition(
                    "an SMB server is attached to this sidecar already, or about to be",
                ));
            }
        }
        Ok(ReceiverStream::new(stream))
    }

    /// The SMB server with this incarnation.
    ///
    /// # Errors
    ///
    /// If it is not attached (any more).
    pub fn attached(&self, incarnation: u64) -> Result<Arc<Attached>, Status> {
        let place = self.place();
        let attached = place.as_ref().and_then(|occupant| occupant.attached.as_ref());
        let asks = |attached: &&Arc<Attached>| attached.owner.incarnation.0 == incarnation;
        attached.filter(asks).cloned().ok_or_else(|| self.gone())
    }

    /// What somebody is told whose incarnation is over, or whose sidecar ends.
    #[must_use]
    pub fn gone(&self) -> Status {
        if self.stop.is_cancelled() {
            return Status::unavailable(
                "this sidecar ends: go on when it is back, and attach with the same instance",
            );
        }
        Status::failed_precondition(
            "this incarnation is not attached to this sidecar (any more): stop serving, and attach as a new instance",
        )
    }

    /// Cancelled when this process ends.
    #[must_use]
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// The cluster has declared this incarnation down.
    pub fn fence(&self, owner: Owner) {
        let place = self.place();
        let attached = place.as_ref().and_then(|occupant| occupant.attached.as_ref());
        if let Some(attached) = attached.filter(|attached| attached.owner == owner) {
            attached.ended.cancel();
        }
    }

    /// One instance from its first word to its end.
    async fn serve(
        self,
        instance: Instance,
        arbiter: Arbiter,
        events: Events,
        streams: mpsc::Receiver<Events>,
    ) {
        let owner = self.serve_until_over(instance, arbiter, events, streams).await;
        if let Some(owner) = owner {
            registration::declare_down(&self.raft, owner).await;
            warn!(incarnation = %owner.incarnation, "the SMB server is gone");
        }
        *self.place() = None;
    }

    /// Returns the incarnation that is to be declared down, if there is one.
    async fn serve_until_over(
        &self,
        instance: Instance,
        arbiter: Arbiter,
        mut events: Events,
        mut streams: mpsc::Receiver<Events>,
    ) -> Option<Owner> {
        let registered = self.register(instance, arbiter, &mut events, &mut streams).await?;
        let Some(Registered { owner, proposer, ended }) = registered else {
            let _ = events.try_send(event(Event::Fenced(pb::Fenced {})));
            return None;
        };
        info!(incarnation = %owner.incarnation, "an SMB server is attached");
        let requests_max = usize::try_from(self.raft.read(|state| state.limits().outstanding_max));
        let requests_max = requests_max.unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
        let attached = Arc::new(Attached {
            owner,
            proposer,
            ended: ended.clone(),
            requests: Arc::new(Semaphore::new(requests_max)),
            bytes: Arc::new(Semaphore::new(BYTES_UNDER_WAY_MAX)),
        });
        self.set_attached(Some(attached));
        let is_over = self.serve_streams(owner, &ended, events, &mut streams).await;
        // From here on it cannot attach again.
        drop(streams);
        self.set_attached(None);
        self.lease.end(owner);
        is_over.then(|| {
            ended.cancel();
            owner
        })
    }

    /// Registers an instance, whichever of its streams it is that waits for that. `None` if nobody waits any more; an
    /// inner `None` if it is refused for ever.
    async fn register(
        &self,
        instance: Instance,
        arbiter: Arbiter,
        events: &mut Events,
        streams: &mut mpsc::Receiver<Events>,
    ) -> Option<Option<Registered>> {
        let mut registering =
            std::pin::pin!(registration::register(&self.raft, self.node, instance, arbiter));
        loop {
            tokio::select! {
                registered = &mut registering => return Some(registered),
                Some(next) = streams.recv() => *events = next,
                // Without a quorum that takes for ever. If it is registered after all, nobody keeps it alive.
                () = events.closed() => return None,
                () = self.stop.cancelled() => {
                    let _ = events.try_send(Err(self.gone()));
                    return None;
                }
            }
        }
    }

    /// Serves through one stream after another. Returns whether the incarnation is over; it is not if this process ends.
    async fn serve_streams(
        &self,
        owner: Owner,
        ended: &CancellationToken,
        mut events: Events,
        streams: &mut mpsc::Receiver<Events>,
    ) -> bool {
        self.lease.begin(owner);
        // Until when the server may serve, by what it was told through any of its streams.
        let mut told = None;
        loop {
            let end = self.pass_lease_on(owner, &events, ended, streams, &mut told).await;
            let may_attach_again = match end {
                StreamEnd::Replaced(next) => {
                    events = next;
                    continue;
                }
                StreamEnd::Stopped => {
                    let _ = events.try_send(Err(self.gone()));
                    return false;
                }
                StreamEnd::Broken => true,
                StreamEnd::Fenced => {
                    // One that does not read what it is told stops by its lease.
                    let _ = events.try_send(event(Event::Fenced(pb::Fenced {})));
                    false
                }
            };
            drop(events);
            self.lease.end(owner);
            let Some(until) = told else { return true };
            info!(incarnation = %owner.incarnation, "the SMB server has left, its lease runs off");
            // It may not have noticed, and go on as long as it was told.
            tokio::select! {
                Some(next) = streams.recv(), if may_attach_again => {
                    info!(incarnation = %owner.incarnation, "the SMB server is back");
                    events = next;
                    self.lease.begin(owner);
                }
                () = tokio::time::sleep_until(until.into()) => return true,
                () = self.stop.cancelled() => return false,
            }
        }
    }

    /// Tells the SMB server of its lease until one of the two is gone.
    async fn pass_lease_on(
        &self,
        owner: Owner,
        events: &Events,
        ended: &CancellationToken,
        streams: &mut mpsc::Receiver<Events>,
        told: &mut Option<Instant>,
    ) -> StreamEnd {
        let mut until = self.lease.until();
        let mut is_first = true;
        loop {
            let newest = *until.borrow_and_update();
            if let Some(until) = newest {
                let lease_ms = milliseconds_left(until);
                let lease_until_monotonic_ns = monotonic_ns(until);
                let next = if is_first {
                    let (incarnation, node_id) = (owner.incarnation.0, owner.node.0);
                    Event::Attached(pb::Attached { incarnation, lease_ms, node_id, lease_until_monotonic_ns })
                } else {
                    Event::LeaseExtended(pb::LeaseExtended { lease_ms, lease_until_monotonic_ns })
                };
                is_first = false;
                *told = newest.max(*told);
                // Gone, or too far behind.
                if events.try_send(event(next)).is_err() {
                    return StreamEnd::Broken;
                }
            }
            tokio::select! {
                // The lease lives as long as this process.
                _ = until.changed() => {}
                () = events.closed() => return StreamEnd::Broken,
                Some(next) = streams.recv() => return StreamEnd::Replaced(next),
                () = ended.cancelled() => return StreamEnd::Fenced,
                () = self.stop.cancelled() => return StreamEnd::Stopped,
            }
        }
    }

    fn set_attached(&self, attached: Option<Arc<Attached>>) {
        if let Some(occupant) = self.place().as_mut() {
            occupant.attached = attached;
        }
    }

    fn place(&self) -> MutexGuard<'_, Option<Occupant>> {
        self.place.lock().expect("no holder of this lock can panic")
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
