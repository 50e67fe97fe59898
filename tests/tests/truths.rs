//! What happens to one process, one service, one sidecar: dying alone, being restarted, being one of hundreds.

use std::time::{Duration, Instant};

use harness::{
    cluster::{Cluster, ClusterOptions, node_id},
    samba::{SambaSite, SambaTools, Smbd, SmbdOptions, samba_or_skip},
    smb_client::{Client, CreateRequest, LockElement, NtStatus, Opened, Session, Tree},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The program that can be `holdfast`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

async fn cluster(tools: SambaTools) -> Cluster {
    Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap()
}

async fn connect(cluster: &Cluster, client: &Client, node: usize) -> (Session, Tree) {
    let session = client.connect(cluster.smb_address(node)).await.unwrap();
    let share = session.tree_connect(&cluster.share(node)).await.unwrap();
    (session, share)
}

async fn assert_reclaimed(share: &Tree, open: &Opened) -> Opened {
    let reclaimed = share.create(open.reconnect_request()).await.unwrap();
    assert_eq!(reclaimed.file_id().persistent, open.file_id().persistent);
    assert_eq!(reclaimed.response().lease, open.response().lease);
    reclaimed
}

/// The process of an `smbd` that serves a session.
fn process_of(smbd: &Smbd, session: &Session) -> Pid {
    Pid::from_raw(smbd.child_of(session.client_address()).unwrap())
}

/// The client whose process dies is back on the same node before anybody has noticed, and has everything again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_of_a_process_that_dies_alone_has_its_opens_back_at_once() {
    let Some(tools) = samba_or_skip() else { return };
    let cluster = cluster(tools).await;
    let (owner, bystander) = (Client::new(cluster.credentials()), Client::new(cluster.credentials()));
    let (other_session, other_share) = connect(&cluster, &bystander, 0).await;
    let others = other_share.create(CreateRequest::durable_v2_with_lease("others")).await.unwrap();

    let (mut session, mut share) = connect(&cluster, &owner, 0).await;
    let mut leased = share.create(CreateRequest::durable_v2_with_lease("leased")).await.unwrap();
    let mut locked = share.create(CreateRequest::durable_v2_with_batch("locked")).await.unwrap();
    locked.lock(&[LockElement::exclusive(10, 5)]).await.unwrap();
    for _ in 0..5 {
        let before = process_of(cluster.smbd(0), &session);
        kill(before, Signal::SIGKILL).unwrap();
        session.ended().await;
        // As a real client does: in place of the session that it had.
        session = owner.reconnect(cluster.smb_address(0), session.id()).await.unwrap();
        share = session.tree_connect(&cluster.share(0)).await.unwrap();
        assert_ne!(process_of(cluster.smbd(0), &session), before);
        leased = assert_reclaimed(&share, &leased).await;
        locked = assert_reclaimed(&share, &locked).await;
    }
    locked.lock(&[LockElement::unlock(10, 5)]).await.unwrap();
    leased.write(0, b"still mine").await.unwrap();

    // Nobody else has noticed.
    others.write(0, b"mine too").await.unwrap();
    other_session.echo().await.unwrap();
    let status = cluster.status(0).await.unwrap();
    assert!(status.nodes.iter().all(|node| node.up && node.incarnation == 1), "{:?}", status.nodes);
}

/// The control: Samba alone has set the records straight only when a process ends in an orderly way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_holdfast_the_opens_of_a_process_that_dies_alone_are_lost() {
    let Some(tools) = samba_or_skip() else { return };
    let site = SambaSite::new(tools).unwrap();
    let mut smbd = site.smbd("alone", SmbdOptions::default()).unwrap();
    smbd.start().await.unwrap();
    let client = Client::new(site.credentials());
    let session = client.connect(smbd.address()).await.unwrap();
    let share = session.tree_connect(&smbd.share()).await.unwrap();
    let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    assert!(open.is_durable());

    kill(process_of(&smbd, &session), Signal::SIGKILL).unwrap();
    session.ended().await;

    let session = client.reconnect(smbd.address(), session.id()).await.unwrap();
    let share = session.tree_connect(&smbd.share()).await.unwrap();
    let refusal = share.create(open.reconnect_request()).await.unwrap_err();
    assert_eq!(refusal.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND), "{refusal}");
}

