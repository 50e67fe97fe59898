//! One clustered Samba with Holdfast: whose opens survive which death, and who may have the file meanwhile.

use std::time::{Duration, Instant};

use harness::{
    cluster::{Cluster, ClusterOptions},
    samba::{SambaTools, samba_or_skip},
    smb_client::{
        AccessMask, Client, CreateRequest, Lease, LeaseState, NtStatus, Opened, OplockLevel, Session,
        ShareAccess, SmbError, Tree,
    },
    workload::{Promise, Wish},
};

/// The program that can be `holdfast`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

async fn cluster(tools: SambaTools) -> Cluster {
    Cluster::start(ClusterOptions::with_ctdb(PROGRAM, tools).patient()).await.unwrap()
}

async fn connect(cluster: &Cluster, client: &Client, node: usize) -> (Session, Tree) {
    let session = client.connect(cluster.smb_address(node)).await.unwrap();
    let share = session.tree_connect(&cluster.share(node)).await.unwrap();
    (session, share)
}

/// As a client comes back: in place of the session that it had, and again if the connection breaks, as it may while CTDB
/// recovers.
async fn reconnect(cluster: &Cluster, client: &Client, lost: &Session, node: usize) -> (Session, Tree) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let connected = async {
            let session = client.reconnect(cluster.smb_address(node), lost.id()).await?;
            let share = session.tree_connect(&cluster.share(node)).await?;
            Ok::<_, SmbError>((session, share))
        };
        match connected.await {
            Ok(connected) => return connected,
            Err(err) => assert!(err.status().is_none() && Instant::now() < deadline, "{err}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Every kind of durable open, with locks and data.
fn wishes() -> Vec<Wish> {
    let leased =
        |path: &str| CreateRequest::new(path).with_lease(Lease::request(LeaseState::READ_WRITE_HANDLE));
    let batch = |path: &str| CreateRequest::new(path).with_oplock(OplockLevel::Batch);
    vec![
        Wish { request: leased("lease-v2").durable_v2(), lock: true, write: Some(b"data".to_vec()) },
        Wish { request: batch("batch-v2").durable_v2(), lock: true, write: None },
        Wish { request: leased("lease-v1").durable_v1(), lock: false, write: None },
        Wish { request: batch("batch-v1").durable_v1(), lock: true, write: Some(b"more".to_vec()) },
    ]
}

async fn hold(share: &Tree) -> Vec<Promise> {
    let mut promises = Vec::new();
    for wish in wishes() {
        promises.push(wish.obtain(share).await.unwrap());
    }
    promises
}

async fn claim(promises: &[Promise], share: &Tree) -> Vec<Opened> {
    let mut claimed = Vec::new();
    for promise in promises {
        claimed.push(promise.claim(share).await.unwrap());
    }
    claimed
}

async fn assert_refused(share: &Tree, open: &Opened) {
    let refusal = share.create(open.reconnect_request()).await.unwrap_err();
    assert_eq!(refusal.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND), "{refusal}");
}

/// Waits until the cluster knows that no open has its client.
async fn until_all_wait_for_their_clients(cluster: &Cluster) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let opens = cluster.opens(1).await.unwrap();
        if opens.iter().all(|open| open.deadline().is_some()) {
            return;
        }
        assert!(Instant::now() < deadline, "{opens:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A client that comes back at once, before the death is noticed, is held until it can have what it had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_has_its_opens_back_on_a_survivor() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let client = Client::new(cluster.credentials());
    let (session, share) = connect(&cluster, &client, 0).await;
    let promises = hold(&share).await;

    cluster.kill(0).unwrap();

    let (_session, share) = reconnect(&cluster, &client, &session, 1).await;
    for open in claim(&promises, &share).await {
        open.write(100, b"still mine").await.unwrap();
        open.close().await.unwrap();
    }
}

/// The same where the client comes to a node that does not put the orphans back itself, and on to another when that dies
/// too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_has_its_opens_back_again_and_again() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let client = Client::new(cluster.credentials());
    let (mut session, share) = connect(&cluster, &client, 2).await;
    let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    for (dies, node) in [(2, 1), (1, 0), (0, 2)] {
        cluster.kill(dies).unwrap();
        let (next, share) = reconnect(&cluster, &client, &session, node).await;
        session = next;
        let reclaimed = share.create(open.reconnect_request()).await.unwrap();
        assert_eq!(reclaimed.file_id().persistent, open.file_id().persistent);
        assert_eq!(reclaimed.response().lease, open.response().lease);
        cluster.start_node(dies).await.unwrap();
    }
}

