//! One clustered Samba with Holdfast: whose opens survive which death, and who may have the file meanwhile.

use std::time::{Duration, Instant};

use harness::{
    cluster::{Cluster, ClusterOptions},
    samba::samba_or_skip,
    smb_client::{
        AccessMask, Client, CreateRequest, Lease, LeaseState, LockElement, NtStatus, Opened, OplockLevel,
        Session, ShareAccess, SmbError, Tree,
    },
    workload::{self, Promise, Wish},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The program that can be `holdfast`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

/// A cluster and a client in its share.
struct Stage {
    cluster: Cluster,
    client: Client,
    session: Session,
    share: Tree,
}

impl Stage {
    /// A client at a node; `None` where there is no Samba.
    async fn set(node: usize) -> Option<Self> {
        let tools = samba_or_skip()?;
        let cluster = Cluster::start(ClusterOptions::with_ctdb(PROGRAM, tools).patient()).await.unwrap();
        let client = Client::new(cluster.credentials());
        let (session, share) = cluster.connect(&client, node).await.unwrap();
        Some(Self { cluster, client, session, share })
    }

    /// Somebody else at a node.
    async fn somebody_else(&self, node: usize) -> (Session, Tree) {
        self.cluster.connect(&Client::new(self.cluster.credentials()), node).await.unwrap()
    }

    /// As a client comes back: in place of the session that it had, and again if the connection breaks, as it may while
    /// CTDB recovers.
    async fn come_back(&mut self, node: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let connected = async {
                let address = self.cluster.smb_address(node);
                let session = self.client.reconnect(address, self.session.id()).await?;
                let share = session.tree_connect(&self.cluster.share(node)).await?;
                Ok::<_, SmbError>((session, share))
            };
            match connected.await {
                Ok(connected) => {
                    (self.session, self.share) = connected;
                    return;
                }
                Err(err) => assert!(err.status().is_none() && Instant::now() < deadline, "{err}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Every kind of durable open.
    async fn hold(&self) -> Vec<Promise> {
        let mut promises = Vec::new();
        for wish in wishes() {
            promises.push(wish.obtain(&self.share).await.unwrap());
        }
        promises
    }

    async fn claim(&self, promises: &[Promise]) -> Vec<Opened> {
        let mut claimed = Vec::new();
        for promise in promises {
            claimed.push(promise.claim(&self.share).await.unwrap());
        }
        claimed
    }

    /// Has an open back that is what it was.
    async fn reclaim(&self, open: &Opened) -> Opened {
        workload::reclaim(&self.share, open).await.unwrap()
    }

    async fn assert_refused(&self, open: &Opened) {
        let refusal = self.share.create(open.reconnect_request()).await.unwrap_err();
        assert_eq!(refusal.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND), "{refusal}");
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
    let Some(mut stage) = Stage::set(0).await else { return };
    let promises = stage.hold().await;

    stage.cluster.kill(0).unwrap();

    stage.come_back(1).await;
    for open in stage.claim(&promises).await {
        open.write(100, b"still mine").await.unwrap();
        open.close().await.unwrap();
    }
}

/// What would let a cluster that has fallen apart go on twice, or with records of different ages, is told before anything
/// happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samba_check_says_whether_ctdb_has_a_cluster_lock_and_bans() {
    let Some(tools) = samba_or_skip() else { return };
    let right = ClusterOptions::with_ctdb(PROGRAM, tools);
    let wrong = ClusterOptions { ctdb_tunables: vec![("EnableBans", 0)], ..right.clone().with_wires() };
    for (options, verdict) in [(right, "ok"), (wrong, "warning")] {
        let cluster = Cluster::start(options.patient()).await.unwrap();
        let report = cluster.samba_check(1).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let of = |what: &str| findings.iter().find(|finding| finding["what"] == what).unwrap();
        assert_eq!(of("cluster lock")["verdict"], verdict, "{report:#}");
        assert_eq!(of("bans")["verdict"], verdict, "{report:#}");
        assert_eq!((&of("topology")["verdict"], &of("shim")["verdict"]), (&"ok".into(), &"ok".into()));
    }
}

/// The same where the client comes to a node that does not put the orphans back itself, and on to another when that dies
/// too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_has_its_opens_back_again_and_again() {
    let Some(mut stage) = Stage::set(2).await else { return };
    let open = stage.share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    for (dies, node) in [(2, 1), (1, 0), (0, 2)] {
        stage.cluster.kill(dies).unwrap();
        stage.come_back(node).await;
        stage.reclaim(&open).await;
        stage.cluster.start_node(dies).await.unwrap();
    }
}

/// Of each record the newest copy that is left is another one's: the records do not fit together, and there are opens in
/// them that were closed since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_has_its_opens_back_from_records_of_different_ages() {
    let Some(mut stage) = Stage::set(0).await else { return };
    let [closed, open, locked] = ["closed", "open", "locked"].map(CreateRequest::durable_v2_with_lease);
    let closed = stage.share.create(closed).await.unwrap();
    let open = stage.share.create(open).await.unwrap();
    let locked = stage.share.create(locked).await.unwrap();
    // All nodes have copies of all records when CTDB has recovered.
    stage.cluster.kill(0).unwrap();
    stage.come_back(1).await;
    stage.cluster.start_node(0).await.unwrap();
    stage.reclaim(&closed).await.close().await.unwrap();
    let again = stage.share.create(CreateRequest::durable_v2_with_lease("closed")).await.unwrap();
    let (open, locked) = (stage.reclaim(&open).await, stage.reclaim(&locked).await);
    open.rename("renamed", false).await.unwrap();
    locked.lock(&[LockElement::exclusive(0, 10)]).await.unwrap();
    // Somebody who must not have it takes its own record to another node.
    let (_session, other_share) = stage.somebody_else(2).await;
    for open in [&again, &open, &locked] {
        other_share.create(open.reconnect_request()).await.unwrap_err();
    }

    stage.cluster.kill(1).unwrap();
    stage.come_back(0).await;

    stage.reclaim(&again).await.write(0, b"still mine").await.unwrap();
    let open = stage.share.create(CreateRequest { path: "renamed".to_owned(), ..open.reconnect_request() });
    open.await.unwrap().write(0, b"still mine").await.unwrap();
    let locked = stage.reclaim(&locked).await;
    locked.lock(&[LockElement::unlock(0, 10)]).await.unwrap();
}

/// The records of an open move to a node where somebody reads the same file, and that node dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_of_a_living_node_outlives_the_node_that_has_had_its_records_last() {
    let Some(mut stage) = Stage::set(0).await else { return };
    let request = |path: &str| CreateRequest {
        desired_access: AccessMask::READ_DATA,
        ..CreateRequest::new(path).with_lease(Lease::request(LeaseState::READ_HANDLE))
    };
    let mut opens = Vec::new();
    for path in ["closed", "reclaimed", "locked"] {
        stage.share.create(CreateRequest::new(path)).await.unwrap().close().await.unwrap();
        let open = stage.share.create(request(path).durable_v2()).await.unwrap();
        open.lock(&[LockElement::exclusive(0, 1)]).await.unwrap();
        opens.push(open);
    }
    let (_session, reader) = stage.somebody_else(1).await;
    for path in ["closed", "reclaimed", "locked"] {
        reader.create(request(path)).await.unwrap();
    }

    stage.cluster.kill(1).unwrap();
    let (_session, other_share) = stage.somebody_else(2).await;
    // CTDB has recovered when the records can be had.
    let rival = other_share.create(CreateRequest::new("locked")).await.unwrap();

    let taken = rival.lock(&[LockElement::exclusive(0, 1)]).await.unwrap_err();
    assert_eq!(taken.status(), Some(NtStatus::LOCK_NOT_GRANTED), "{taken}");
    rival.close().await.unwrap();
    let [closed, reclaimed, locked] = <[Opened; 3]>::try_from(opens).unwrap();
    closed.close().await.unwrap();
    other_share.create(alone("closed")).await.unwrap();
    locked.lock(&[LockElement::unlock(0, 1)]).await.unwrap();
    stage.session.drop_connection().await;
    stage.come_back(2).await;
    stage.reclaim(&reclaimed).await.lock(&[LockElement::unlock(0, 1)]).await.unwrap();
}

