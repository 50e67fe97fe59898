//! An SMB server of a few lines and the services that it uses, over a unix socket, on a node that is its own quorum.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::pb::events::v1 as events;
use proto::pb::events::v1::event::Kind;
use proto::pb::events::v1::event_service_client::EventServiceClient;
use proto::pb::events::v1::watch_response::Response as Told;
use proto::pb::handles::v1 as pb;
use proto::pb::handles::v1::attach_event::Event;
use proto::pb::handles::v1::handle_request::Request as Wanted;
use proto::pb::handles::v1::handle_response::Result as Said;
use proto::pb::handles::v1::handle_service_client::HandleServiceClient;
use proto::pb::smb::v1 as smb;
use statedb::{Create, FileKey, Limits, Millis, NodeId, Oplock, Rejection, State};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::attach::AttachPoint;
use super::events::EventService;
use super::handles::HandleService;
use super::listen;
use crate::config::Timing;
use crate::fixtures::{FILE, create, lease};
use crate::lease::ServiceLease;
use crate::liveness::{self, Leadership};
use crate::raft::{RaftNode, RaftNodeConfig, RaftTiming};

/// Means "it hangs": longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Elected at once, and never taken for dead on a busy machine.
const TIMING: Timing = Timing {
    heartbeat_interval_ms: 20,
    election_timeout_min_ms: 60,
    election_timeout_max_ms: 120,
    self_fence_after_ms: 10_000,
    clock_skew_max_ms: 50,
    node_down_after_ms: 20_000,
};

const NODE: NodeId = NodeId(1);

struct Sidecar {
    raft: Arc<RaftNode>,
    point: AttachPoint,
    socket: PathBuf,
    _stop: DropGuard,
    _dir: TempDir,
}

impl Sidecar {
    async fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let raft = RaftNode::start(RaftNodeConfig {
            id: NODE,
            // Nobody else is there to use it.
            voters: [(NODE, "127.0.0.1:1".to_owned())].into(),
            data_dir: dir.path().join("data"),
            timing: RaftTiming {
                heartbeat_interval: TIMING.heartbeat_interval(),
                election_timeout_min: Duration::from_millis(TIMING.election_timeout_min_ms),
                election_timeout_max: Duration::from_millis(TIMING.election_timeout_max_ms),
            },
            fingerprint: 7,
            limits,
        })
        .await
        .expect("it starts");
        let stop = CancellationToken::new();
        let leadership = Arc::new(Leadership::new(TIMING));
        let lease = Arc::new(ServiceLease::new(TIMING.self_fence_after()));
        let point = AttachPoint::new(Arc::clone(&raft), Arc::clone(&lease), NODE, true, stop.clone());
        tokio::spawn(liveness::lead(Arc::clone(&raft), Arc::clone(&leadership), stop.clone()));
        let fenced = point.clone();
        let fenced = move |owner| fenced.fence(owner);
        tokio::spawn(liveness::keep_alive(Arc::clone(&raft), leadership, lease, fenced, stop.clone()));
        let socket = dir.path().join("handles.sock");
        let server = listen::server()
            .add_service(HandleService::server(Arc::clone(&raft), point.clone(), TIMING.verdict_within()))
            .add_service(EventService::server(Arc::clone(&raft), point.clone()));
        let incoming = listen::incoming(listen::at_socket(&socket).expect("it is free"));
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
        Self { raft, point, socket, _stop: stop.drop_guard(), _dir: dir }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("unix:{}", self.socket.display())).expect("a path");
        endpoint.connect().await.expect("it listens")
    }

    async fn attach(&self) -> SmbServer {
        let mut client = HandleServiceClient::new(self.channel().await);
        let (incarnation, stream) = attach(&mut client, 1).await.expect("the place is free");
        SmbServer { incarnation, client, watcher: EventServiceClient::new(self.channel().await), stream }
    }

    /// Waits until the replicated state is so.
    async fn until(&self, is_so: impl Fn(&State) -> bool) {
        let mut applied = self.raft.applied();
        within(async {
            while !self.raft.read(&is_so) {
                applied.changed().await.expect("the node runs");
            }
        })
        .await;
    }
}