/// Samba keeps the open for its client, and then the node dies that did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_whose_client_was_lost_before_its_node_survives_too() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let client = Client::new(cluster.credentials());
    let (session, share) = connect(&cluster, &client, 0).await;
    let promises = hold(&share).await;
    session.drop_connection().await;
    until_all_wait_for_their_clients(&cluster).await;

    cluster.kill(0).unwrap();

    let (_session, share) = reconnect(&cluster, &client, &session, 2).await;
    claim(&promises, &share).await;
}

/// Nobody dies: what Samba does by itself between its nodes goes on as before, and is known to the cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_moves_between_living_nodes_takes_its_opens_along() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let client = Client::new(cluster.credentials());
    let (session, share) = connect(&cluster, &client, 0).await;
    let promises = hold(&share).await;

    // In place of the session that is still there.
    let (moved, share) = reconnect(&cluster, &client, &session, 1).await;
    let opens = claim(&promises, &share).await;
    opens[0].write(0, b"from here").await.unwrap();

    cluster.kill(1).unwrap();
    let (_session, share) = reconnect(&cluster, &client, &moved, 0).await;
    for open in opens {
        let back = share.create(open.reconnect_request()).await.unwrap();
        assert_eq!(back.file_id().persistent, open.file_id().persistent);
    }
}

/// An open that nobody can have beside another.
fn alone(path: &str) -> CreateRequest {
    CreateRequest { share_access: ShareAccess(0), ..CreateRequest::new(path) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intruder_before_the_recovery_wins_and_the_reclaim_is_refused() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let [client, intruder] = [(); 2].map(|()| Client::new(cluster.credentials()));
    let (session, share) = connect(&cluster, &client, 0).await;
    let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    let (_other_session, other_share) = connect(&cluster, &intruder, 1).await;

    cluster.kill(0).unwrap();

    let theirs = other_share.create(alone("file")).await.unwrap();
    let (_session, share) = reconnect(&cluster, &client, &session, 2).await;
    assert_refused(&share, &open).await;
    theirs.write(0, b"mine").await.unwrap();
}

/// He finds the orphan in its place, and it has to make room as any open whose client is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intruder_after_the_recovery_wins_and_the_reclaim_is_refused() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let [client, intruder] = [(); 2].map(|()| Client::new(cluster.credentials()));
    let (session, share) = connect(&cluster, &client, 0).await;
    let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    let kept = share.create(CreateRequest::durable_v2_with_lease("kept")).await.unwrap();

    cluster.kill(0).unwrap();
    // Whoever has been given one orphan back finds all of them in their places.
    let (session, share) = reconnect(&cluster, &client, &session, 1).await;
    let kept_again = share.create(kept.reconnect_request()).await.unwrap();

    let (_other_session, other_share) = connect(&cluster, &intruder, 2).await;
    other_share.create(CreateRequest::new("file")).await.unwrap();
    assert_refused(&share, &open).await;
    kept_again.write(0, b"still mine").await.unwrap();
    session.echo().await.unwrap();
}

/// Who only looks at the file's attributes is in nobody's way, and nobody is in his. (Samba 4.17 gives no open back while
/// anybody else has the file, so he has closed his before.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intruder_who_harms_nobody_takes_nothing_from_the_client() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let [client, intruder] = [(); 2].map(|()| Client::new(cluster.credentials()));
    let (session, share) = connect(&cluster, &client, 0).await;
    let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    let (_other_session, other_share) = connect(&cluster, &intruder, 1).await;
    let stat = || CreateRequest { desired_access: AccessMask::READ_ATTRIBUTES, ..CreateRequest::new("file") };

    cluster.kill(0).unwrap();

    other_share.create(stat()).await.unwrap().close().await.unwrap();
    let (_session, share) = reconnect(&cluster, &client, &session, 2).await;
    let reclaimed = share.create(open.reconnect_request()).await.unwrap();
    assert_eq!(reclaimed.response().lease, open.response().lease);
    other_share.create(stat()).await.unwrap().close().await.unwrap();
    reclaimed.write(0, b"still mine").await.unwrap();
}
