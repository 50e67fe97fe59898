//! Who may die, pause or start again without an acknowledged open being lost or owned twice.

use std::time::Duration;

use harness::{
    cluster::{Cluster, ClusterOptions, node_id},
    samba::{SambaTools, samba_or_skip},
    smb_client::{Client, CreateRequest, NtStatus, Opened, Tree},
};
use proto::pb::ops::v1::StatusResponse;

/// The program that can be `holdfast`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

/// How long a client's connection to a node may last after the node's fence has closed.
const FENCED_WITHIN: Duration = Duration::from_secs(5);

async fn cluster(tools: SambaTools) -> Cluster {
    Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap()
}

async fn cluster_whose_sidecars_may_restart(tools: SambaTools) -> Cluster {
    Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).with_time_for_sidecars()).await.unwrap()
}

async fn open(share: &Tree, path: &str) -> Opened {
    let open = share.create(CreateRequest::durable_v2_with_lease(path)).await.unwrap();
    assert!(open.is_durable());
    open
}

async fn assert_reclaimed(share: &Tree, open: &Opened) {
    let reclaimed = share.create(open.reconnect_request()).await.unwrap();
    assert_eq!(reclaimed.file_id().persistent, open.file_id().persistent);
    assert_eq!(reclaimed.response().lease, open.response().lease);
}

/// A node other than these.
fn another(cluster: &Cluster, not: &[usize]) -> usize {
    (0..cluster.len()).find(|node| !not.contains(node)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_may_die_while_it_leads() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let owner = cluster.leader().await.unwrap();
    let client = Client::new(cluster.credentials());
    let (_session, share) = cluster.connect(&client, owner).await.unwrap();
    let open = open(&share, "file").await;

    cluster.kill(owner).unwrap();

    let (_session, share) = cluster.connect(&client, another(&cluster, &[owner])).await.unwrap();
    assert_reclaimed(&share, &open).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_may_die_while_it_follows() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let leader = cluster.leader().await.unwrap();
    let owner = another(&cluster, &[leader]);
    let client = Client::new(cluster.credentials());
    let (_session, share) = cluster.connect(&client, owner).await.unwrap();
    let open = open(&share, "file").await;

    cluster.kill(owner).unwrap();

    let (_session, share) = cluster.connect(&client, another(&cluster, &[leader, owner])).await.unwrap();
    assert_reclaimed(&share, &open).await;
}

/// Whoever else dies, the owner goes on granting, and what it granted meanwhile survives it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_goes_on_when_the_leader_dies() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let leader = cluster.leader().await.unwrap();
    let owner = another(&cluster, &[leader]);
    let client = Client::new(cluster.credentials());
    let (_session, share) = cluster.connect(&client, owner).await.unwrap();
    let before = open(&share, "before").await;

    cluster.kill(leader).unwrap();
    let after = open(&share, "after").await;
    before.write(0, b"still mine").await.unwrap();

    cluster.start_node(leader).await.unwrap();
    cluster.kill(owner).unwrap();
    let (_session, share) = cluster.connect(&client, leader).await.unwrap();
    assert_reclaimed(&share, &before).await;
    assert_reclaimed(&share, &after).await;
}

/// A sidecar that is killed and started again takes up its `smbd` where its predecessor left it: no client
/// notices, and nothing is lost when the node dies later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_sidecar_takes_up_its_smbd() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster_whose_sidecars_may_restart(tools).await;
    let client = Client::new(cluster.credentials());
    let (session, share) = cluster.connect(&client, 0).await.unwrap();
    let before = open(&share, "before").await;

    cluster.kill_sidecar(0).unwrap();
    cluster.start_sidecar(0).unwrap();

    let after = open(&share, "after").await;
    before.write(0, b"still mine").await.unwrap();
    session.echo().await.unwrap();
    let status = cluster.status(0).await.unwrap();
    assert!(status.nodes.iter().all(|node| node.incarnation == 1), "a new incarnation: {:?}", status.nodes);

    cluster.kill(0).unwrap();
    let (_session, share) = cluster.connect(&client, 1).await.unwrap();
    assert_reclaimed(&share, &before).await;
    assert_reclaimed(&share, &after).await;
}

