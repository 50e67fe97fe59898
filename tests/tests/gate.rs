//! Nobody gets at a share's files through a node that has not put the share's orphaned opens into its
//! databases, nor through two nodes at once.

use std::time::{Duration, Instant};

use harness::{
    cluster::{Cluster, ClusterOptions, node_id},
    samba::{SHARE, samba_or_skip},
    smb_client::{AccessMask, Client, CreateRequest, Lease, LeaseState, NtStatus, Opened, Session, Tree},
    workload::reclaim,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The program that can be `holdfast`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

/// Another share of the same directory.
const SECOND_SHARE: &str = "second";

/// How long a share may take to move from a node that nobody uses it on any more.
const MOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A cluster whose node 0 is killed while a client holds a durable open of `file` there: the client, and the
/// open's reconnect request. Returns at the moment of the kill, before anybody can know of it.
async fn cluster_with_an_orphan() -> Option<(Cluster, Client, CreateRequest)> {
    let mut cluster =
        Cluster::start(ClusterOptions::with_samba(PROGRAM, samba_or_skip()?).patient()).await.unwrap();
    let owner = Client::new(cluster.credentials());
    let session = owner.connect(cluster.smb_address(0)).await.unwrap();
    let share = session.tree_connect(&cluster.share(0)).await.unwrap();
    let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    cluster.kill(0).unwrap();
    let status = cluster.status(1).await.unwrap();
    assert!(status.nodes.iter().any(|node| node.node_id == node_id(0) && node.up), "declared down too early");
    Some((cluster, owner, open.reconnect_request()))
}

/// Promise 3: an intruder who would make the owner's cache stale purges the orphan, even if he comes before
/// anybody knows that there is one. Without the gate he would open and close the file unseen, and the owner's
/// reclaim would succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_intruder_waits_and_then_meets_the_orphan() {
    let Some((cluster, owner, reconnect)) = cluster_with_an_orphan().await else { return };
    let intruder = Client::new(cluster.credentials()).connect(cluster.smb_address(1)).await.unwrap();
    let share = intruder.tree_connect(&cluster.share(1)).await.unwrap();
    let status = cluster.status(1).await.unwrap();
    assert!(
        status.nodes.iter().any(|node| node.node_id == node_id(0) && !node.up),
        "let in before the verdict"
    );
    share.create(CreateRequest::new("file")).await.unwrap().close().await.unwrap();

    let session = owner.connect(cluster.smb_address(1)).await.unwrap();
    let share = session.tree_connect(&cluster.share(1)).await.unwrap();
    let refusal = share.create(reconnect).await.unwrap_err();
    assert_eq!(refusal.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND), "{refusal}");
}

/// An intruder purges the orphan and goes away, and the share moves on. smbd leaves the orphan's own record behind;
/// no node may take that for an open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_orphan_does_not_come_back_on_a_third_node() {
    let Some((cluster, owner, reconnect)) = cluster_with_an_orphan().await else { return };
    let intruder = Client::new(cluster.credentials()).connect(cluster.smb_address(1)).await.unwrap();
    let share = intruder.tree_connect(&cluster.share(1)).await.unwrap();
    share.create(CreateRequest::new("file")).await.unwrap().close().await.unwrap();
    share.disconnect().await.unwrap();

    let session = owner.connect(cluster.smb_address(2)).await.unwrap();
    let share = session.tree_connect(&cluster.share(2)).await.unwrap();
    let refusal = share.create(reconnect).await.unwrap_err();
    assert_eq!(refusal.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND), "{refusal}");
}

/// The other side of it: who only looks at the file's attributes breaks no lease, and takes nothing away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_visitor_who_breaks_nothing_leaves_the_orphan() {
    let Some((cluster, owner, reconnect)) = cluster_with_an_orphan().await else { return };
    let visitor = Client::new(cluster.credentials()).connect(cluster.smb_address(1)).await.unwrap();
    let share = visitor.tree_connect(&cluster.share(1)).await.unwrap();
    let look = CreateRequest { desired_access: AccessMask::READ_ATTRIBUTES, ..CreateRequest::new("file") };
    share.create(look).await.unwrap().close().await.unwrap();

    let session = owner.connect(cluster.smb_address(1)).await.unwrap();
    let share = session.tree_connect(&cluster.share(1)).await.unwrap();
    share.create(reconnect).await.unwrap();
}

/// A client at node 0 that caches reads of two files, one of which somebody else is going to change.
struct Cached {
    cluster: Cluster,
    owner: Client,
    session: Session,
    changed: Opened,
    unchanged: Opened,
    /// Somebody else's, of the file that is going to be changed.
    others: Opened,
}

