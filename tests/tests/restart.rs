//! What is left when all nodes are lost at the same moment, sidecars and SMB servers, and start again on their disks.

use std::time::Duration;

use harness::{
    client_machine::{ClientMachine, RH, RWH},
    cluster::{Cluster, ClusterOptions},
    smb_client::NtStatus,
    smb_node::{Granted, SmbNode, SmbNodeError},
};
use statedb::{
    ByteRangeLock, Create, Dialect, DurableFileId, Instance, Lock, LockElement, LockKind, LockSequence,
    Millis, OpenedHow, Oplock, Outcome,
};
use tokio::time;

/// The program that can be `holdfast`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

/// Means "it does not happen": far longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the client has locked.
const RANGE: ByteRangeLock = ByteRangeLock { offset: 0, length: 10, exclusive: true };
const SEQUENCE: LockSequence = LockSequence { index: 1, number: 5 };

struct Site {
    // First, so that no server outlives its sidecar.
    servers: Vec<SmbNode>,
    cluster: Cluster,
}

impl Site {
    async fn start() -> Self {
        let options = ClusterOptions::without_samba(PROGRAM).patient();
        let cluster = Cluster::start(options).await.unwrap();
        let servers = attach_all(&cluster).await;
        Self { servers, cluster }
    }

    /// Everything dies, and starts again after a while.
    async fn lose_all_nodes(&mut self, outage: Duration) {
        self.cluster.kill_all().unwrap();
        self.servers.clear();
        time::sleep(outage).await;
        self.cluster.start_all().await.unwrap();
        self.servers = attach_all(&self.cluster).await;
    }
}

/// New servers, of which the cluster knows nothing yet.
async fn attach_all(cluster: &Cluster) -> Vec<SmbNode> {
    let mut servers = Vec::new();
    for node in 0..cluster.len() {
        let sidecar = cluster.sidecar(node);
        let attach = SmbNode::attach(&sidecar, Instance(rand::random()));
        servers.push(time::timeout(PATIENCE, attach).await.expect("a server is attached in time").unwrap());
    }
    servers
}

async fn open(server: &SmbNode, create: &Create) -> Result<Granted, SmbNodeError> {
    let waits = || panic!("this CREATE has to wait: {create:?}");
    time::timeout(PATIENCE, server.create(create.clone(), waits)).await.expect("a CREATE is answered in time")
}

fn lock(open: DurableFileId) -> Lock {
    let elements =
        vec![LockElement { offset: RANGE.offset, length: RANGE.length, kind: LockKind::Exclusive }];
    Lock { open, elements, sequence: SEQUENCE, dialect: Dialect::Smb311, multichannel: false }
}

/// What a client holds, and wants back.
struct Held {
    create: Create,
    granted: Granted,
}

impl Held {
    async fn open(server: &SmbNode, create: Create) -> Self {
        let granted = open(server, &create).await.unwrap();
        assert!(granted.opened.durable.is_some(), "{granted:?}");
        Self { create, granted }
    }

    fn id(&self) -> DurableFileId {
        self.granted.opened.durable_file_id
    }

