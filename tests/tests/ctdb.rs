//! Clustered `smbd`s and their `ctdbd`s without Holdfast: what Samba does alone, and that the harness hurts it as it
//! says.

use std::time::{Duration, Instant};

use harness::{
    cluster::{Cluster, ClusterOptions},
    samba::{SambaTools, samba_in_root_or_skip, samba_with_ctdb_or_skip},
    smb_client::{Client, CreateRequest, NtStatus, Opened, ShareAccess, SmbError, Tree},
};

/// The program that can be `holdfast`; here it never has to.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

/// How long CTDB may take to recover on a busy machine, when a node is gone that its peers see go.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);

fn options(tools: SambaTools) -> ClusterOptions {
    ClusterOptions::with_ctdb(PROGRAM, tools).unprotected()
}

/// An open that tolerates no other.
fn alone(path: &str) -> CreateRequest {
    CreateRequest { share_access: ShareAccess(0), ..CreateRequest::new(path) }
}

/// Repeats what is refused until CTDB has recovered; each attempt may itself wait for that.
async fn create_after_recovery(share: &Tree, request: CreateRequest) -> Result<Opened, SmbError> {
    let deadline = Instant::now() + RECOVERY_TIMEOUT;
    loop {
        match share.create(request.clone()).await {
            Err(err) if err.status().is_some() && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            outcome => return outcome,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clustered_smbds_see_each_others_opens_lose_a_node_with_its_opens_and_get_it_back() {
    for tools in SambaTools::all_there() {
        if tools.program("ctdbd").is_err() {
            continue;
        }
        let version = tools.version();
        let mut cluster = Cluster::start(options(tools)).await.unwrap();
        // Two clients: a clustered Samba ends a client's connection to one node when it connects to another.
        let [client, other] = [(); 2].map(|()| Client::new(cluster.credentials()));
        let (_at_0, share_0) = cluster.connect(&client, 0).await.unwrap();
        let (at_1, share_1) = cluster.connect(&other, 1).await.unwrap();
        let open = share_0.create(alone("file")).await.unwrap();
        let refusal = share_1.create(alone("file")).await.unwrap_err();
        assert_eq!(refusal.status(), Some(NtStatus::SHARING_VIOLATION), "{version:?}: {refusal}");
        let durable = share_0.create(CreateRequest::durable_v2_with_lease("durable")).await.unwrap();
        assert!(durable.is_durable());

        let generation = cluster.ctdbd(1).unwrap().status().await.unwrap().generation;
        cluster.kill(0).unwrap();
        drop(open);
        create_after_recovery(&share_1, alone("file")).await.unwrap();
        let (_at_2, share_2) = cluster.connect(&client, 2).await.unwrap();
        let lost = share_2.create(durable.reconnect_request()).await.unwrap_err();
        assert_eq!(lost.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND), "{version:?}: {lost}");
        cluster.ctdb_recovered().await.unwrap();
        let status = cluster.ctdbd(1).unwrap().status().await.unwrap();
        assert_eq!(status.healthy, [false, true, true]);
        assert_ne!(status.generation, generation, "no recovery");

        cluster.start_node(0).await.unwrap();
        let (_at_0, share_0) = cluster.connect(&client, 0).await.unwrap();
        let refusal = share_0.create(alone("file")).await.unwrap_err();
        assert_eq!(refusal.status(), Some(NtStatus::SHARING_VIOLATION), "{version:?}: {refusal}");
        at_1.echo().await.unwrap();
    }
}

/// What Samba 4.25 does by itself, for whoever compares.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persistent_handle_of_samba_itself_survives_its_node() {
    let Some(tools) = samba_in_root_or_skip("4.25") else { return };
    let mut options = options(tools);
    options.smbd = options.smbd.continuously_available();
    let mut cluster = Cluster::start(options).await.unwrap();
    let client = Client::new(cluster.credentials());
    let (session, share) = cluster.connect(&client, 0).await.unwrap();
    let open = share.create(CreateRequest::durable_v2_with_lease("file").persistent()).await.unwrap();
    assert!(open.response().durable_v2.is_some_and(|durable| durable.persistent), "{:?}", open.response());

    cluster.kill(0).unwrap();
    let deadline = Instant::now() + RECOVERY_TIMEOUT;
    let back = loop {
        match client.reconnect(cluster.smb_address(1), session.id()).await {
            Ok(back) => break back,
            Err(err) => assert!(Instant::now() < deadline, "{err}"),
        }
    };
    let share = back.tree_connect(&cluster.share(1)).await.unwrap();
    let reclaimed = create_after_recovery(&share, open.reconnect_request()).await.unwrap();
    assert_eq!(reclaimed.file_id().persistent, open.file_id().persistent);
}

/// A node that is cut off hears nothing and is not heard: CTDB notices by the missing keepalives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ctdbd_that_is_cut_off_is_given_up_by_the_others_and_taken_back() {
    let Some(tools) = samba_with_ctdb_or_skip() else { return };
    let mut options = options(tools).with_wires();
    options.ctdb_tunables = vec![("KeepaliveInterval", 1), ("KeepaliveLimit", 3)];
    let mut cluster = Cluster::start(options).await.unwrap();
    // The hardest one: the others have to find a new leader first.
    let victim = cluster.ctdbd(0).unwrap().status().await.unwrap().leader.unwrap();
    let witness = (victim + 1) % cluster.len();

    cluster.cut_off(victim);
    let given_up = cluster.ctdb_recovered_without(victim);
    tokio::time::timeout(RECOVERY_TIMEOUT, given_up).await.unwrap().unwrap();
    let client = Client::new(cluster.credentials());
    let (_session, share) = cluster.connect(&client, witness).await.unwrap();
    create_after_recovery(&share, alone("file")).await.unwrap();

    cluster.rejoin(victim);
    cluster.ctdb_recovered().await.unwrap();
}

/// Users and identities are in persistent databases of CTDB, opens are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_may_be_lost_and_started_again() {
    let Some(tools) = samba_with_ctdb_or_skip() else { return };
    let mut cluster = Cluster::start(options(tools)).await.unwrap();
    let client = Client::new(cluster.credentials());
    let (session, share) = cluster.connect(&client, 0).await.unwrap();
    let durable = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();

    cluster.kill_all().unwrap();
    session.ended().await;
    cluster.start_all().await.unwrap();

    let (_session, share) = cluster.connect(&client, 1).await.unwrap();
    let lost = share.create(durable.reconnect_request()).await.unwrap_err();
    assert_eq!(lost.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND), "{lost}");
    share.create(alone("file")).await.unwrap();
}
