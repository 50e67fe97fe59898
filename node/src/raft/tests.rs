//! openraft's own storage suite over our stores, and three nodes in one process that talk over loopback.

use std::net::SocketAddr;
use std::path::Path;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use statedb::{
    Arbiter, Create, CreateContexts, CreateGuid, DurableRequestV2, FileKey, Incarnation, Instance, Millis,
    Operation, Oplock, Record, Request,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::Code;

use super::lane::LaneError;
use super::*;
use crate::fixtures::{FILE, create, lease};
use crate::rpc::listen;

/// Nothing in these tests takes longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(30);

/// Slower than the defaults: many tests run at once on few processors.
pub(super) const TIMING: RaftTiming = RaftTiming {
    heartbeat_interval: Duration::from_millis(50),
    election_timeout_min: Duration::from_millis(200),
    election_timeout_max: Duration::from_millis(400),
};

struct Stores;

impl StoreBuilder<TypeConfig, LogStorage, StateMachine, TempDir> for Stores {
    async fn build(&self) -> Result<(TempDir, LogStorage, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a directory");
        let (log, state_machine, _) = open(dir.path().to_owned(), Limits::DEFAULT).expect("opens");
        let log_storage = LogStorage::new(Arc::new(log), state_machine.writer());
        Ok((dir, log_storage, state_machine))
    }
}

#[test]
fn the_stores_pass_the_storage_suite_of_openraft() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(Suite::test_all(Stores)).expect("all of the suite passes");
}

struct Cluster {
    dirs: BTreeMap<u64, TempDir>,
    voters: BTreeMap<NodeId, String>,
    running: BTreeMap<u64, Running>,
}

/// A node with a runtime of its own: whatever it does ends with that, in the middle of it.
struct Running {
    node: Arc<RaftNode>,
    /// Until it is dropped, which an asynchronous test may not do with a runtime.
    runtime: Option<Runtime>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A node that knows of nobody but Raft.
struct NoAnswers;

impl Answers for NoAnswers {
    fn sign_of_life(&self, _: Owner) -> Answer {
        Answer::AskAgain
    }

    async fn is_settled(&self, _: DurableFileId, _: u64) -> bool {
        false
    }
}

impl Cluster {
    /// Three nodes that have never run.
    async fn new() -> Self {
        Self::of(3).await
    }

    async fn of(nodes: u64) -> Self {
        let mut cluster = Self { dirs: BTreeMap::new(), voters: BTreeMap::new(), running: BTreeMap::new() };
        let mut listeners = Vec::new();
        for id in 1..=nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("an address").to_string();
            cluster.voters.insert(NodeId(id), address);
            cluster.dirs.insert(id, tempfile::tempdir().expect("a directory"));
            listeners.push((id, listener.into_std().expect("a listener")));
        }
        for (id, listener) in listeners {
            cluster.run(id, listener).await;
        }
        cluster
    }

    fn config(&self, id: u64, data_dir: &Path) -> RaftNodeConfig {
        RaftNodeConfig {
            id: NodeId(id),
            voters: self.voters.clone(),
            data_dir: data_dir.to_owned(),
            timing: TIMING,
            fingerprint: 7,
            limits: Limits::DEFAULT,
        }
    }

    async fn run(&mut self, id: u64, listener: std::net::TcpListener) {
        let config = self.config(id, self.dirs[&id].path());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let started = runtime.spawn(async move {
            let node = RaftNode::start(config).await.expect("starts");
            let service = node.server(NoAnswers);
            let listener = TcpListener::from_std(listener).expect("a listener");
            let (calls, lanes) = listen::sorted(listener);
            tokio::spawn(Arc::clone(&node).serve_lanes(lanes));
            tokio::spawn(listen::server().add_service(service).serve_with_incoming(calls));
            node
        });
        let node = started.await.expect("it does not panic");
        self.running.insert(id, Running { node, runtime: Some(runtime) });
    }

    async fn restart(&mut self, id: u64) {
        let address: SocketAddr = self.voters[&NodeId(id)].parse().expect("an address");
        let listener = TcpListener::bind(address).await.expect("the port is free again");
        self.run(id, listener.into_std().expect("a listener")).await;
    }