impl Cached {
    async fn start() -> Option<Self> {
        let options = ClusterOptions::with_samba(PROGRAM, samba_or_skip()?).patient();
        let cluster = Cluster::start(options).await.unwrap();
        let owner = Client::new(cluster.credentials());
        let (session, share) = cluster.connect(&owner, 0).await.unwrap();
        let (_, others) = cluster.connect(&Client::new(cluster.credentials()), 0).await.unwrap();
        let read = || Lease::request(LeaseState::READ_HANDLE);
        let cached = |path: &str| CreateRequest::new(path).with_lease(read()).durable_v2();
        let changed = share.create(cached("changed")).await.unwrap();
        let unchanged = share.create(cached("unchanged")).await.unwrap();
        others.create(CreateRequest::new("unchanged")).await.unwrap().close().await.unwrap();
        let others = others.create(CreateRequest::new("changed")).await.unwrap();
        Some(Self { cluster, owner, session, changed, unchanged, others })
    }

    /// The process that serves the client gets no message any more.
    fn stop_process(&self) -> Pid {
        let process = self.cluster.smbd(0).child_of(self.session.client_address()).unwrap();
        let process = Pid::from_raw(process);
        kill(process, Signal::SIGSTOP).unwrap();
        process
    }

    /// Somebody writes, and waits for nobody.
    async fn change(&self) {
        self.others.write(0, b"news").await.unwrap();
        self.others.close().await.unwrap();
    }

    /// The client comes back to a node. What nobody has changed it has again.
    async fn assert_only_unchanged_is_given_back(&self, node: usize) {
        let address = self.cluster.smb_address(node);
        let session = self.owner.reconnect(address, self.session.id()).await.unwrap();
        let share = session.tree_connect(&self.cluster.share(node)).await.unwrap();
        let refusal = share.create(self.changed.reconnect_request()).await.unwrap_err();
        assert_eq!(refusal.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND), "{refusal}");
        reclaim(&share, &self.unchanged).await.unwrap();
    }
}

/// Who writes sends those who cache reads a message, and goes on. One that is not passed on any more must not be forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_whose_break_has_died_with_the_process_is_not_given_back() {
    let Some(cached) = Cached::start().await else { return };
    let process = cached.stop_process();
    cached.change().await;
    kill(process, Signal::SIGKILL).unwrap();
    cached.session.ended().await;
    cached.assert_only_unchanged_is_given_back(0).await;
}

/// The same, and the whole node dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_whose_break_has_died_with_the_node_is_not_given_back() {
    let Some(mut cached) = Cached::start().await else { return };
    cached.stop_process();
    cached.change().await;
    cached.cluster.kill(0).unwrap();
    cached.assert_only_unchanged_is_given_back(1).await;
}

/// Whoever changes the file of a client that is away ends its open, also where its node dies afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_has_gone_stale_while_its_client_was_away_is_not_given_back_after_a_crash() {
    let Some(mut cached) = Cached::start().await else { return };
    cached.session.drop_connection().await;
    let deadline = Instant::now() + MOVE_TIMEOUT;
    while cached.cluster.opens(1).await.unwrap().iter().any(|open| open.deadline().is_none()) {
        assert!(Instant::now() < deadline, "the client is not taken for away");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cached.change().await;
    cached.cluster.kill(0).unwrap();
    cached.assert_only_unchanged_is_given_back(1).await;
}

/// Enters a share as soon as no other node serves it.
async fn enter_when_free(session: &Session, share: &str) -> Tree {
    let deadline = Instant::now() + MOVE_TIMEOUT;
    loop {
        match session.tree_connect(share).await {
            Ok(tree) => return tree,
            Err(refusal) => assert!(Instant::now() < deadline, "{refusal}"),
        }
    }
}

/// A share is served by one node at a time: the second one refuses it while the first is in use, and gets it
/// with all that is open when the first is left in peace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_of_two_live_nodes_is_refused_the_share_until_the_first_is_left() {
    let Some(tools) = samba_or_skip() else { return };
    let cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
    let client = Client::new(cluster.credentials());
    let first = client.connect(cluster.smb_address(0)).await.unwrap();
    let share = first.tree_connect(&cluster.share(0)).await.unwrap();
    let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();

    let second = Client::new(cluster.credentials()).connect(cluster.smb_address(1)).await.unwrap();
    let refusal = second.tree_connect(&cluster.share(1)).await.unwrap_err();
    assert_eq!(refusal.status(), Some(NtStatus::FILE_LOCK_CONFLICT), "{refusal}");

    first.drop_connection().await;
    enter_when_free(&second, &cluster.share(1)).await;
    let moved = client.connect(cluster.smb_address(1)).await.unwrap();
    let share = moved.tree_connect(&cluster.share(1)).await.unwrap();
    let reclaimed = share.create(open.reconnect_request()).await.unwrap();
    assert_eq!(reclaimed.file_id().persistent, open.file_id().persistent);
}

