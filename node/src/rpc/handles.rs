//! The service for an SMB server that has no shim: it attaches, and asks for itself.
//!
//! Whatever it asks for takes one way, be it one of thousands on a [`Handle`](HandleService::handle) stream or a call of
//! its own: decode, wait for room, propose, encode. What has to wait for breaks gives its room back: it is bounded
//! by what the cluster lets wait, and those who are to be waited for ask through the same stream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prost::Message;
use proto::WireError;
use proto::convert::{Asked, Attach, answer};
use proto::pb::handles::v1 as pb;
use proto::pb::handles::v1::handle_response::Result as Said;
use proto::pb::handles::v1::handle_service_server::{HandleService as Rpc, HandleServiceServer};
use statedb::{OpenedHow, Outcome, Request as SmbRequest};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::attach::{AttachPoint, AttachStream, Attached, Room};
use super::hold;
use crate::proposer::{Answer, Decided, RequestError};
use crate::raft::{COMMAND_LEN_MAX, RaftNode};

/// The longest message of an SMB server: a request that fills a command, and what is around it. What is longer ends
/// its stream.
const MESSAGE_LEN_MAX: usize = COMMAND_LEN_MAX + 64 * 1024;

/// Responses that may wait for an SMB server that does not read. Requests that are decided wait behind them, with
/// their room.
const RESPONSES_LEN: usize = 256;

/// Answers SMB servers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HandleService {
    raft: Arc<RaftNode>,
    point: AttachPoint,
    verdict_within: Duration,
}

impl HandleService {
    /// To be added to a gRPC server. Servers attach at `point`. A node that does not answer is declared down within
    /// `verdict_within`.
    #[must_use]
    pub fn server(
        raft: Arc<RaftNode>,
        point: AttachPoint,
        verdict_within: Duration,
    ) -> HandleServiceServer<Self> {
        HandleServiceServer::new(Self { raft, point, verdict_within })
            .max_decoding_message_size(MESSAGE_LEN_MAX)
    }

    /// One request that came as a call of its own.
    async fn call<M>(&self, request: Request<M>) -> Result<Response<pb::Answer>, Status>
    where
        M: Message + TryInto<Asked, Error = WireError>,
    {
        let message = request.into_inner();
        let len = message.encoded_len();
        let Asked { incarnation, request } = message.try_into().map_err(invalid)?;
        let attached = self.point.attached(incarnation.0)?;
        let mut room = Some(attached.room(len).await);
        let decided = self.decide(&attached, request, &mut room, async |_| {}).await;
        decided.map(Response::new).map_err(|no_answer| match no_answer {
            NoAnswer::Refused(reason) => Status::invalid_argument(reason),
            NoAnswer::Ever(status) => status,
        })
    }

    /// What the SMB server is told, when this node's own state shows it.
    async fn answer(&self, attached: &Attached, (log_id, outcome): Decided) -> Result<pb::Answer, Status> {
        let opened = match &outcome {
            Outcome::Opened(opened) if opened.how != OpenedHow::Created => Some(opened.durable_file_id),
            _ => None,
        };
        if opened.is_some() {
            tokio::select! {
                () = self.raft.applied_through(log_id.index) => {}
                () = attached.ended.cancelled() => return Err(self.point.gone()),
            }
        }
        Ok(self.raft.read(|state| {
            let open = opened.and_then(|id| state.open(id));
            answer(&outcome, open.map(|open| &open.description), state.now())
        }))
    }

    fn no_answer(&self, error: &RequestError) -> Status {
        match error {
            RequestError::Ended | RequestError::Refused { .. } => self.point.gone(),
            RequestError::AnswerLost => Status::unavailable(error.to_string()),
        }
    }

    /// Serves a stream of requests until one of its ends is gone.
    async fn serve(self, mut requests: Streaming<pb::HandleRequest>, responses: Responses) {
        let under_way = UnderWay::default();
        let mut tasks = JoinSet::new();
        loop {
            // Reaped here, so that there are no more of them than requests under way.
            while tasks.try_join_next().is_some() {}
            let next = tokio::select! {
                next = requests.message() => next,
                () = responses.closed() => return,
                () = self.point.stop().cancelled() => Err(self.point.gone()),
            };
            let begun = match next {
                Ok(Some(request)) => self.begin(request, &under_way, &responses).await,
                // It asks for nothing more, and waits for its answers.
                Ok(None) => break,
                Err(status) => Err(status),
            };
            match begun {
                Ok(Some(request)) => {
                    tasks.spawn(self.clone().attend(request, responses.clone()));
                }
                Ok(None) => {}
                Err(status) => {
                    // Nothing more can be said behind that. The tasks end with this.
                    let _ = responses.send(Err(status)).await;
                    return;
                }
            }
        }
        let answered = async { while tasks.join_next().await.is_some() {} };
        tokio::select! {
            () = answered => {}
            () = responses.closed() => {}
        }
    }