async fn attach(
    client: &mut HandleServiceClient<Channel>,
    instance: u8,
) -> Result<(u64, Streaming<pb::AttachEvent>), Status> {
    let arbiter = smb::Arbiter::Cluster.into();
    let request = pb::AttachRequest { instance: vec![instance; 16], arbiter };
    let mut stream = client.attach(request).await?.into_inner();
    let event = within(stream.message()).await?.and_then(|event| event.event);
    let Some(Event::Attached(attached)) = event else { panic!("{event:?}") };
    assert_eq!(attached.node_id, NODE.0);
    Ok((attached.incarnation, stream))
}

struct SmbServer {
    incarnation: u64,
    client: HandleServiceClient<Channel>,
    watcher: EventServiceClient<Channel>,
    stream: Streaming<pb::AttachEvent>,
}

impl SmbServer {
    async fn handle(&mut self) -> Requests {
        let (sender, receiver) = mpsc::channel(1);
        let stream = self.client.handle(ReceiverStream::new(receiver)).await.expect("a stream");
        Requests { incarnation: self.incarnation, sender, responses: stream.into_inner() }
    }

    async fn create(&mut self, create: &Create) -> pb::Answer {
        let request = pb::CreateRequest { incarnation: self.incarnation, create: Some(create.into()) };
        within(self.client.create(request)).await.expect("an answer").into_inner()
    }

    async fn close(&mut self, open: u64) -> pb::Answer {
        let request = pb::CloseRequest { incarnation: self.incarnation, durable_file_id: open };
        within(self.client.close(request)).await.expect("an answer").into_inner()
    }

    async fn watch(&mut self, after_sequence: Option<u64>) -> Watch {
        let incarnation = Some(self.incarnation);
        let request = events::WatchRequest { after_sequence, incarnation };
        Watch(self.watcher.watch(request).await.expect("a stream").into_inner())
    }
}

/// A `Handle` stream.
struct Requests {
    incarnation: u64,
    sender: mpsc::Sender<pb::HandleRequest>,
    responses: Streaming<pb::HandleResponse>,
}

impl Requests {
    async fn ask(&self, request_id: u64, wanted: Wanted) {
        let request = pb::HandleRequest { incarnation: self.incarnation, request_id, request: Some(wanted) };
        within(self.sender.send(request)).await.expect("the stream lives");
    }

    async fn hear(&mut self) -> (u64, Said) {
        let response = within(self.responses.message()).await.expect("the stream lives");
        let response = response.expect("the stream goes on");
        (response.request_id, response.result.expect("it says something"))
    }

    async fn hear_answer(&mut self) -> (u64, pb::Answer) {
        match self.hear().await {
            (request_id, Said::Answer(answer)) => (request_id, answer),
            other => panic!("{other:?}"),
        }
    }

    async fn hear_pending(&mut self) -> u64 {
        match self.hear().await {
            (request_id, Said::Pending(_)) => request_id,
            other => panic!("{other:?}"),
        }
    }
}

struct Watch(Streaming<events::WatchResponse>);

impl Watch {
    async fn hear(&mut self) -> Told {
        let response = within(self.0.message()).await.expect("the stream lives");
        response.expect("the stream goes on").response.expect("it says something")
    }

    async fn hear_event(&mut self) -> (u64, Kind) {
        match self.hear().await {
            Told::Event(event) => (event.sequence, event.kind.expect("something happened")),
            other => panic!("{other:?}"),
        }
    }
}

async fn within<T>(wait: impl Future<Output = T>) -> T {
    timeout(PATIENCE, wait).await.expect("it takes far less")
}

fn opened(answer: &pb::Answer) -> u64 {
    match answer.outcome.as_ref().and_then(|outcome| outcome.outcome.as_ref()) {
        Some(smb::outcome::Outcome::Opened(opened)) => opened.durable_file_id,
        other => panic!("{other:?}"),
    }
}

/// What the client of the lease answers when it is told to break it.
fn ack(notice: &events::LeaseBreak) -> smb::AckLeaseBreak {
    smb::AckLeaseBreak { lease: notice.lease.clone(), state: notice.to }
}