/// A process dies while its sidecar is away, and somebody else writes the file before the new sidecar has looked at what
/// there is. Whoever cached it must not have it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_has_gone_stale_while_the_sidecar_was_away_is_not_given_back() {
    /// The more there is, the longer the new sidecar looks.
    const OTHERS: usize = 300;
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster_whose_sidecars_may_restart(tools).await;
    let [owner, other] = [(); 2].map(|()| Client::new(cluster.credentials()));
    let (session, share) = cluster.connect(&owner, 0).await.unwrap();
    let cached = open(&share, "file").await;
    for number in 0..OTHERS {
        open(&share, &format!("other {number}")).await;
    }
    let (_session, others_share) = cluster.connect(&other, 0).await.unwrap();

    cluster.kill_sidecar(0).unwrap();
    cluster.smbd(0).kill_child(session.client_address()).await.unwrap();
    let writing = tokio::spawn(async move {
        let written = others_share.create(CreateRequest::new("file")).await?;
        written.write(0, b"new").await?;
        written.close().await
    });
    cluster.start_sidecar(0).unwrap();
    writing.await.unwrap().unwrap();

    let (_session, share) = cluster.connect(&owner, 0).await.unwrap();
    let refusal = share.create(cached.reconnect_request()).await.unwrap_err();
    assert_eq!(refusal.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND), "{refusal}");
}

/// Promise 2: a node that was paused so long that its opens went elsewhere does nothing more for its clients
/// when it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_node_wakes_up_fenced() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let client = Client::new(cluster.credentials());
    let (stale_session, share) = cluster.connect(&client, 0).await.unwrap();
    let stale = open(&share, "file").await;
    stale.write(0, b"before").await.unwrap();

    cluster.pause(0);
    let (_session, share) = cluster.connect(&client, 1).await.unwrap();
    assert_reclaimed(&share, &stale).await;
    cluster.resume(0);

    stale.write(0, b"never!").await.unwrap_err();
    tokio::time::timeout(FENCED_WITHIN, stale_session.ended()).await.expect("the paused smbd still serves");
    assert_eq!(std::fs::read(cluster.site().share_dir().join("file")).unwrap(), b"before");
}

/// A leader that was paused has heard of nobody when it goes on. That is nobody's death but its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_wakes_up_declares_nobody_down() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let leader = cluster.leader().await.unwrap();
    let witness = another(&cluster, &[leader]);
    let is_up = |status: &StatusResponse, node| {
        status.nodes.iter().any(|other| other.node_id == node_id(node) && other.up && other.incarnation == 1)
    };

    cluster.pause(leader);
    let down = |status: &StatusResponse| !is_up(status, leader);
    cluster.wait_until("the leader's verdict", witness, down).await.unwrap();
    cluster.resume(leader);

    // Longer than it takes the old leader to find out that it is one no more, and to have anything committed.
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let status = cluster.status(witness).await.unwrap();
        let others = (0..cluster.len()).filter(|&node| node != leader);
        assert!(others.into_iter().all(|node| is_up(&status, node)), "{:?}", status.nodes);
    }
}

/// A sidecar that dies and stays dead takes its `smbd` with it, and then its opens may be had elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_smbd_does_not_outlive_its_sidecar_for_long() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let client = Client::new(cluster.credentials());
    let (session, share) = cluster.connect(&client, 0).await.unwrap();
    let open = open(&share, "file").await;

    cluster.kill_sidecar(0).unwrap();

    tokio::time::timeout(FENCED_WITHIN, session.ended()).await.expect("smbd serves without its sidecar");
    let (_session, share) = cluster.connect(&client, 1).await.unwrap();
    let status = cluster.status(1).await.unwrap();
    assert!(status.nodes.iter().any(|node| node.node_id == node_id(0) && !node.up), "{:?}", status.nodes);
    assert_reclaimed(&share, &open).await;
}