    /// Ends a node in the middle of whatever it does, with its connections.
    async fn kill(&mut self, id: u64) {
        drop(self.running.remove(&id).expect("it runs"));
        // A thread of it may be busy with the disk.
        let log = self.dirs[&id].path().join("log");
        let applied = self.dirs[&id].path().join("applied");
        within(async || {
            while LogStore::open(&log).is_err() || AppliedStore::open(&applied).is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    fn node(&self, id: u64) -> &RaftNode {
        &self.running[&id].node
    }

    async fn leader(&self) -> u64 {
        within(async || {
            loop {
                let leading =
                    |running: &Running| running.node.leading().is_some_and(|leading| leading.caught_up);
                if let Some((id, _)) = self.running.iter().find(|(_, running)| leading(running)) {
                    return *id;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        *self.running.keys().find(|id| **id != leader).expect("there is another")
    }

    /// Registers an instance through a node, and waits until every running node has applied that.
    async fn register(&self, through: u64, instance: u8) -> LogId {
        let (log_id, outcome) = within(async || {
            loop {
                match self.node(through).propose(register(instance)).await {
                    Ok(answer) => return answer,
                    Err(ProposeError::NoLeader | ProposeError::Unknown) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await;
        assert!(matches!(outcome, Outcome::Registered { .. }), "{outcome}");
        self.applied_everywhere(log_id).await;
        log_id
    }

    async fn applied_everywhere(&self, log_id: LogId) {
        for running in self.running.values() {
            within(async || running.node.applied_through(log_id.index).await).await;
        }
    }

    fn states_are_equal(&self) {
        let records = |running: &Running| running.node.read(|state| state.records().collect::<Vec<_>>());
        let all: Vec<_> = self.running.values().map(records).collect();
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "replicas that applied the same are the same");
    }
}

/// A different node for each instance, so that every registration is the first.
fn register(instance: u8) -> Command {
    let (node, instance) = (NodeId(instance.into()), Instance([instance; 16]));
    Command::RegisterNode { node, instance, arbiter: Arbiter::Cluster }
}

/// Has a node take a snapshot and purge its log.
async fn purge(node: &RaftNode, upto: LogId) {
    let raft = &node.raft;
    raft.trigger().snapshot().await.expect("Raft runs");
    let built = |metrics: &RaftMetrics<TypeConfig>| metrics.snapshot.is_some_and(|at| at.index >= upto.index);
    raft.wait(Some(PATIENCE)).metrics(built, "a snapshot is built").await.expect("it is");
    raft.trigger().purge_log(upto.index).await.expect("Raft runs");
    raft.wait(Some(PATIENCE)).purged(Some(convert::log_id(upto)), "the log is purged").await.expect("it is");
}

async fn within<T>(wait: impl AsyncFnOnce() -> T) -> T {
    tokio::time::timeout(PATIENCE, wait()).await.expect("it takes far less")
}

fn registered(node: &RaftNode, instance: u8) -> Option<Incarnation> {
    node.read(|state| state.node(NodeId(instance.into())).map(|node| node.incarnation))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_forms_elects_and_answers_through_every_node() {
    let cluster = Cluster::new().await;
    for id in 1..=3 {
        let instance = u8::try_from(10 + id).expect("small");
        let mut news = cluster.node(id).news();
        cluster.register(id, instance).await;
        // An entry without a command is news too.
        let command = loop {
            let news = news.recv().await.expect("news");
            let News::Applied { entries, .. } = &*news else { panic!("{news:?}") };
            if let Some(entry) = entries.first() {
                break entry.command().clone();
            }
        };
        assert_eq!(command, register(instance));
        assert!(cluster.running.values().all(|running| registered(&running.node, instance).is_some()));
    }
    cluster.states_are_equal();
    let leader = cluster.leader().await;
    let acked = cluster.node(leader).last_quorum_acked().expect("a quorum follows");
    assert!(acked.elapsed() < PATIENCE);
    assert_eq!(cluster.node(cluster.follower().await).last_quorum_acked(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_dies_and_nothing_that_was_answered_is_lost() {
    let mut cluster = Cluster::new().await;
    let first = cluster.leader().await;
    cluster.register(first, 21).await;
    let before = cluster.node(first).read(State::now);
    cluster.kill(first).await;
    let second = cluster.leader().await;
    assert_ne!(second, first);
    cluster.register(second, 22).await;
    assert!(cluster.node(second).cluster_now() >= before, "cluster time never goes back");

    cluster.restart(first).await;
    let restarted = cluster.node(first);
    within(async || restarted.caught_up().await).await;
    assert!(registered(restarted, 21).is_some() && registered(restarted, 22).is_some());
    cluster.register(first, 23).await;
    cluster.states_are_equal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_answers_no_leader_or_unknown_and_serves_again_with_a_quorum() {
    let mut cluster = Cluster::new().await;
    cluster.register(1, 31).await;
    let leader = cluster.leader().await;
    let others: Vec<_> = cluster.running.keys().copied().filter(|id| *id != leader).collect();
    for id in &others {
        cluster.kill(*id).await;
    }
    let refused = cluster.node(leader).propose(register(32)).await;
    assert!(matches!(refused, Err(ProposeError::Unknown | ProposeError::NoLeader)), "{refused:?}");
    assert_eq!(registered(cluster.node(leader), 32), None, "nothing is applied without a quorum");

    cluster.restart(others[0]).await;
    cluster.register(leader, 33).await;
    cluster.states_are_equal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_does_not_wait_for_a_frozen_leader() {
    const FREEZE: Duration = Duration::from_secs(8);
    let mut cluster = Cluster::new().await;
    let (leader, through) = (cluster.leader().await, cluster.follower().await);
    cluster.register(through, 34).await;
    let frozen = cluster.running.remove(&leader).expect("it runs");
    let frozen_at = Instant::now();
    // Its runtime has one thread, and that does nothing else now.
    frozen.runtime.as_ref().expect("it runs").spawn(async { std::thread::sleep(FREEZE) });
    cluster.register(through, 35).await;
    assert!(frozen_at.elapsed() < FREEZE, "another leader has answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_restart_from_disk() {
    let mut cluster = Cluster::new().await;
    for instance in 41..=45 {
        cluster.register(1, instance).await;
    }
    for id in 1..=3 {
        cluster.kill(id).await;
    }
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    cluster.register(2, 46).await;
    assert!((41..=46).all(|instance| registered(cluster.node(3), instance).is_some()));
    cluster.states_are_equal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_disk_is_rebuilt_by_a_snapshot_and_votes_only_then() {
    let mut cluster = Cluster::new().await;
    let lost = cluster.follower().await;
    cluster.register(lost, 51).await;
    cluster.kill(lost).await;
    cluster.dirs.insert(lost, tempfile::tempdir().expect("an empty directory"));

    // The leader has purged the entries that the lost one would need.
    let leader = cluster.leader().await;
    let upto = cluster.register(leader, 52).await;
    purge(cluster.node(leader), upto).await;

    cluster.restart(lost).await;
    let rebuilt = cluster.node(lost);
    assert!(!rebuilt.voting.is_allowed(), "it may have forgotten a promise");
    within(async || rebuilt.caught_up().await).await;
    assert!(registered(rebuilt, 51).is_some() && registered(rebuilt, 52).is_some());
    within(async || {
        while !rebuilt.voting.is_allowed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    cluster.register(lost, 53).await;
    cluster.states_are_equal();

    // What it was given is on its own disk now.
    cluster.kill(lost).await;
    cluster.restart(lost).await;
    within(async || cluster.node(lost).caught_up().await).await;
    cluster.register(lost, 54).await;
    cluster.states_are_equal();
}

/// The incarnation of an SMB service that was the first to register on its node, which has the number of its instance.
fn owner(instance: u8) -> Owner {
    Owner { node: NodeId(instance.into()), incarnation: Incarnation(1) }
}

/// Asks in the name of `register(instance)`, for one thing after another, from this sequence on.
async fn ask(
    node: &RaftNode,
    instance: u8,
    first_sequence: u64,
    requests: impl IntoIterator<Item = Request>,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (sequence, request) in (first_sequence..).zip(requests) {
        let proposer = statedb::Proposer { owner: owner(instance), sequence, first_outstanding: sequence };
        let command = Command::FromSmbNode { proposer, request };
        let (_, outcome) = within(async || {
            loop {
                match node.propose(command.clone()).await {
                    Ok(answer) => return answer,
                    Err(ProposeError::NoLeader | ProposeError::Unknown) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await;
        outcomes.push(outcome);
    }
    outcomes
}

/// All that the state holds but for where it stands, which every leader moves on.
fn tables(node: &RaftNode) -> Vec<Record> {
    node.read(|state| state.records().filter(|record| !matches!(record, Record::Meta { .. })).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn breaks_waiting_requests_and_deletions_are_in_snapshots_and_on_disk() {
    let mut cluster = Cluster::new().await;
    let leader = cluster.leader().await;
    cluster.register(leader, 55).await;
    let of = |inode, create: Create| {
        let file = FileKey { inode, ..FILE };
        Request::Create(Box::new(Create { file, ..create }))
    };
    let outcomes = ask(
        cluster.node(leader),
        55,
        0,
        [
            of(1, create(1, lease(7))),
            of(1, create(2, Oplock::None)),
            of(2, create(1, Oplock::Batch)),
            of(2, create(2, Oplock::None)),
            of(3, create(1, Oplock::None)),
        ],
    )
    .await;
    let [Outcome::Opened(_), Outcome::BreakPending, Outcome::Opened(_), Outcome::BreakPending, last] =
        &outcomes[..]
    else {
        panic!("{outcomes:?}")
    };
    let Outcome::Opened(opened) = last else { panic!("{last}") };
    let delete =
        Request::Operate { open: opened.durable_file_id, operation: Operation::SetDeletePending(true) };
    assert_eq!(ask(cluster.node(leader), 55, 10, [delete]).await, [Outcome::Proceed]);
    let upto = cluster.register(leader, 56).await;

    let kept = tables(cluster.node(leader));
    let count = |is: fn(&Record) -> bool| kept.iter().filter(|record| is(record)).count();
    assert_eq!(count(|record| matches!(record, Record::Break(..))), 2);
    assert_eq!(count(|record| matches!(record, Record::Waiting(_))), 2);
    assert_eq!(count(|record| matches!(record, Record::Delete(..))), 1);

    let lost = cluster.follower().await;
    cluster.kill(lost).await;
    cluster.dirs.insert(lost, tempfile::tempdir().expect("an empty directory"));
    purge(cluster.node(leader), upto).await;
    cluster.restart(lost).await;
    within(async || cluster.node(lost).caught_up().await).await;
    assert_eq!(tables(cluster.node(lost)), kept);
    let mut events = cluster.node(lost).events().subscribe(0);
    let missed = events.read().await.expect_err("it was not told of any");
    assert_eq!(missed.first, cluster.node(lost).read(State::next_event), "all are in the state that came");

    for id in 1..=3 {
        cluster.kill(id).await;
    }
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    for id in 1..=3 {
        within(async || cluster.node(id).caught_up().await).await;
        assert_eq!(tables(cluster.node(id)), kept, "node {id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_all_nodes_takes_nothing_from_the_time_of_a_persistent_open() {
    let mut cluster = Cluster::new().await;
    cluster.register(1, 57).await;
    let timeout = Millis(60_000);
    let request = DurableRequestV2 { timeout, persistent: true, create_guid: CreateGuid([5; 16]) };
    let contexts = CreateContexts { durable_request_v2: Some(request), ..CreateContexts::default() };
    let create = Create { contexts, ..create(1, lease(7)) };
    let outcomes = ask(cluster.node(1), 57, 0, [Request::Create(Box::new(create))]).await;
    let [Outcome::Opened(opened)] = outcomes[..] else { panic!("{outcomes:?}") };
    let before = (1..=3).map(|id| cluster.node(id).read(State::now)).max().expect("three nodes");

    for id in 1..=3 {
        cluster.kill(id).await;
    }
    let down_for = Duration::from_secs(2);
    tokio::time::sleep(down_for).await;
    let restarting = Instant::now();
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    let leader = cluster.leader().await;
    let counted = cluster.node(leader).cluster_now().since(before);
    let restarted_for = u64::try_from(restarting.elapsed().as_millis()).expect("a short time");
    assert!(counted.0 <= restarted_for, "{counted} in {restarted_for} ms: time went on while nobody led");

    // The SMB service has died with its node. What it had waits for its client, for as long as that was promised.
    let owner = owner(57);
    let verdict = Command::NodeDown { node: owner.node, incarnation: owner.incarnation };
    let (log_id, outcome) =
        within(async || cluster.node(leader).propose(verdict).await).await.expect("a quorum");
    let disconnected = vec![opened.durable_file_id];
    assert_eq!(outcome, Outcome::NodeDown { disconnected, closed: Vec::new() });
    cluster.applied_everywhere(log_id).await;
    let (now, deadline) = cluster
        .node(leader)
        .read(|state| (state.now(), state.open(opened.durable_file_id).and_then(statedb::Open::deadline)));
    assert_eq!(deadline, Some(now.after(timeout)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused() {
    let cluster = Cluster::new().await;
    let leader = cluster.leader().await;
    let address = &cluster.voters[&NodeId(leader)];
    let peer = cluster.node(cluster.follower().await).peers.control(leader).expect("a peer");
    let good = peer.envelope;
    let lanes = [pb::Lane::Entries, pb::Lane::Proposals];
    for (envelope, why) in [
        (pb::Envelope { cluster: 8, ..good }, "another cluster configuration"),
        (pb::Envelope { from: 9, ..good }, "is an id used twice"),
        (pb::Envelope { to: 9, ..good }, "is an id used twice"),
    ] {
        let mut client = peer.client.clone();
        let request = pb::KeepAliveRequest { envelope: Some(envelope), owner: Some(owner(61).into()) };
        let status = client.keep_alive(request).await.expect_err("it is refused");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains(why), "{status}");
        for lane in lanes {
            let hello = pb::Hello { envelope: Some(envelope), lane: lane.into() };
            let refused = lane::open::<pb::ProposeResponse>(address, hello, PATIENCE).await;
            let LaneError::Refused(reason) = refused.expect_err("it is refused") else { panic!("no reason") };
            assert!(reason.contains(why), "{reason}");
        }
    }
    for lane in lanes {
        let hello = pb::Hello { envelope: Some(good), lane: lane.into() };
        lane::open::<pb::ProposeResponse>(address, hello, PATIENCE).await.expect("a peer");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_too_long_is_refused_before_it_is_proposed() {
    let cluster = Cluster::new().await;
    let share = statedb::ShareName::new(&"x".repeat(COMMAND_LEN_MAX));
    let owner = Owner { node: NodeId(1), incarnation: Incarnation(1) };
    let proposer = statedb::Proposer { owner, sequence: 0, first_outstanding: 0 };
    let command = Command::FromSmbNode { proposer, request: statedb::Request::ServeShare(share) };
    for id in 1..=3 {
        let refused = within(async || {
            loop {
                match cluster.node(id).propose(command.clone()).await {
                    Err(ProposeError::NoLeader) => {}
                    refused => return refused,
                }
            }
        })
        .await;
        assert!(matches!(refused, Err(ProposeError::Refused { .. })), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_and_a_lost_state_are_named_with_what_to_do() {
    let mut cluster = Cluster::of(1).await;
    let upto = cluster.register(1, 81).await;
    purge(cluster.node(1), upto).await;
    cluster.register(1, 82).await;
    cluster.kill(1).await;
    let data_dir = cluster.dirs[&1].path().to_owned();
    let start = async || {
        let error = RaftNode::start(cluster.config(1, &data_dir)).await.expect_err("it must not start");
        crate::telemetry::chain(&error).to_string()
    };

    let chunk = std::fs::read_dir(data_dir.join("log"))
        .expect("a directory")
        .map(|file| file.expect("a file").path());
    let chunk =
        chunk.filter(|path| path.extension().is_some_and(|name| name == "wal")).max().expect("a chunk");
    let sound = std::fs::read(&chunk).expect("readable");
    let mut rotten = sound.clone();
    rotten[sound.len() / 2] ^= 0x08;
    std::fs::write(&chunk, rotten).expect("writable");
    let error = start().await;
    assert!(error.contains(&format!("{} is damaged at the record at byte", chunk.display())), "{error}");
    assert!(error.contains("move the node's data directory away"), "{error}");
    std::fs::write(&chunk, sound).expect("writable");

    std::fs::remove_dir_all(data_dir.join("applied")).expect("removed");
    let error = start().await;
    assert!(error.contains("it ends before entry"), "{error}");
    assert!(error.contains("move the node's data directory away"), "{error}");
}

/// Not a test: what [`a_full_disk_ends_the_node_with_a_message`] runs in a process whose files may not grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by another test"]
async fn child_that_proposes_until_it_fails() {
    let cluster = Cluster::of(1).await;
    let node = cluster.node(1);
    let propose = async {
        loop {
            let _ = node.propose(register(91)).await;
            // A node that has failed refuses without waiting for anything.
            tokio::task::yield_now().await;
        }
    };
    let failure = tokio::select! {
        failure = node.failed() => failure,
        () = propose => unreachable!("it proposes for ever"),
    };
    eprintln!("failed {failure}");
    assert_eq!(node.propose(register(92)).await, Err(ProposeError::ShuttingDown));
    eprintln!("no more proposals");
    std::process::exit(0);
}

#[test]
fn a_full_disk_ends_the_node_with_a_message() {
    // The shell counts in blocks of 512 or 1024 bytes. sled's file begins with half a megabyte.
    let child = std::process::Command::new("sh")
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -f 1100; exec \"$0\" --ignored --exact --nocapture \"$1\"")
        .arg(std::env::current_exe().expect("this test binary"))
        .arg("raft::tests::child_that_proposes_until_it_fails")
        .output()
        .expect("it ends by itself");
    let text = String::from_utf8_lossy(&child.stderr);
    assert!(text.lines().any(|line| line.starts_with("failed ")), "{text}");
    assert!(text.contains("cannot write and sync the log in"), "{text}");
    assert!(text.contains("no more proposals"), "{text}");
}

#[tokio::test]
async fn a_data_directory_in_use_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let _first = open(dir.path().to_owned(), Limits::DEFAULT).expect("opens");
    let second = open(dir.path().to_owned(), Limits::DEFAULT).expect_err("in use");
    assert!(matches!(second, StartError::Log(StoreError::Locked { .. })), "{second}");
}

/// `cargo test --release -p holdfast-node --lib -- --ignored --nocapture proposals_per` prints the figures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "its output is its purpose")]
async fn proposals_per_second_and_their_latency() {
    const PROPOSALS: usize = 2000;
    let (one, three) = (Cluster::of(1).await, Cluster::of(3).await);
    let leader = three.leader().await;
    let follower = three.follower().await;
    for (name, cluster, through) in
        [("only node", &one, 1), ("leader of three", &three, leader), ("follower", &three, follower)]
    {
        cluster.register(through, 71).await;
        for clients in [1, 16] {
            let started = Instant::now();
            let client = async || {
                let mut times = Vec::with_capacity(PROPOSALS / clients);
                for _ in 0..PROPOSALS / clients {
                    let started = Instant::now();
                    cluster.node(through).propose(Command::ExpireOpens).await.expect("an outcome");
                    times.push(started.elapsed());
                }
                times
            };
            let times = futures::future::join_all((0..clients).map(|_| client())).await;
            let elapsed = started.elapsed();
            let mut times: Vec<_> = times.into_iter().flatten().collect();
            times.sort();
            println!(
                "{clients} clients through the {name}: p50 {:?}, p99 {:?}, {:.0} a second",
                times[times.len() / 2],
                times[times.len() * 99 / 100],
                times.len() as f64 / elapsed.as_secs_f64()
            );
        }
    }
}