    /// Takes a request up, when there is room for it. `None` if it is answered already.
    ///
    /// # Errors
    ///
    /// If the stream cannot go on.
    async fn begin(
        &self,
        request: pb::HandleRequest,
        under_way: &UnderWay,
        responses: &Responses,
    ) -> Result<Option<Begun>, Status> {
        let (request_id, len) = (request.request_id, request.encoded_len());
        let attached = self.point.attached(request.incarnation)?;
        let request = match Asked::try_from(request) {
            Ok(asked) => asked.request,
            Err(error) => {
                let refused = pb::Refused { reason: error.to_string() };
                return match responses.send(Ok(response(request_id, Said::Refused(refused)))).await {
                    Ok(()) => Ok(None),
                    Err(_) => Err(Status::cancelled("nobody reads the answers")),
                };
            }
        };
        let cancels = match &request {
            // To the cluster this is a sequence, which is known when the other request is known to wait.
            SmbRequest::Cancel { sequence: other } => Some(under_way.progress(*other)),
            _ => None,
        };
        let entry = under_way.begin(request_id).ok_or_else(|| {
            Status::invalid_argument(format!(
                "HandleRequest.request_id: {request_id} is the number of another request that is not answered yet"
            ))
        })?;
        let room = tokio::select! {
            room = attached.room(len) => room,
            () = responses.closed() => return Err(Status::cancelled("nobody reads the answers")),
            () = attached.ended.cancelled() => return Err(self.point.gone()),
            () = self.point.stop().cancelled() => return Err(self.point.gone()),
        };
        Ok(Some(Begun { request_id, attached, request, cancels, entry, room: Some(room) }))
    }

    /// Brings one request of a stream to its end.
    async fn attend(self, begun: Begun, responses: Responses) {
        let Begun { request_id, attached, request, cancels, entry, mut room } = begun;
        let decided = match cancels {
            None => {
                let pending = async |sequence| {
                    entry.waits(sequence);
                    // If nobody reads any more, this task ends with the stream.
                    let _ = responses.send(Ok(response(request_id, Said::Pending(pb::Pending {})))).await;
                };
                self.decide(&attached, request, &mut room, pending).await
            }
            Some(progress) => self.cancel(&attached, progress).await,
        };
        let said = match decided {
            Ok(answer) => Ok(response(request_id, Said::Answer(answer))),
            Err(NoAnswer::Refused(reason)) => Ok(response(request_id, Said::Refused(pb::Refused { reason }))),
            Err(NoAnswer::Ever(status)) => Err(status),
        };
        // Its number is free before the server hears of that; its room is not before it can.
        drop(entry);
        let _ = responses.send(said).await;
        drop(room);
    }

    /// Has a request decided. `pending` is called if it has to wait, and while it does it takes no room.
    async fn decide(
        &self,
        attached: &Attached,
        request: SmbRequest,
        room: &mut Option<Room>,
        pending: impl AsyncFnOnce(u64),
    ) -> Result<pb::Answer, NoAnswer> {
        let failed = |error: RequestError| match error {
            RequestError::Refused { .. } => NoAnswer::Refused(error.to_string()),
            error => NoAnswer::Ever(self.no_answer(&error)),
        };
        let node = attached.owner.node;
        if self.raft.read(|state| hold::takes_from_another_node(state, node, &request)) {
            *room = None;
            tokio::select! {
                () = hold::until_verdict(&self.raft, node, &request, self.verdict_within) => {}
                () = attached.ended.cancelled() => return Err(NoAnswer::Ever(self.point.gone())),
            }
            *room = Some(attached.room(0).await);
        }
        let decided = match attached.proposer.ask(request).await.map_err(failed)? {
            Answer::Decided(decided) => decided,
            Answer::Waiting(waiting) => {
                pending(waiting.sequence()).await;
                *room = None;
                let decided = waiting.decided().await.map_err(failed)?;
                *room = Some(attached.room(0).await);
                decided
            }
        };
        self.answer(attached, decided).await.map_err(NoAnswer::Ever)
    }