/// An administrator restarts `smbd`: its databases are emptied, and its clients have their opens back all the same,
/// there or elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_of_an_smbd_that_is_restarted_have_their_opens_back() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let client = Client::new(cluster.credentials());
    let (session, share) = connect(&cluster, &client, 0).await;
    let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    open.lock(&[LockElement::exclusive(10, 5)]).await.unwrap();

    cluster.restart_smbd(0).await.unwrap();
    session.ended().await;

    let (session, share) = connect(&cluster, &client, 0).await;
    let open = assert_reclaimed(&share, &open).await;
    let status = cluster.status(0).await.unwrap();
    let restarted = status.nodes.iter().find(|node| node.node_id == node_id(0)).unwrap();
    assert!(restarted.up && restarted.incarnation == 2, "{status:?}");

    cluster.restart_smbd(0).await.unwrap();
    session.ended().await;

    let (_session, share) = connect(&cluster, &client, 1).await;
    let open = assert_reclaimed(&share, &open).await;
    open.lock(&[LockElement::unlock(10, 5)]).await.unwrap();
}

/// Nothing is served after the end of the lease: whatever a client asks later than that is not answered, although it asks
/// all the time. That is what lets another node give its open away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_served_longer_after_the_end_of_the_sidecar_than_its_lease() {
    /// As in [`ClusterOptions::patient`]. The lease cannot end later than this after its sidecar.
    const SELF_FENCE_AFTER: Duration = Duration::from_millis(2_500);
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let client = Client::new(cluster.credentials());
    let (session, share) = connect(&cluster, &client, 0).await;
    let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    let (begun, writer) = (Instant::now(), open.clone());
    let writer = tokio::spawn(async move {
        let mut last_asked_at = None;
        loop {
            let asked_at = Instant::now();
            if writer.write(0, b"mine").await.is_err() || writer.read(0, 4).await.is_err() {
                return last_asked_at.expect("something was served");
            }
            last_asked_at = Some(asked_at);
        }
    });
    // The control: with its sidecar it goes on for longer than that.
    tokio::time::sleep(SELF_FENCE_AFTER + Duration::from_secs(1)).await;
    assert!(!writer.is_finished(), "not served for {:?}", begun.elapsed());

    let killed_at = Instant::now();
    cluster.kill_sidecar(0).unwrap();
    let dead_at = Instant::now();
    session.ended().await;

    let last_asked_at = writer.await.unwrap();
    assert!(last_asked_at > killed_at - Duration::from_secs(1), "it ended before");
    let outlived = last_asked_at.saturating_duration_since(dead_at);
    assert!(outlived <= SELF_FENCE_AFTER, "served for {outlived:?} without a lease");
    let (_session, share) = connect(&cluster, &client, 1).await;
    assert_reclaimed(&share, &open).await;
}

/// `smbd` reads its configuration again when it is told so by SIGHUP, as log rotation does. No open suffers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smbd_may_read_its_configuration_again() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let client = Client::new(cluster.credentials());
    let (session, share) = connect(&cluster, &client, 0).await;
    let before = share.create(CreateRequest::durable_v2_with_lease("before")).await.unwrap();

    for process in [Pid::from_raw(cluster.smbd(0).pid().unwrap()), process_of(cluster.smbd(0), &session)] {
        kill(process, Signal::SIGHUP).unwrap();
    }

    before.write(0, b"still mine").await.unwrap();
    let after = share.create(CreateRequest::durable_v2_with_lease("after")).await.unwrap();
    assert!(after.is_durable());
    cluster.kill(0).unwrap();
    let (_session, share) = connect(&cluster, &client, 1).await;
    for open in [&before, &after] {
        assert_reclaimed(&share, open).await;
    }
}