/// Samba keeps the open for its client, and then the node dies that did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_whose_client_was_lost_before_its_node_survives_too() {
    let Some(mut stage) = Stage::set(0).await else { return };
    let promises = stage.hold().await;
    stage.session.drop_connection().await;
    until_all_wait_for_their_clients(&stage.cluster).await;

    stage.cluster.kill(0).unwrap();

    stage.come_back(2).await;
    stage.claim(&promises).await;
}

/// The databases outlive the node, and in them what its processes have locked in files that are not durably open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_locks_of_a_dead_node_go_with_it() {
    let Some(mut stage) = Stage::set(0).await else { return };
    let locked = stage.share.create(CreateRequest::new("file")).await.unwrap();
    locked.lock(&[LockElement::exclusive(10, 5)]).await.unwrap();
    let other = Client::new(stage.cluster.credentials());
    let (_others, others_share) = stage.cluster.connect(&other, 1).await.unwrap();
    // The record goes to the survivor, or CTDB would lose it with the node.
    let looked = others_share.create(CreateRequest::new("file")).await.unwrap();
    looked.lock(&[LockElement::exclusive(20, 5)]).await.unwrap();
    looked.close().await.unwrap();

    stage.cluster.kill(0).unwrap();

    let open = workload::until_durable(&others_share, "file").await.unwrap();
    open.lock(&[LockElement::exclusive(10, 5)]).await.unwrap();
}