fn cancelled() -> u32 {
    Rejection::Cancelled.ntstatus()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_waits_is_answered_at_once_and_again_when_it_is_decided() {
    let sidecar = Sidecar::start(Limits::DEFAULT).await;
    let mut server = sidecar.attach().await;
    let mut watch = server.watch(None).await;
    assert!(matches!(watch.hear().await, Told::Resync(_)));
    assert!(matches!(watch.hear().await, Told::Synced(_)), "it has nothing yet");
    let held = opened(&server.create(&create(1, lease(7))).await);

    let mut requests = server.handle().await;
    requests.ask(5, Wanted::Create(Box::new((&create(2, Oplock::None)).into()))).await;
    assert_eq!(requests.hear_pending().await, 5);
    let (_, Kind::LeaseBreak(notice)) = watch.hear_event().await else { panic!("no lease break") };
    assert!(notice.ack_until_ms.is_some());
    requests.ask(6, Wanted::AckLeaseBreak(ack(&notice))).await;
    let mut answers = [requests.hear_answer().await, requests.hear_answer().await];
    answers.sort_by_key(|(request_id, _)| *request_id);
    let [(5, created), (6, acknowledged)] = answers else { panic!("{answers:?}") };
    assert_eq!(acknowledged.ntstatus, 0);
    assert_ne!(opened(&created), held);
    assert_eq!(created.open, None, "its server knows it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waits_returns_when_it_is_decided() {
    let sidecar = Sidecar::start(Limits::DEFAULT).await;
    let mut server = sidecar.attach().await;
    let held = opened(&server.create(&create(1, lease(7))).await);
    let waiting = tokio::spawn({
        let request = pb::CreateRequest {
            incarnation: server.incarnation,
            create: Some((&create(2, Oplock::None)).into()),
        };
        let mut client = server.client.clone();
        async move { client.create(request).await }
    });
    sidecar.until(|state| state.waiting_requests().count() == 1).await;
    assert!(!waiting.is_finished());
    assert_eq!(server.close(held).await.ntstatus, 0);
    let answer = within(waiting).await.expect("it does not panic").expect("an answer").into_inner();
    assert_ne!(opened(&answer), held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_cancelled_by_the_number_that_its_server_gave_it() {
    let sidecar = Sidecar::start(Limits::DEFAULT).await;
    let mut server = sidecar.attach().await;
    server.create(&create(1, lease(7))).await;
    let mut requests = server.handle().await;
    // Right behind each other: the second comes before it is known whether the first waits.
    requests.ask(1, Wanted::Create(Box::new((&create(2, Oplock::None)).into()))).await;
    requests.ask(2, Wanted::Cancel(1)).await;
    assert_eq!(requests.hear_pending().await, 1);
    let mut answers = [requests.hear_answer().await, requests.hear_answer().await];
    answers.sort_by_key(|(request_id, _)| *request_id);
    assert_eq!((answers[0].0, answers[0].1.ntstatus), (1, cancelled()));
    assert_eq!((answers[1].0, answers[1].1.ntstatus), (2, 0));
    assert_eq!(sidecar.raft.read(|state| state.waiting_requests().count()), 0);
    // Its number may be used again.
    requests.ask(1, Wanted::Close(99)).await;
    assert_eq!(requests.hear_answer().await.0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_stream_or_a_caller_that_is_gone_is_given_up() {
    let sidecar = Sidecar::start(Limits::DEFAULT).await;
    let mut server = sidecar.attach().await;
    server.create(&create(1, lease(7))).await;
    let mut requests = server.handle().await;
    requests.ask(1, Wanted::Create(Box::new((&create(2, Oplock::None)).into()))).await;
    assert_eq!(requests.hear_pending().await, 1);
    drop(requests);
    sidecar.until(|state| state.waiting_requests().count() == 0).await;

    let mut client = server.client.clone();
    let request = pb::CreateRequest {
        incarnation: server.incarnation,
        create: Some((&create(3, Oplock::None)).into()),
    };
    let call = tokio::spawn(async move { client.create(request).await });
    sidecar.until(|state| state.waiting_requests().count() == 1).await;
    call.abort();
    sidecar.until(|state| state.waiting_requests().count() == 0).await;
    assert_eq!(sidecar.raft.read(State::opens_len), 1, "nobody else has the file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_read_no_further_than_there_is_room_for_requests() {
    let limits = Limits { outstanding_max: 256, ..Limits::DEFAULT };
    let sidecar = Sidecar::start(limits).await;
    let mut server = sidecar.attach().await;
    let attached = sidecar.point.attached(server.incarnation).expect("it is");
    let mut taken = Vec::new();
    for _ in 0..limits.outstanding_max {
        taken.push(attached.room(0).await);
    }
    let requests = server.handle().await;
    let Requests { incarnation, sender, mut responses } = requests;
    // More than the connection holds by itself, in numbers and then in bytes.
    let image = vec![0; 64 * 1024];
    let (small, asked) = (6_000, 6_032);
    let asking = tokio::spawn(async move {
        for request_id in 0..asked {
            let request = Some(if request_id < small {
                Wanted::Close(request_id)
            } else {
                Wanted::Note(smb::Note { image: Some(image.clone()), ..smb::Note::default() })
            });
            sender.send(pb::HandleRequest { incarnation, request_id, request }).await.expect("it lives");
        }
    });
    let heard = timeout(Duration::from_millis(500), responses.message()).await;
    assert!(heard.is_err(), "without any room: {heard:?}");
    assert!(!asking.is_finished(), "it was read without any room");
    taken.clear();
    let mut answered = Vec::new();
    while let Some(response) = within(responses.message()).await.expect("the stream lives") {
        answered.push(response.request_id);
    }
    answered.sort_unstable();
    assert!(answered.into_iter().eq(0..asked), "each is answered once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_leave_room_for_those_whom_they_wait_for() {
    let limits = Limits { outstanding_max: 2, ..Limits::DEFAULT };
    let sidecar = Sidecar::start(limits).await;
    let mut server = sidecar.attach().await;
    let mut watch = server.watch(None).await;
    server.create(&create(1, lease(7))).await;
    let mut requests = server.handle().await;
    let waiting = 8;
    for client in 0..waiting {
        let other = create(2 + client, Oplock::None);
        requests.ask(client.into(), Wanted::Create(Box::new((&other).into()))).await;
        assert_eq!(requests.hear_pending().await, u64::from(client));
    }
    let notice = loop {
        if let Told::Event(events::Event { kind: Some(Kind::LeaseBreak(notice)), .. }) = watch.hear().await {
            break notice;
        }
    };
    requests.ask(100, Wanted::AckLeaseBreak(ack(&notice))).await;
    for _ in 0..=waiting {
        assert_eq!(requests.hear_answer().await.1.ntstatus, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_break_that_nobody_acknowledges_ends_once_and_leaves_the_log_alone() {
    let limits = Limits { break_timeout: Millis(100), ..Limits::DEFAULT };
    let sidecar = Sidecar::start(limits).await;
    let mut server = sidecar.attach().await;
    server.create(&create(1, lease(7))).await;
    let answer = server.create(&create(2, Oplock::None)).await;
    assert_eq!(answer.ntstatus, 0, "it has waited for the break");
    let last_log_index = || sidecar.raft.status().last_log_index;
    let index = last_log_index();
    // Many looks of the leader.
    tokio::time::sleep(20 * TIMING.heartbeat_interval()).await;
    assert_eq!(last_log_index(), index);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_behind_the_event_that_was_seen_last() {
    let sidecar = Sidecar::start(Limits::DEFAULT).await;
    let mut server = sidecar.attach().await;
    let mut watch = server.watch(None).await;
    assert!(matches!(watch.hear().await, Told::Resync(_)));
    assert!(matches!(watch.hear().await, Told::Synced(_)), "it has nothing yet");
    let mut requests = server.handle().await;
    let mut fight_for = async |inode: u8| {
        let file = FileKey { inode: inode.into(), ..FILE };
        let holder = Create { file, ..create(1, lease(inode)) };
        requests.ask(inode.into(), Wanted::Create(Box::new((&holder).into()))).await;
        opened(&requests.hear_answer().await.1);
        let other = Create { file, ..create(2, Oplock::None) };
        requests.ask(inode.into(), Wanted::Create(Box::new((&other).into()))).await;
        requests.hear_pending().await;
    };
    fight_for(10).await;
    let (seen, _) = watch.hear_event().await;
    drop(watch);
    // Nobody listens.
    fight_for(11).await;
    fight_for(12).await;

    let mut watch = server.watch(Some(seen)).await;
    fight_for(13).await;
    let mut last = seen;
    for inode in 11..=13 {
        let (sequence, Kind::LeaseBreak(notice)) = watch.hear_event().await else { panic!("no lease break") };
        assert!(sequence > last, "in order");
        last = sequence;
        assert_eq!(notice.lease.map(|lease| lease.key), Some(vec![inode; 16]), "each once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_too_late_for_the_events_is_told_the_state() {
    let sidecar = Sidecar::start(Limits::DEFAULT).await;
    let mut server = sidecar.attach().await;
    let held = opened(&server.create(&create(1, lease(7))).await);
    let mut requests = server.handle().await;
    requests.ask(1, Wanted::Create(Box::new((&create(2, Oplock::None)).into()))).await;
    requests.hear_pending().await;
    // As when the whole state has come from another node: what led to it is not known here.
    let next_event = sidecar.raft.read(State::next_event);
    assert!(next_event > 1);
    sidecar.raft.events().restart(next_event);

    let mut watch = server.watch(Some(0)).await;
    let Told::Resync(resync) = watch.hear().await else { panic!("no resync") };
    assert_eq!(resync.next_sequence, next_event);
    let Told::OpenNow(open) = watch.hear().await else { panic!("no open") };
    assert_eq!(open.description.map(|open| open.durable_file_id), Some(held));
    let Told::BreakNow(events::BreakNow { notice: Some(events::break_now::Notice::LeaseBreak(notice)) }) =
        watch.hear().await
    else {
        panic!("no break")
    };
    assert!(notice.ack_until_ms.is_some());
    assert!(matches!(watch.hear().await, Told::Synced(_)));
    requests.ask(2, Wanted::AckLeaseBreak(ack(&notice))).await;
    let mut answers = [requests.hear_answer().await.0, requests.hear_answer().await.0];
    answers.sort_unstable();
    assert_eq!(answers, [1, 2]);

    // An operator is told where the events begin.
    let request = events::WatchRequest { after_sequence: Some(0), incarnation: None };
    let mut watch = Watch(server.watcher.watch(request).await.expect("a stream").into_inner());
    assert!(matches!(watch.hear().await, Told::Resync(resync) if resync.next_sequence == next_event));
    assert!(matches!(watch.hear().await, Told::Synced(_)));
    assert_eq!(watch.hear_event().await.0, next_event);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_stream_breaks_attaches_again_and_is_the_same() {
    let sidecar = Sidecar::start(Limits::DEFAULT).await;
    let mut server = sidecar.attach().await;
    let held = opened(&server.create(&create(1, lease(7))).await);
    let SmbServer { incarnation, ref mut client, .. } = server;

    // The old stream is still there, as when the server has noticed its end and the sidecar has not.
    let (again, stream) = attach(client, 1).await.expect("it is the same");
    assert_eq!(again, incarnation);
    while let Ok(Some(event)) = within(server.stream.message()).await {
        assert!(matches!(event.event, Some(Event::LeaseExtended(_))), "{event:?}");
    }
    // It breaks, and is noticed first.
    drop(stream);
    let (again, stream) = attach(client, 1).await.expect("it is the same");
    assert_eq!(again, incarnation);
    let status = attach(client, 2).await.expect_err("the place is taken");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert_eq!(server.close(held).await.ntstatus, 0, "it still has its open");
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_declared_down_is_told_on_all_its_streams() {
    let sidecar = Sidecar::start(Limits::DEFAULT).await;
    let mut server = sidecar.attach().await;
    let mut watch = server.watch(None).await;
    let mut requests = server.handle().await;
    let owner = sidecar.point.attached(server.incarnation).expect("it is").owner;
    crate::registration::declare_down(&sidecar.raft, owner).await;
    let fenced = async {
        while let Some(event) = server.stream.message().await.expect("it ends well") {
            if let Some(Event::Fenced(_)) = event.event {
                return;
            }
        }
        panic!("it was not told");
    };
    within(fenced).await;
    let status = loop {
        match within(watch.0.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the watch ends well"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    requests.ask(1, Wanted::Close(1)).await;
    let status = within(requests.responses.message()).await.expect_err("it is fenced");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
}
