//! What happens to one process, one service, one sidecar: dying alone, being restarted, being one of hundreds.

use harness::{
    cluster::{Cluster, ClusterOptions},
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