    /// Cancels another request, once it is known whether it waits.
    async fn cancel(
        &self,
        attached: &Attached,
        progress: Option<watch::Receiver<Option<u64>>>,
    ) -> Result<pb::Answer, NoAnswer> {
        let sequence = match progress {
            Some(mut progress) => {
                progress.wait_for(Option::is_some).await.ok().and_then(|sequence| *sequence)
            }
            None => None,
        };
        let Some(sequence) = sequence else {
            // It is decided.
            let now = self.raft.read(statedb::State::now);
            return Ok(answer(&Outcome::Cancelled, None, now));
        };
        let decided = attached.proposer.propose(SmbRequest::Cancel { sequence }).await;
        let decided = decided.map_err(|error| NoAnswer::Ever(self.no_answer(&error)))?;
        self.answer(attached, decided).await.map_err(NoAnswer::Ever)
    }
}

type Responses = mpsc::Sender<Result<pb::HandleResponse, Status>>;

/// A request of a stream that has been taken up.
struct Begun {
    request_id: u64,
    attached: Arc<Attached>,
    request: SmbRequest,
    /// For a cancel: how the other request gets on. An inner `None` if it is answered, or never was there.
    cancels: Option<Option<watch::Receiver<Option<u64>>>>,
    entry: Entry,
    room: Option<Room>,
}

/// Why a request has no answer.
enum NoAnswer {
    /// It makes no sense.
    Refused(String),
    /// Nor has any other request of the stream from here on.
    Ever(Status),
}

fn response(request_id: u64, said: Said) -> pb::HandleResponse {
    pb::HandleResponse { request_id, result: Some(said) }
}

fn invalid(error: WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The requests of a stream that are not answered yet, and the sequences of those that wait.
#[derive(Clone, Debug, Default)]
struct UnderWay(Arc<Mutex<HashMap<u64, watch::Sender<Option<u64>>>>>);

/// A request id that is in use until this is dropped.
struct Entry {
    request_id: u64,
    under_way: UnderWay,
}

impl UnderWay {
    /// `None` if the request id is in use.
    fn begin(&self, request_id: u64) -> Option<Entry> {
        let mut under_way = self.lock();
        if under_way.contains_key(&request_id) {
            return None;
        }
        under_way.insert(request_id, watch::Sender::new(None));
        Some(Entry { request_id, under_way: self.clone() })
    }

    /// Becomes the sequence of a request when it waits, and ends when it is answered. `None` if that is so.
    fn progress(&self, request_id: u64) -> Option<watch::Receiver<Option<u64>>> {
        self.lock().get(&request_id).map(watch::Sender::subscribe)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, watch::Sender<Option<u64>>>> {
        self.0.lock().expect("no holder of this lock can panic")
    }
}

impl Entry {
    fn waits(&self, sequence: u64) {
        if let Some(progress) = self.under_way.lock().get(&self.request_id) {
            progress.send_replace(Some(sequence));
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.request_id);
    }
}

/// The service, with all the calls that ask for one thing each.
macro_rules! service {
    ($($call:ident($request:ident)),+ $(,)?) => {
        #[tonic::async_trait]
        impl Rpc for HandleService {
            type AttachStream = AttachStream;
            type HandleStream = ReceiverStream<Result<pb::HandleResponse, Status>>;

            async fn attach(
                &self,
                request: Request<pb::AttachRequest>,
            ) -> Result<Response<Self::AttachStream>, Status> {
                let Attach { instance, arbiter } = request.into_inner().try_into().map_err(invalid)?;
                Ok(Response::new(self.point.attach(instance, arbiter)?))
            }

            async fn handle(
                &self,
                request: Request<Streaming<pb::HandleRequest>>,
            ) -> Result<Response<Self::HandleStream>, Status> {
                let (responses, stream) = mpsc::channel(RESPONSES_LEN);
                tokio::spawn(self.clone().serve(request.into_inner(), responses));
                Ok(Response::new(ReceiverStream::new(stream)))
            }

            $(
                async fn $call(
                    &self,
                    request: Request<pb::$request>,
                ) -> Result<Response<pb::Answer>, Status> {
                    self.call(request).await
                }
            )+
        }
    };
}
service! {
    create(CreateRequest),
    ack_oplock_break(AckOplockBreakRequest),
    ack_lease_break(AckLeaseBreakRequest),
    lock(LockRequest),
    operate(OperateRequest),
    note(NoteRequest),
    request_resiliency(RequestResiliencyRequest),
    close(CloseRequest),
    disconnect(DisconnectRequest),
    end_session(EndSessionRequest),
    replace_session(ReplaceSessionRequest),
    end_tree_connect(EndTreeConnectRequest),
    file_deleted(FileDeletedRequest),
    serve_share(ServeShareRequest),
    release_share(ReleaseShareRequest),
    grant(GrantRequest),
    update(UpdateRequest),
    reclaim(ReclaimRequest),
}
