//! The verbs that ask a node: what they say when it answers, and when there is none, or something else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use proto::pb::handles::v1 as pb;
use proto::pb::handles::v1::handle_service_client::HandleServiceClient;
use proto::pb::smb::v1 as smb;

use crate::sidecar::{Sidecar, Site, assert_says, end, free_endpoint, holdfast, refused, wait_until};

const VERBS: [&str; 3] = ["status", "handles", "events"];

fn ask(verb: &str, address: SocketAddr) -> String {
    refused(holdfast([verb, "--address", &address.to_string()]))
}

#[test]
fn nobody_there_is_said_with_the_address() {
    for verb in VERBS {
        let address = free_endpoint();
        let error = ask(verb, address);
        assert_says(&error, &["no holdfast answers", &address.to_string(), "Connection refused"]);
    }
}

#[test]
fn an_answer_in_another_language_is_said_with_the_address() {
    for verb in VERBS {
        let address = serve(b"SSH-2.0-OpenSSH_9.2p1\r\n");
        assert_says(&ask(verb, address), &["holdfast", &address.to_string()]);
    }
}

#[test]
fn silence_is_not_waited_for_for_ever() {
    for verb in VERBS {
        let address = serve(b"");
        assert_says(&ask(verb, address), &["no answer", &address.to_string(), "5s"]);
    }
}

#[test]
fn a_missing_configuration_is_said_with_the_way_out() {
    for verb in VERBS {
        let mut command = holdfast([verb, "--config", "/nonexistent/holdfast.toml"]);
        command.env_remove("HOLDFAST_ADDRESS");
        let error = refused(command);
        assert_says(
            &error,
            &["--address HOST:PORT or --config FILE", "/nonexistent/holdfast.toml", "No such file"],
        );
    }
}

#[test]
fn an_address_that_is_none_is_refused() {
    for address in ["", "nowhere", "http://127.0.0.1:7400", "a b:1"] {
        assert_says(&refused(holdfast(["status", "--address", address])), &["host:port", address]);
    }
}

#[test]
fn a_node_that_is_well_is_shown_for_people_and_for_programs() {
    let site = Site::alone();
    let sidecar = Sidecar::spawn(site.run());
    sidecar.wait_for_log("holdfast starts");
    let address = site.address().to_string();
    wait_until(
        || end(holdfast(["status", "--address", &address])).stdout.contains("leader node 1"),
        || sidecar.log(),
    );

    let status = site.status();
    let keys = [
        "node_id",
        "version",
        "role",
        "term",
        "leader",
        "last_log_index",
        "applied_index",
        "now_ms",
        "quorum_age_ms",
        "opens",
        "disconnected_opens",
        "waiting_requests",
        "breaks_under_way",
        "deletes_pending",
        "contradictions",
        "conflicts_refused",
        "next_event",
        "nodes",
        "shares",
        "warnings",
    ];
    for key in keys {
        assert!(status.get(key).is_some(), "{key} is missing in {status:#}");
    }
    assert_eq!((&status["node_id"], &status["role"]), (&1.into(), &"leader".into()));
    assert_eq!(status["nodes"][0]["address"], address);

    // By its configuration, as an operator on the node itself asks.
    let mut by_config = holdfast(["status", "--config"]);
    by_config.arg(site.config());
    let table = end(by_config);
    assert!(table.success, "{}", table.stderr);
    assert_says(&table.stdout, &["node 1 (leader", "leader node 1", "smb service", "never seen", &address]);

    let handles = end(holdfast(["handles", "--address", &address, "--output", "json"]));
    assert_eq!(handles.stdout.trim(), "[]", "{}", handles.stderr);
    let handles = end(holdfast(["handles", "--address", &address, "--share", "none", "--disconnected"]));
    assert_says(&handles.stdout, &["path", "oplock", "0 opens"]);
    sidecar.stop();
}

