//! An SMB server without a shim that asks nonsense, or more than it may; and whoever else finds its socket.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proto::pb::events::v1::WatchRequest;
use proto::pb::events::v1::event_service_client::EventServiceClient;
use proto::pb::handles::v1 as pb;
use proto::pb::handles::v1::handle_request::Request;
use proto::pb::handles::v1::handle_response::Result as Said;
use proto::pb::handles::v1::handle_service_client::HandleServiceClient;
use proto::pb::smb::v1 as smb;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::hostile_peers::{Lonely, assert_refused};
use crate::sidecar::{PATIENCE, Sidecar, Site, assert_says, refused};

fn attach(start: u8) -> pb::AttachRequest {
    pb::AttachRequest { instance: vec![start; 16], arbiter: smb::Arbiter::Cluster.into() }
}

/// Attaches, and returns the stream that keeps the server attached.
async fn attached(client: &mut HandleServiceClient<Channel>) -> (u64, tonic::Streaming<pb::AttachEvent>) {
    let mut events = client.attach(attach(1)).await.expect("a stream").into_inner();
    let event = events.message().await.expect("an event").and_then(|event| event.event);
    let Some(pb::attach_event::Event::Attached(attached)) = event else { panic!("{event:?}") };
    (attached.incarnation, events)
}

fn request(incarnation: u64, request_id: u64, request: Option<Request>) -> pb::HandleRequest {
    pb::HandleRequest { incarnation, request_id, request }
}

// Waiting for the log blocks a thread, and the connection needs one to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_smb_server_that_asks_nonsense_is_told_what_is_wrong() {
    let site = Site::alone();
    let mut sidecar = Sidecar::spawn(site.run());
    sidecar.wait_for_log("a new cluster is formed");
    let channel = site.connect().await;
    let mut client = HandleServiceClient::new(channel.clone());
    let mut watcher = EventServiceClient::new(channel);

    let short = pb::AttachRequest { instance: vec![1, 2, 3], ..attach(1) };
    assert_refused(client.attach(short).await, Code::InvalidArgument, &["AttachRequest.instance", "3"]);
    let unknown = pb::AttachRequest { arbiter: 99, ..attach(1) };
    assert_refused(client.attach(unknown).await, Code::InvalidArgument, &["AttachRequest.arbiter", "99"]);
    let close = pb::CloseRequest { incarnation: 1, durable_file_id: 1 };
    assert_refused(client.close(close).await, Code::FailedPrecondition, &["not attached", "stop serving"]);
    let watch = WatchRequest { after_sequence: None, incarnation: Some(1) };
    assert_refused(watcher.watch(watch).await, Code::FailedPrecondition, &["not attached"]);

    let (incarnation, events) = attached(&mut client).await;
    assert_refused(
        client.attach(attach(2)).await,
        Code::FailedPrecondition,
        &["attached to this sidecar already"],
    );
    let stranger = pb::CloseRequest { incarnation: incarnation + 1, durable_file_id: 1 };
    assert_refused(client.close(stranger).await, Code::FailedPrecondition, &["not attached"]);
    let nothing = pb::CreateRequest { incarnation, create: None };
    assert_refused(client.create(nothing).await, Code::InvalidArgument, &["CreateRequest.create"]);
    let empty = pb::CreateRequest { incarnation, create: Some(smb::Create::default()) };
    assert_refused(client.create(empty).await, Code::InvalidArgument, &["Create.client"]);

    // Its place is free when it is gone.
    drop(events);
    sidecar.wait_for_log("the SMB server is gone");
    client.attach(attach(2)).await.expect("a stream");
    sidecar.assert_lives();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_told_what_is_wrong_with_a_request_and_goes_on() {
    let site = Site::alone();
    let mut sidecar = Sidecar::spawn(site.run());
    sidecar.wait_for_log("a new cluster is formed");
    let mut client = HandleServiceClient::new(site.connect().await);
    let (incarnation, _events) = attached(&mut client).await;
    let image = vec![0; 1024 * 1024];
    let note = smb::Note { image: Some(image), ..smb::Note::default() };
    let requests = [
        request(incarnation, 1, None),
        request(incarnation, 2, Some(Request::Create(Box::default()))),
        request(incarnation, 3, Some(Request::Note(note))),
        // Not there, and that is for the cluster to say.
        request(incarnation, 4, Some(Request::Close(4))),
        // Answered, or never asked.
        request(incarnation, 5, Some(Request::Cancel(99))),
    ];
    let stream = client.handle(tokio_stream::iter(requests)).await.expect("a stream");
    let mut stream = stream.into_inner();
    let mut answers = Vec::new();
    while let Some(response) = stream.message().await.expect("the stream goes on to its end") {
        answers.push((response.request_id, response.result.expect("it says something")));
    }
    answers.sort_by_key(|(request_id, _)| *request_id);
    let [(1, Said::Refused(empty)), (2, Said::Refused(create)), (3, Said::Refused(large)), rest @ ..] =
        answers.as_slice()
    else {
        panic!("{answers:?}")
    };
    assert_says(&empty.reason, &["HandleRequest.request"]);
    assert_says(&create.reason, &["Create.client"]);
    assert_says(&large.reason, &["1048576"]);
    let [(4, Said::Answer(close)), (5, Said::Answer(cancel))] = rest else { panic!("{rest:?}") };
    assert_ne!(close.ntstatus, 0);
    assert_says(&close.reason, &["4"]);
    assert_eq!(cancel.ntstatus, 0);
    sidecar.assert_lives();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_cannot_be_understood_as_a_whole_is_ended_with_the_reason() {
    let site = Site::alone();
    let mut sidecar = Sidecar::spawn(site.run());
    sidecar.wait_for_log("a new cluster is formed");
    let mut client = HandleServiceClient::new(site.connect().await);
    let (incarnation, _events) = attached(&mut client).await;
    let close = || Some(Request::Close(1));
    let huge = smb::Note { image: Some(vec![0; 16 * 1024 * 1024]), ..smb::Note::default() };
    for (what, requests, code, expected) in [
        (
            "another incarnation",
            vec![request(incarnation + 1, 1, close())],
            Code::FailedPrecondition,
            "not attached",
        ),
        (
            // So many that they cannot all be answered before the second of them is read.
            "one number for two requests",
            (0..1000).map(|_| request(incarnation, 7, close())).collect(),
            Code::InvalidArgument,
            "request_id: 7",
        ),
        (
            "a message beyond every limit",
            vec![request(incarnation, 1, Some(Request::Note(huge)))],
            Code::OutOfRange,
            "length too large",
        ),
    ] {
        let stream = client.handle(tokio_stream::iter(requests)).await.expect(what);
        let mut stream = stream.into_inner();
        let status = loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("{what}: the stream ends well"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), code, "{what}: {status}");
        assert_says(status.message(), &[expected]);
    }
    // It is still attached.
    let close = pb::CloseRequest { incarnation, durable_file_id: 1 };
    client.close(close).await.expect("an answer");
    sidecar.assert_lives();
}

