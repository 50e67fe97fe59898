//! The ways to hurt a cluster do what they say, and nothing else.

use std::time::Duration;

use harness::{
    cluster::{Cluster, ClusterOptions, node_id},
    samba::{SambaError, SambaSite, SmbdOptions, samba_or_skip},
    smb_client::{Client, CreateRequest},
};
use nix::{sys::signal::kill, unistd::Pid};
use proto::pb::ops::v1::StatusResponse;

/// The program that can be `holdfast`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

/// How long a client's connection may last after its node was fenced, or its `smbd` ended.
const ENDED_WITHIN: Duration = Duration::from_secs(10);

fn is_there(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}

#[tokio::test]
async fn kill_child_ends_one_clients_process_and_no_other() {
    let Some(tools) = samba_or_skip() else { return };
    let site = SambaSite::new(tools).unwrap();
    let mut smbd = site.smbd("node", SmbdOptions::default()).unwrap();
    smbd.start().await.unwrap();
    let client = Client::new(site.credentials());
    let victim = client.connect(smbd.address()).await.unwrap();
    let bystander = Client::new(site.credentials()).connect(smbd.address()).await.unwrap();

    let child = smbd.kill_child(victim.client_address()).await.unwrap();

    assert!(!is_there(child), "the child is alive or a zombie");
    assert_ne!(Some(child), smbd.pid());
    tokio::time::timeout(ENDED_WITHIN, victim.ended()).await.expect("the client is still served");
    bystander.echo().await.unwrap();
    client.connect(smbd.address()).await.unwrap().echo().await.unwrap();
    let again = smbd.kill_child(victim.client_address()).await.unwrap_err();
    assert!(matches!(again, SambaError::NoChild { .. }), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_smbd_ends_all_of_it_and_starts_another_incarnation() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
    let session = Client::new(cluster.credentials()).connect(cluster.smb_address(0)).await.unwrap();
    let before = cluster.smbd(0).pid().unwrap();

    cluster.restart_smbd(0).await.unwrap();

    assert!(!is_there(before));
    tokio::time::timeout(ENDED_WITHIN, session.ended()).await.expect("a child of the old smbd still serves");
    let status = cluster.status(0).await.unwrap();
    let node = status.nodes.iter().find(|node| node.node_id == node_id(0)).unwrap();
    assert!(node.up && node.incarnation == 2, "{node:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_lives_is_declared_down_and_fenced_and_may_come_back() {
    let Some(tools) = samba_or_skip() else { return };
    let options = ClusterOptions::with_samba(PROGRAM, tools).patient().with_wires();
    let mut cluster = Cluster::start(options).await.unwrap();
    let session = Client::new(cluster.credentials()).connect(cluster.smb_address(0)).await.unwrap();
    let share = session.tree_connect(&cluster.share(0)).await.unwrap();
    share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();

    cluster.cut_off(0);
    session.echo().await.expect("a client reaches a node that is cut off");
    cluster.wait_until("node 0 down", 1, |status| !says_node_0_is_up(status)).await.unwrap();
    tokio::time::timeout(ENDED_WITHIN, session.ended())
        .await
        .expect("the node serves though nobody hears it");
    assert!(cluster.sidecar_is_running(0));
    let status = cluster.status(0).await.expect("an operator reaches a node that is cut off");
    assert!(says_node_0_is_up(&status), "it has heard of its end: {status:?}");

    cluster.rejoin(0);
    cluster.start_node(0).await.unwrap();
    let session = Client::new(cluster.credentials()).connect(cluster.smb_address(0)).await.unwrap();
    session.echo().await.unwrap();
}

fn says_node_0_is_up(status: &StatusResponse) -> bool {
    status.nodes.iter().any(|node| node.node_id == node_id(0) && node.up)
}