/// The others go on without a node that hangs. Then its ctdbd goes on too, with records as they were long ago, which CTDB
/// could take for the newest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_hung_brings_no_record_back() {
    let Some(tools) = samba_or_skip() else { return };
    let mut options = ClusterOptions::with_ctdb(PROGRAM, tools).patient();
    options.ctdb_tunables = vec![("KeepaliveInterval", 1), ("KeepaliveLimit", 3)];
    let mut cluster = Cluster::start(options).await.unwrap();
    // A leader that hangs keeps the cluster lock, and nobody recovers.
    let living = cluster.ctdbd(0).unwrap().status().await.unwrap().leader.unwrap();
    let (hung, third) = ((living + 1) % 3, (living + 2) % 3);
    let (client, others) = (Client::new(cluster.credentials()), Client::new(cluster.credentials()));
    let (_session, share) = cluster.connect(&client, living).await.unwrap();
    let closed = share.create(CreateRequest::new("closed")).await.unwrap();
    let unlocked = share.create(CreateRequest::new("unlocked")).await.unwrap();
    unlocked.lock(&[LockElement::exclusive(0, 1)]).await.unwrap();
    // The records go to the node that will hang.
    let (_others, others_share) = cluster.connect(&others, hung).await.unwrap();
    for path in ["closed", "unlocked"] {
        let open = others_share.create(CreateRequest::new(path)).await.unwrap();
        open.lock(&[LockElement::exclusive(10, 1)]).await.unwrap();
        open.close().await.unwrap();
    }

    cluster.pause(hung);
    let given_up = cluster.ctdb_recovered_without(hung);
    tokio::time::timeout(Duration::from_secs(60), given_up).await.unwrap().unwrap();
    closed.close().await.unwrap();
    unlocked.lock(&[LockElement::unlock(0, 1)]).await.unwrap();
    cluster.resume(hung);
    cluster.ctdb_recovered().await.unwrap();

    let (_session, share) = cluster.connect(&Client::new(cluster.credentials()), third).await.unwrap();
    share.create(alone("closed")).await.unwrap();
    let open = share.create(CreateRequest::new("unlocked")).await.unwrap();
    open.lock(&[LockElement::exclusive(0, 1)]).await.unwrap();
}

/// Nobody dies: what Samba does by itself between its nodes goes on as before, and is known to the cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_moves_between_living_nodes_takes_its_opens_along() {
    let Some(mut stage) = Stage::set(0).await else { return };
    let promises = stage.hold().await;

    // In place of the session that is still there.
    stage.come_back(1).await;
    let opens = stage.claim(&promises).await;
    opens[0].write(0, b"from here").await.unwrap();

    stage.cluster.kill(1).unwrap();
    stage.come_back(0).await;
    for open in opens {
        stage.reclaim(&open).await;
    }
}