#[tokio::test]
async fn one_smb_server_waits_for_a_quorum_and_no_crowd() {
    let node = Lonely::start();
    let mut client = HandleServiceClient::new(node.site.connect().await);
    let waiting = client.attach(attach(1)).await.expect("a stream");
    assert_refused(client.attach(attach(2)).await, Code::FailedPrecondition, &["or about to be"]);
    drop(waiting);
    // Nobody says when the first one is forgotten.
    let deadline = Instant::now() + PATIENCE;
    while client.attach(attach(2)).await.is_err() {
        assert!(Instant::now() < deadline, "the place is not given up");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.assert_well();
}

#[tokio::test]
async fn a_sidecar_of_a_samba_turns_other_smb_servers_away() {
    let Some(site) = Site::with_scripted_samba() else { return };
    let _sidecar = site.start();
    let mut client = HandleServiceClient::new(site.connect().await);
    assert_refused(
        client.attach(attach(1)).await,
        Code::FailedPrecondition,
        &["[samba]", "a sidecar of its own"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unix_socket_serves_smb_servers_alone_and_survives_garbage() {
    let mut site = Site::alone();
    let path = site.path("handles.sock");
    site.handle_socket = Some(path.clone());
    let mut sidecar = Sidecar::spawn(site.run());
    sidecar.wait_for_log("served at a unix socket");
    sidecar.wait_for_log("a new cluster is formed");
    let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);

    for bytes in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0xff; 64 * 1024]] {
        let mut stream = UnixStream::connect(&path).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        // It may hang up before everything is sent.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
    let channel = Endpoint::from_shared(format!("unix:{}", path.display())).expect("a path");
    let channel = channel.connect().await.expect("it listens");
    let (_, _events) = attached(&mut HandleServiceClient::new(channel.clone())).await;
    let mut operator = proto::pb::ops::v1::ops_client::OpsClient::new(channel);
    let status = operator.status(proto::pb::ops::v1::StatusRequest {}).await;
    assert_refused(status, Code::Unimplemented, &[]);
    sidecar.assert_lives();
}

#[test]
fn the_unix_socket_of_another_sidecar_is_refused_and_left_alone() {
    let mut first = Site::alone();
    first.handle_socket = Some(first.path("handles.sock"));
    let mut running = Sidecar::spawn(first.run());
    running.wait_for_log("served at a unix socket");
    let mut second = Site::alone();
    second.handle_socket = first.handle_socket.clone();
    let error = refused(second.run());
    let path = first.path("handles.sock").display().to_string();
    assert_says(&error, &["another process listens at", &path, "[node] handle_socket"]);
    running.assert_lives();
    UnixStream::connect(&path).expect("the first one is still there");
}

#[test]
fn what_is_no_socket_is_not_replaced_by_one() {
    let mut site = Site::alone();
    let path = site.path("precious");
    std::fs::write(&path, "data").expect("a file");
    site.handle_socket = Some(path.clone());
    assert_says(&refused(site.run()), &[&path.display().to_string(), "is no socket"]);
    assert_eq!(std::fs::read(&path).expect("it is there"), b"data");
}