/// A client names its files as it likes, and the operator's terminal must not obey it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_is_shown_for_people_and_for_programs() {
    let site = Site::alone();
    let sidecar = Sidecar::spawn(site.run());
    sidecar.wait_for_log("a new cluster is formed");
    let address = site.address().to_string();
    let mut client = HandleServiceClient::new(site.connect().await);
    let arbiter = smb::Arbiter::SmbServer.into();
    let attach = pb::AttachRequest { instance: vec![7; 16], arbiter };
    let mut events = client.attach(attach).await.expect("a stream").into_inner();
    let event = events.message().await.expect("an event").and_then(|event| event.event);
    let Some(pb::attach_event::Event::Attached(attached)) = event else { panic!("{event:?}") };
    let open = open("plans/\u{1b}[2Jsecret.odt");
    let incarnation = attached.incarnation;
    let served = client.serve_share(pb::ServeShareRequest { incarnation, share: "data".to_owned() }).await;
    assert_eq!(served.expect("an answer").into_inner().ntstatus, 0);
    let granted = client.grant(pb::GrantRequest { incarnation, open: Some(open) }).await;
    assert_eq!(granted.expect("an answer").into_inner().ntstatus, 0);

    let table = end(holdfast(["handles", "--address", &address])).stdout;
    assert_says(
        &table,
        &["00001234", "data", "plans/\\u{1b}[2Jsecret.odt", "batch", "connected, node 1", "1 opens"],
    );
    assert!(!table.contains('\u{1b}'), "the terminal is told what to do: {table:?}");

    let listed =
        end(holdfast(["handles", "--address", &address, "--output", "json", "--share", "DATA"])).stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("what is printed is JSON");
    let keys = [
        "durable_file_id",
        "create_guid",
        "client_guid",
        "durable_owner",
        "share",
        "path",
        "file",
        "granted_access",
        "share_access",
        "oplock",
        "oplock_state",
        "lease_key",
        "lease_epoch",
        "durability",
        "durable_open_timeout_ms",
        "byte_range_locks",
        "delete_on_close",
        "state",
        "session",
        "node_id",
        "expires_in_ms",
    ];
    for key in keys {
        assert!(listed[0].get(key).is_some(), "{key} is missing in {listed:#}");
    }
    assert_eq!((&listed[0]["state"], &listed[0]["node_id"]), (&"connected".into(), &1.into()));
    for filter in [["--share", "other"], ["--node", "2"]] {
        let mut none = holdfast(["handles", "--address", &address, "--output", "json"]);
        none.args(filter);
        assert_eq!(end(none).stdout.trim(), "[]", "{filter:?}");
    }
    assert_eq!(site.status()["shares"][0]["share"], "data");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_shown_for_people_and_for_programs() {
    let site = Site::alone();
    let sidecar = Sidecar::spawn(site.run());
    sidecar.wait_for_log("a new cluster is formed");
    let address = site.address().to_string();
    let nothing = end(holdfast(["events", "--address", &address]));
    assert!(nothing.success && nothing.stdout.is_empty(), "{} {}", nothing.stdout, nothing.stderr);

    let follow = holdfast(["events", "--follow", "--output", "json", "--address", &address]);
    let follower = Sidecar::spawn(follow);
    let mut client = HandleServiceClient::new(site.connect().await);
    for start in 1..=2 {
        let attach = pb::AttachRequest { instance: vec![start; 16], ..pb::AttachRequest::default() };
        let mut events = client.attach(attach).await.expect("a stream").into_inner();
        events.message().await.expect("it is attached");
        drop(events);
        wait_until(
            || sidecar.log().matches("the SMB server is gone").count() == usize::from(start),
            || sidecar.log(),
        );
    }
    // Events 1 to 4: up, down, up, down.
    let table = end(holdfast(["events", "--after", "2", "--address", &address]));
    let lines: Vec<_> = table.stdout.lines().map(str::trim).collect();
    assert_eq!(lines.len(), 2, "{} {}", table.stdout, table.stderr);
    assert_says(lines[0], &["3", "node-up 1.2"]);
    assert_says(lines[1], &["4", "node-down 1.2 disconnected=0 closed=0"]);

    let json = end(holdfast(["events", "--after", "2", "--output", "json", "--address", &address])).stdout;
    let events: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    assert_eq!((&events[0]["sequence"], &events[0]["kind"]), (&3.into(), &"node-up".into()));
    assert_eq!(events[1]["what"]["owner"], serde_json::json!({ "node_id": 1, "incarnation": 2 }));
    // It may have begun a moment after the first of them.
    wait_until(|| follower.output().contains("\"sequence\":4"), || follower.output());
    let none = end(holdfast(["events", "--after", "4", "--address", &address]));
    assert!(none.success && none.stdout.is_empty(), "{} {}", none.stdout, none.stderr);
}

/// A durable open of a file with this name.
fn open(path: &str) -> smb::OpenDescription {
    smb::OpenDescription {
        durable_file_id: 0x1234,
        create_guid: vec![1; 16],
        client_guid: vec![2; 16],
        durable_owner: "S-1-5-21-1-2-3-1000".to_owned(),
        share: "data".to_owned(),
        path: path.to_owned(),
        file: Some(smb::FileKey { device: 1, inode: 2, extid: 0 }),
        oplock: Some(smb::open_description::Oplock::OplockLevel(smb::OplockLevel::Batch.into())),
        oplock_state: smb::OplockState::Held.into(),
        durability: smb::Durability::V2.into(),
        durable_open_timeout_ms: 60_000,
        ..smb::OpenDescription::default()
    }
}

/// Answers every connection with these bytes, and then with nothing more.
fn serve(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind(free_endpoint()).expect("it is free");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                // Who has hung up meanwhile does not matter.
                let _ = stream.write_all(answer);
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    address
}