/// An open that nobody can have beside another.
fn alone(path: &str) -> CreateRequest {
    CreateRequest { share_access: ShareAccess::NONE, ..CreateRequest::new(path) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intruder_before_the_recovery_wins_and_the_reclaim_is_refused() {
    let Some(mut stage) = Stage::set(0).await else { return };
    let open = stage.share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    let (_session, intruder) = stage.somebody_else(1).await;

    stage.cluster.kill(0).unwrap();

    let theirs = intruder.create(alone("file")).await.unwrap();
    stage.come_back(2).await;
    stage.assert_refused(&open).await;
    theirs.write(0, b"mine").await.unwrap();
}

/// Who writes at another node sends those who cache reads a message, and goes on. One that does not arrive must not be forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_whose_break_has_died_with_the_node_is_not_given_back() {
    let Some(mut stage) = Stage::set(0).await else { return };
    let read = || Lease::request(LeaseState::READ_HANDLE);
    let cached = |path: &str| CreateRequest::new(path).with_lease(read()).durable_v2();
    let changed = stage.share.create(cached("changed")).await.unwrap();
    let unchanged = stage.share.create(cached("unchanged")).await.unwrap();
    let (_session, others) = stage.somebody_else(1).await;
    let process = stage.cluster.smbd(0).child_of(stage.session.client_address()).unwrap();
    kill(Pid::from_raw(process), Signal::SIGSTOP).unwrap();

    others.create(CreateRequest::new("unchanged")).await.unwrap().close().await.unwrap();
    let theirs = others.create(CreateRequest::new("changed")).await.unwrap();
    theirs.write(0, b"news").await.unwrap();
    theirs.close().await.unwrap();
    stage.cluster.kill(0).unwrap();

    stage.come_back(2).await;
    stage.assert_refused(&changed).await;
    stage.reclaim(&unchanged).await;
}

/// CTDB may have recovered before the death is even noticed: who comes then must not find what should be gone. He gets in all
/// the same where somebody has such a file open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_a_dead_node_should_have_deleted_are_gone_when_a_client_comes() {
    let Some(mut stage) = Stage::set(0).await else { return };
    let (_elsewhere, others) = stage.somebody_else(1).await;
    let mut opens = Vec::new();
    for path in ["marked", "marked too", "in use"] {
        opens.push(stage.share.create(CreateRequest::durable_v2_with_lease(path)).await.unwrap());
    }
    // It takes no lease away.
    let stat = CreateRequest { desired_access: AccessMask::READ_ATTRIBUTES, ..CreateRequest::new("in use") };
    let in_use = others.create(stat).await.unwrap();
    for open in &opens {
        assert!(open.is_durable(), "{}", open.path());
        open.set_delete_pending(true).await.unwrap();
    }

    stage.cluster.kill(0).unwrap();
    let _newcomer = stage.somebody_else(2).await;

    let directory = stage.cluster.site().share_dir();
    for path in ["marked", "marked too"] {
        assert!(!directory.join(path).exists(), "{path}");
    }
    assert!(directory.join("in use").exists());
    in_use.close().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while directory.join("in use").exists() {
        assert!(Instant::now() < deadline, "it is not in use any more");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// He finds the orphan in its place, and it has to make room as any open whose client is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intruder_after_the_recovery_wins_and_the_reclaim_is_refused() {
    let Some(mut stage) = Stage::set(0).await else { return };
    let open = stage.share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    let kept = stage.share.create(CreateRequest::durable_v2_with_lease("kept")).await.unwrap();

    // Those that are claimed at once, while what is left of them is being removed.
    let mut at_once = Vec::new();
    for number in 0..30 {
        let path = format!("at-once-{number}");
        at_once.push(stage.share.create(CreateRequest::durable_v2_with_lease(path)).await.unwrap());
    }

    stage.cluster.kill(0).unwrap();
    // Whoever has been given one orphan back finds all of them in their places.
    stage.come_back(1).await;
    let kept = stage.reclaim(&kept).await;

    let (_session, intruder) = stage.somebody_else(2).await;
    intruder.create(CreateRequest::new("file")).await.unwrap();
    stage.assert_refused(&open).await;
    for open in at_once {
        intruder.create(CreateRequest::new(open.path())).await.unwrap();
        stage.assert_refused(&open).await;
    }
    kept.write(0, b"still mine").await.unwrap();
    stage.session.echo().await.unwrap();
}

/// Who only looks at the file's attributes is in nobody's way, and nobody is in his. (Samba 4.17 gives no open back while
/// anybody else has the file, so he has closed his before.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intruder_who_harms_nobody_takes_nothing_from_the_client() {
    let Some(mut stage) = Stage::set(0).await else { return };
    let open = stage.share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    let (_session, intruder) = stage.somebody_else(1).await;
    let stat = || CreateRequest { desired_access: AccessMask::READ_ATTRIBUTES, ..CreateRequest::new("file") };

    stage.cluster.kill(0).unwrap();

    intruder.create(stat()).await.unwrap().close().await.unwrap();
    stage.come_back(2).await;
    let reclaimed = stage.reclaim(&open).await;
    intruder.create(stat()).await.unwrap().close().await.unwrap();
    reclaimed.write(0, b"still mine").await.unwrap();
}
