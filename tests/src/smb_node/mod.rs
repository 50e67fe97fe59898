//! How an SMB server that is no Samba uses the cluster: the client of its sidecar, from attaching to the end. To be
//! read beside `proto/proto/handles.proto`, which tells the life of such a server; nothing else of the harness is
//! needed to understand or to use it.
//!
//! | a server | calls |
//! |---|---|
//! | starts, and serves until [`SmbNode::stopped`] returns | [`SmbNode::attach`] |
//! | answers a CREATE | [`SmbNode::create`] |
//! | answers CLOSE, LOCK, an acknowledgement, … | [`SmbNode::close`], [`SmbNode::lock`], … |
//! | breaks what its clients cache, closes what others have taken, deletes files | [`SmbNode::watch`] |
//! | loses a client | [`SmbNode::end_session`] |
//!
//! Left out is what takes a file system or SMB on the wire: finding the file, its sizes and times, volatile ids,
//! channels and credits.
//!
//! # What must stay true
//!
//! - Nobody is told anything when the lease has run off: an answer that arrives later is not passed on. Others may have
//!   the opens by then.
//! - A lease that has run off is not taken up again, whatever is heard afterwards.
//! - Every queue is bounded, and every wait ends with the lease at the latest.

mod notices;

use std::collections::HashMap;
use std::future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use proto::WireError;
use proto::convert::required;
use proto::pb::handles::v1 as pb;
use proto::pb::handles::v1::attach_event::Event as Heard;
use proto::pb::handles::v1::handle_request::Request as Ask;
use proto::pb::handles::v1::handle_response::Result as Said;
use proto::pb::handles::v1::handle_service_client::HandleServiceClient;
use proto::pb::smb::v1 as smb;
use statedb::{
    Create, DurableFileId, FileKey, Incarnation, Instance, LeaseId, LeaseState, Lock, NodeId,
    OpenDescription, Opened, Operation, OplockLevel, Outcome, Owner, Request, SessionId, Sid,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

pub use notices::{Notice, Notices};

/// Requests without an answer; the sidecar reads no more from one server.
const REQUESTS_MAX: usize = 4096;

/// Between two attempts to reach a sidecar that is starting again.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum SmbNodeError {
    /// The cluster has decided against it.
    #[error("refused with {ntstatus:#010x}: {reason}")]
    Rejected {
        /// What the client is answered.
        ntstatus: u32,
        /// For the log.
        reason: String,
    },
    /// The file was wanted deleted by a client that is away. The server deletes it, says so (`Request::FileDeleted`),
    /// makes it anew if the CreateDisposition allows that, and asks again.
    #[error("the file has to be deleted first")]
    DeleteFirst(FileKey),
    /// The stream ended before the answer came: what was asked for is done or not. The server drops the client and ends
    /// its session; the client comes back, and asks for its opens or replays its CREATE.
    #[error("the sidecar was lost before it answered")]
    AnswerLost,
    /// This incarnation must not serve any more. It drops all its clients; a new instance may attach.
    #[error("this incarnation is over")]
    Stopped,
    /// Nobody is there, or the address is none.
    #[error("the sidecar cannot be reached")]
    Connect(#[from] tonic::transport::Error),
    /// The sidecar does not let this server in, or has ended.
    #[error("the sidecar does not serve this server")]
    Sidecar(#[from] Status),
    /// The sidecar does not understand the request. A mistake of the server.
    #[error("the request makes no sense: {0}")]
    Refused(String),
    /// This server does not understand the answer.
    #[error("the answer makes no sense")]
    Wire(#[from] WireError),
    /// The answer is to another question.
    #[error("this is no answer to what was asked: {0}")]
    Unexpected(Outcome),
}

/// What a client is told of its CREATE.
#[derive(Clone, Debug)]
pub struct Granted {
    /// What goes into the response.
    pub opened: Opened,
    /// The open as it is, if it was there before: this server may not know it, and rebuilds its records from this.
    pub open: Option<OpenDescription>,
}

/// A server that is attached to its sidecar. Clones are the same server; when the last one is dropped the server is dead
/// to the cluster, as soon as its lease has run off.
#[derive(Clone, Debug)]
pub struct SmbNode {
    owner: Owner,
    sidecar: Channel,
    requests: mpsc::Sender<Asked>,
    next_request: Arc<AtomicU64>,
    /// The end of the lease, which moves on as long as all is well.
    until: watch::Receiver<Instant>,
    _tasks: Arc<JoinSet<()>>,
}

/// A request on its way to the sidecar, and who waits for what is said to it.
#[derive(Debug)]
struct Asked {
    request: pb::HandleRequest,
    said: mpsc::Sender<Said>,
}

impl SmbNode {
    /// Attaches a server to the sidecar of this machine, at `http://host:port` or `unix:/path`, and returns when it may
    /// serve: when there is a quorum. `instance` is drawn at random once in the life of a server.
    pub async fn attach(sidecar: &str, instance: Instance) -> Result<Self, SmbNodeError> {
        let sidecar = Endpoint::from_shared(sidecar.to_owned())?.connect().await?;
        let (attached, events) = attach(&sidecar, instance).await?;
        let owner = Owner { node: NodeId(attached.node_id), incarnation: Incarnation(attached.incarnation) };
        let (extend, until) = watch::channel(end_of_lease(attached.lease_until_monotonic_ns));
        let (requests, asked) = mpsc::channel(REQUESTS_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_attached(sidecar.clone(), instance, events, extend));
        tasks.spawn(converse(sidecar.clone(), asked));
        Ok(Self { owner, sidecar, requests, next_request: Arc::default(), until, _tasks: Arc::new(tasks) })
    }

    /// Under which name this server may act.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Returns when this server must have stopped: it was declared down, or its lease has run off.
    pub async fn stopped(&self) {
        over(Some(self.until.clone())).await;
    }

    /// A client wants to open a file, or to have an open back. If others have to give up what they cache first, `interim`
    /// is called, which sends STATUS_PENDING. Who drops the future meanwhile gives the CREATE up.
    pub async fn create(&self, create: Create, interim: impl FnOnce()) -> Result<Granted, SmbNodeError> {
        let answer = self.ask(&Request::Create(Box::new(create)), interim).await?;
        let open = answer.open.map(OpenDescription::try_from).transpose()?;
        match required("Answer", "outcome", answer.outcome)?.try_into()? {
            Outcome::Opened(opened) => Ok(Granted { opened, open }),
            Outcome::DeleteFirst { file } => Err(SmbNodeError::DeleteFirst(file)),
            outcome => Err(SmbNodeError::Unexpected(outcome)),
        }
    }

    /// A client has closed an open.
    pub async fn close(&self, open: DurableFileId) -> Result<(), SmbNodeError> {
        self.decide(Request::Close(open)).await.map(drop)
    }

    /// A client locks or unlocks byte ranges. True if it had done so before, and asks again.
    pub async fn lock(&self, lock: Lock) -> Result<bool, SmbNodeError> {
        match self.decide(Request::Lock(lock)).await? {
            Outcome::Locked { is_replay } => Ok(is_replay),
            outcome => Err(SmbNodeError::Unexpected(outcome)),
        }
    }

    /// A client is about to change what others may have cached; it may when this returns. For `interim` see
    /// [`SmbNode::create`].
    pub async fn operate(
        &self,
        open: DurableFileId,
        operation: Operation,
        interim: impl FnOnce(),
    ) -> Result<(), SmbNodeError> {
        self.ask(&Request::Operate { open, operation }, interim).await.map(drop)
    }

    /// A client has acknowledged the break of an oplock.
    pub async fn ack_oplock_break(
        &self,
        open: DurableFileId,
        level: OplockLevel,
    ) -> Result<(), SmbNodeError> {
        self.decide(Request::AckOplockBreak { open, level }).await.map(drop)
    }

    /// A client has acknowledged the break of a lease.
    pub async fn ack_lease_break(&self, lease: LeaseId, state: LeaseState) -> Result<(), SmbNodeError> {
        self.decide(Request::AckLeaseBreak { lease, state }).await.map(drop)
    }

    /// A client has logged off, or its last connection is lost. Says what waits for it now, and what is closed.
    pub async fn end_session(&self, session: SessionId) -> Result<Outcome, SmbNodeError> {
        self.decide(Request::EndSession(session)).await
    }

    /// A client has set up a session, and names an earlier one, on whichever node: to be called before it is told of the
    /// new one. Says what waits for it now, and what is closed.
    pub async fn replace_session(&self, previous: SessionId, user: Sid) -> Result<Outcome, SmbNodeError> {
        self.decide(Request::ReplaceSession { previous, user }).await
    }

    /// Listens to what this server has to act on: behind an event that it has seen, or (`None`) from the present state on.
    pub async fn watch(&self, after: Option<u64>) -> Result<Notices, SmbNodeError> {
        let until = Some(self.until.clone());
        Notices::begin(self.sidecar.clone(), Some(self.owner.incarnation), after, until).await
    }

    /// Whatever else there is to ask, where nothing is to be done meanwhile.
    pub async fn decide(&self, request: Request) -> Result<Outcome, SmbNodeError> {
        let answer = self.ask(&request, || {}).await?;
        Ok(required("Answer", "outcome", answer.outcome)?.try_into()?)
    }

    /// Asks, and waits for the answer as long as the lease lasts.
    async fn ask(&self, request: &Request, interim: impl FnOnce()) -> Result<pb::Answer, SmbNodeError> {
        tokio::select! {
            biased;
            () = self.stopped() => Err(SmbNodeError::Stopped),
            answer = self.ask_and_wait(request, interim) => answer,
        }
    }

    async fn ask_and_wait(
        &self,
        request: &Request,
        interim: impl FnOnce(),
    ) -> Result<pb::Answer, SmbNodeError> {
        let (asked, mut said) = self.asked(request.into());
        let mut given_up = GivenUp { node: self, request_id: Some(asked.request.request_id) };
        self.requests.send(asked).await.map_err(|_| SmbNodeError::Stopped)?;
        let mut next = said.recv().await;
        if let Some(Said::Pending(_)) = next {
            interim();
            next = said.recv().await;
        }
        given_up.request_id = None;
        match next.ok_or(SmbNodeError::AnswerLost)? {
            Said::Answer(pb::Answer { ntstatus, reason, .. }) if ntstatus != 0 => {
                Err(SmbNodeError::Rejected { ntstatus, reason })
            }
            Said::Answer(answer) => Ok(answer),
            Said::Refused(refused) => Err(SmbNodeError::Refused(refused.reason)),
            Said::Pending(_) => Err(SmbNodeError::Unexpected(Outcome::BreakPending)),
        }
    }

    fn asked(&self, request: Ask) -> (Asked, mpsc::Receiver<Said>) {
        let request_id = self.next_request.fetch_add(1, Ordering::Relaxed);
        let incarnation = self.owner.incarnation.0;
        let request = pb::HandleRequest { incarnation, request_id, request: Some(request) };
        // Room for an interim and a final answer.
        let (sender, said) = mpsc::channel(2);
        (Asked { request, said: sender }, said)
    }
}

/// A request whose client does not want the answer any more when this is dropped, if it has a number.
struct GivenUp<'a> {
    node: &'a SmbNode,
    request_id: Option<u64>,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if let Some(request_id) = self.request_id {
            // Without room for it the request is decided when the breaks are overdue, and the open goes with its session.
            let _ = self.node.requests.try_send(self.node.asked(Ask::Cancel(request_id)).0);
        }
    }
}

/// Attaches, and waits for the word that the server may serve.
async fn attach(
    sidecar: &Channel,
    instance: Instance,
) -> Result<(pb::Attached, Streaming<pb::AttachEvent>), SmbNodeError> {
    let request = pb::AttachRequest { instance: instance.0.to_vec(), arbiter: smb::Arbiter::Cluster.into() };
    let mut events = HandleServiceClient::new(sidecar.clone()).attach(request).await?.into_inner();
    match events.message().await?.and_then(|message| message.event) {
        Some(Heard::Attached(attached)) => Ok((attached, events)),
        _ => Err(SmbNodeError::Stopped),
    }
}

/// The end of a lease, told in ns of the clock that this server shares with its sidecar: however late the message is read,
/// the end is when it is.
fn end_of_lease(until_monotonic_ns: u64) -> Instant {
    // In this order: a pause in between makes the lease shorter, not longer.
    let now = Instant::now();
    let clock = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the kernel has a monotonic clock");
    now + Duration::from_nanos(until_monotonic_ns).saturating_sub(clock.into())
}

/// Returns when a lease has run off; never without one.
async fn over(until: Option<watch::Receiver<Instant>>) {
    let Some(mut until) = until else { return future::pending().await };
    loop {
        let end = *until.borrow_and_update();
        tokio::select! {
            // First: what has run off is over, even if more was heard in the same moment.
            biased;
            () = sleep_until(end) => return,
            changed = until.changed() => if changed.is_err() { return sleep_until(end).await },
        }
    }
}

/// Hears how the lease goes on, and attaches again when the sidecar was restarted, until the lease has run off.
async fn keep_attached(
    sidecar: Channel,
    instance: Instance,
    mut events: Streaming<pb::AttachEvent>,
    until: watch::Sender<Instant>,
) {
    let extend = async {
        loop {
            match events.message().await {
                Ok(Some(pb::AttachEvent { event: Some(Heard::LeaseExtended(lease)) })) => {
                    until.send_replace(end_of_lease(lease.lease_until_monotonic_ns));
                }
                Ok(Some(_)) => return,
                Ok(None) | Err(_) => match attach(&sidecar, instance).await {
                    Ok((attached, again)) => {
                        until.send_replace(end_of_lease(attached.lease_until_monotonic_ns));
                        events = again;
                    }
                    Err(SmbNodeError::Stopped) => return,
                    Err(_) => sleep(RETRY_AFTER).await,
                },
            }
        }
    };
    tokio::select! {
        biased;
        () = over(Some(until.subscribe())) => {}
        () = extend => { until.send_replace(Instant::now()); }
    }
}

/// Passes requests on and answers back, by one stream after the other.
async fn converse(sidecar: Channel, mut asked: mpsc::Receiver<Asked>) {
    loop {
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        let stream = HandleServiceClient::new(sidecar.clone()).handle(ReceiverStream::new(outgoing)).await;
        let Ok(stream) = stream else {
            sleep(RETRY_AFTER).await;
            continue;
        };
        let mut responses = stream.into_inner();
        // When this is dropped, all who wait hear that their answers are lost.
        let mut waiting = HashMap::new();
        loop {
            tokio::select! {
                next = asked.recv(), if waiting.len() < REQUESTS_MAX => {
                    let Some(Asked { request, said }) = next else { return };
                    waiting.insert(request.request_id, said);
                    // There is room: whatever is in the channel waits for its answer.
                    if requests.try_send(request).is_err() {
                        break;
                    }
                }
                response = responses.message() => {
                    let Ok(Some(pb::HandleResponse { request_id, result: Some(result) })) = response else { break };
                    let is_final = !matches!(result, Said::Pending(_));
                    if let Some(said) = waiting.get(&request_id) {
                        // Who does not wait any more does not want to know.
                        let _ = said.try_send(result);
                    }
                    if is_final {
                        waiting.remove(&request_id);
                    }
                }
            }
        }
    }
}