/// The serving node of a share cannot keep two nodes from a file that they reach by two shares. Each of their `smbd`s
/// would grant its client a write cache of its own; the cluster refuses the second one, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_reach_a_file_by_two_shares_do_not_both_grant_it() {
    let Some(tools) = samba_or_skip() else { return };
    let mut options = ClusterOptions::with_samba(PROGRAM, tools).patient();
    options.smbd.more_shares.push(SECOND_SHARE.to_owned());
    let cluster = Cluster::start(options).await.unwrap();
    let first = Client::new(cluster.credentials()).connect(cluster.smb_address(0)).await.unwrap();
    let first = first.tree_connect(&cluster.share(0)).await.unwrap();
    let second = Client::new(cluster.credentials()).connect(cluster.smb_address(1)).await.unwrap();
    let second = second.tree_connect(&second_share(&cluster, 1)).await.unwrap();

    let held = first.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    let refusal = second.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap_err();
    assert!(refusal.status().is_some(), "refused by smbd, not a lost connection: {refusal}");
    assert_eq!(cluster.status(1).await.unwrap().conflicts_refused, 1);

    // Without a conflict both ways are open.
    second.create(CreateRequest::durable_v2_with_lease("another file")).await.unwrap();
    held.close().await.unwrap();
    second.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    assert_eq!(cluster.status(1).await.unwrap().conflicts_refused, 1);
}

/// A cluster with two shares of one directory, whose sidecars may be away for a moment on a busy machine.
async fn cluster_with_two_shares() -> Option<Cluster> {
    let mut options = ClusterOptions::with_samba(PROGRAM, samba_or_skip()?).with_time_for_sidecars();
    options.smbd.more_shares.push(SECOND_SHARE.to_owned());
    Some(Cluster::start(options).await.unwrap())
}

/// A node's second share, as its clients write it.
fn second_share(cluster: &Cluster, node: usize) -> String {
    cluster.share(node).replace(SHARE, SECOND_SHARE)
}

/// A path says too little where two shares have it. A restarted sidecar knows which of them a client has entered, so that
/// the open waits for it there, whoever serves the other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_sidecar_knows_through_which_of_two_shares_a_file_is_opened() {
    let Some(mut cluster) = cluster_with_two_shares().await else { return };
    let ways = [Cluster::share, second_share];
    let clients = ways.map(|_| Client::new(cluster.credentials()));
    let enter = async |cluster: &Cluster, way: usize, node: usize| {
        let session = clients[way].connect(cluster.smb_address(node)).await.unwrap();
        session.tree_connect(&ways[way](cluster, node)).await.unwrap()
    };
    let shares = [enter(&cluster, 0, 0).await, enter(&cluster, 1, 0).await];
    for share in &shares {
        // smbd tells of a tree connect once more when it is used for the first time.
        share.create(CreateRequest::new("before")).await.unwrap().close().await.unwrap();
    }
    cluster.kill_sidecar(0).unwrap();
    cluster.start_sidecar(0).unwrap();
    let mut opens = Vec::new();
    for (share, path) in shares.iter().zip(["one", "another"]) {
        opens.push(share.create(CreateRequest::durable_v2_with_lease(path)).await.unwrap());
    }

    cluster.kill(0).unwrap();
    // Each node takes one of the shares over before anybody claims.
    let shares = [enter(&cluster, 0, 1).await, enter(&cluster, 1, 2).await];
    for (share, open) in shares.iter().zip(&opens) {
        let reclaimed = share.create(open.reconnect_request()).await.unwrap();
        assert_eq!(reclaimed.file_id().persistent, open.file_id().persistent);
    }
}

/// A client that has nothing to say, and so is not heard of by the new sidecar, keeps its share from other nodes all the
/// same. One that leaves while there is no sidecar does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_sidecar_knows_who_is_in_a_share() {
    let Some(mut cluster) = cluster_with_two_shares().await else { return };
    let visitor = Client::new(cluster.credentials());
    let silent = visitor.connect(cluster.smb_address(0)).await.unwrap();
    let _stays = silent.tree_connect(&cluster.share(0)).await.unwrap();
    let leaving = Client::new(cluster.credentials()).connect(cluster.smb_address(0)).await.unwrap();
    leaving.tree_connect(&second_share(&cluster, 0)).await.unwrap();

    cluster.kill_sidecar(0).unwrap();
    cluster.smbd(0).kill_child(leaving.client_address()).await.unwrap();
    cluster.start_sidecar(0).unwrap();
    // Comes and goes, and is not the last one, although the new sidecar has seen nobody else.
    let passing = Client::new(cluster.credentials()).connect(cluster.smb_address(0)).await.unwrap();
    passing.tree_connect(&cluster.share(0)).await.unwrap().disconnect().await.unwrap();

    let elsewhere = Client::new(cluster.credentials()).connect(cluster.smb_address(1)).await.unwrap();
    let refusal = elsewhere.tree_connect(&cluster.share(1)).await.unwrap_err();
    assert_eq!(refusal.status(), Some(NtStatus::FILE_LOCK_CONFLICT), "{refusal}");
    enter_when_free(&elsewhere, &second_share(&cluster, 1)).await;

    silent.drop_connection().await;
    enter_when_free(&elsewhere, &cluster.share(1)).await;
}