    /// Has it back in a new session: the same open, with all that belongs to it.
    async fn reclaim(&self, server: &SmbNode, machine: &ClientMachine) -> Granted {
        let again = open(server, &machine.reconnect(&self.create, self.id())).await.unwrap();
        assert_eq!((again.opened.durable_file_id, again.opened.how), (self.id(), OpenedHow::Reconnected));
        assert_eq!(again.opened.oplock, self.granted.opened.oplock);
        again
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn persistent_opens_survive_the_loss_of_all_nodes_twice_with_lease_locks_and_create_guid() {
    let mut site = Site::start().await;
    let mut machine = ClientMachine::continuously_available();
    let on_several_nodes = [RWH, RH, RWH].into_iter().enumerate();
    let mut opens = Vec::new();
    for (node, state) in on_several_nodes {
        let create = machine.persistent_create(&format!("file-{node}"), state);
        opens.push(Held::open(&site.servers[node], create).await);
    }
    // Persistent without anything that it may cache, and one that was never answered.
    let bare = Create { requested: Oplock::None, ..machine.persistent_create("bare", RWH) };
    opens.push(Held::open(&site.servers[0], bare).await);
    let unanswered = Held::open(&site.servers[1], machine.persistent_create("unanswered", RWH)).await;
    assert!(!site.servers[0].lock(lock(opens[0].id())).await.unwrap());

    for round in 1..=2 {
        site.lose_all_nodes(Duration::ZERO).await;

        // Every client comes to another node than before.
        machine = machine.in_new_session();
        let server = &site.servers[round];
        for held in &opens {
            let again = held.reclaim(server, &machine).await;
            let known = again.open.expect("this server has never heard of it");
            let locks = if held.id() == opens[0].id() { vec![RANGE] } else { Vec::new() };
            assert_eq!(known.byte_range_locks, locks, "{}", known.path);
        }
        assert!(server.lock(lock(opens[0].id())).await.unwrap(), "the lock was not recognised");
        let replayed = open(server, &machine.replay(&unanswered.create)).await.unwrap().opened;
        assert_eq!(replayed.durable_file_id, unanswered.id());
    }
}

/// What Holdfast does beyond what a durable open promises: the log has it, so it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durable_opens_that_were_answered_survive_the_loss_of_all_nodes_and_others_do_not() {
    let mut site = Site::start().await;
    let machine = ClientMachine::new();
    let server = &site.servers[0];
    let leased = Held::open(server, machine.durable_create("leased", RWH)).await;
    let batch = Create { requested: Oplock::Batch, ..machine.durable_create("batch", RWH) };
    let batch = Held::open(server, batch).await;
    server.lock(lock(batch.id())).await.unwrap();
    let plain = machine.create("plain");
    let not_durable = open(server, &plain).await.unwrap().opened.durable_file_id;

    site.lose_all_nodes(Duration::ZERO).await;

    let (machine, server) = (machine.in_new_session(), &site.servers[1]);
    leased.reclaim(server, &machine).await;
    let known = batch.reclaim(server, &machine).await.open.expect("this server has never heard of it");
    assert_eq!(known.byte_range_locks, [RANGE]);
    match open(server, &machine.reconnect(&plain, not_durable)).await {
        Err(SmbNodeError::Rejected { ntstatus, .. }) => {
            assert_eq!(NtStatus(ntstatus), NtStatus::OBJECT_NAME_NOT_FOUND);
        }
        other => panic!("{other:?}"),
    }
}

/// The time in which there is no cluster is not the client's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_whole_cluster_does_not_count_against_the_timeout_of_an_open() {
    const TIMEOUT: Millis = Millis(5_000);
    const OUTAGE: Duration = Duration::from_millis(7_000);
    let mut site = Site::start().await;
    let machine = ClientMachine::continuously_available();
    let with_short_timeout = |mut create: Create| {
        create.contexts.durable_request_v2.as_mut().expect("DH2Q").timeout = TIMEOUT;
        create
    };
    let server = &site.servers[0];
    let persistent =
        Held::open(server, with_short_timeout(machine.persistent_create("persistent", RWH))).await;
    let durable = Held::open(server, with_short_timeout(machine.durable_create("durable", RWH))).await;
    let ended = server.end_session(machine.session()).await.unwrap();
    let disconnected = vec![persistent.id(), durable.id()];
    assert_eq!(ended, Outcome::SessionEnded { disconnected, closed: Vec::new() });

    site.lose_all_nodes(OUTAGE).await;

    let (machine, server) = (machine.in_new_session(), &site.servers[2]);
    persistent.reclaim(server, &machine).await;
    durable.reclaim(server, &machine).await;
}
