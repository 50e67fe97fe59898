//! SMB servers on different nodes, and the cluster that decides between their clients: over real gRPC, with processes
//! that really die. The servers are [`SmbNode`]s; no SMB is spoken.
//!
//! Tests that hurt nobody share a cluster. Those that kill a node have one of their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, LazyLock, Weak},
    time::Duration,
};

use futures::future::{join_all, select_all};
use harness::{
    client_machine::{ClientMachine, R, READ_ATTRIBUTES, RH, RWH, SHARE_NONE},
    cluster::{Cluster, ClusterOptions},
    smb_client::NtStatus,
    smb_node::{Granted, Notice, Notices, SmbNode, SmbNodeError},
};
use statedb::{
    AppInstance, ByteRangeLock, CloseReason, Create, CreateContexts, CreateOptions, Dialect, DurableFileId,
    EventKind, FileKey, Instance, LeaseId, LeaseState, Lock, LockElement, LockKind, LockSequence, Millis,
    Note, Open, OpenedHow, Operation, Oplock, Outcome, Owner, Rejection, Request,
};
use tokio::{runtime::Runtime, task::JoinHandle, time};

/// The program that can be `holdfast`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

/// Means "it does not happen": far longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the cluster waits for an acknowledgement here: long enough for who sends one.
const BREAK_TIMEOUT_MS: u64 = 5_000;

/// FILE_DELETE_ON_CLOSE.
const DELETE_ON_CLOSE: CreateOptions = CreateOptions(0x1000);

/// A cluster, and an SMB server beside each of its sidecars.
struct Site {
    // First, so that no server outlives its sidecar.
    servers: [SmbNode; 3],
    cluster: Cluster,
}

impl Site {
    /// Two servers use TCP and one a unix socket: all that is claimed here is so through either.
    async fn start(options: ClusterOptions) -> Self {
        let limits = vec![("break_timeout_ms", BREAK_TIMEOUT_MS)];
        let cluster = Cluster::start(ClusterOptions { limits, ..options }).await.unwrap();
        let servers = [
            attach(&cluster.sidecar(0)).await,
            attach(&cluster.sidecar(1)).await,
            attach(&cluster.sidecar_socket(2)).await,
        ];
        Self { servers, cluster }
    }

    /// One whose servers are not fenced while a sidecar starts again, or thousands of requests lose their leader, on a
    /// machine that is busy with other tests.
    async fn with_long_leases() -> Self {
        let mut options = ClusterOptions::without_samba(PROGRAM).patient();
        for (name, milliseconds) in &mut options.timing {
            match *name {
                "self_fence_after_ms" => *milliseconds = 20_000,
                "node_down_after_ms" => *milliseconds = 22_000,
                _ => {}
            }
        }
        Self::start(options).await
    }

    /// One that may be hurt.
    async fn of_its_own() -> Self {
        Self::start(ClusterOptions::without_samba(PROGRAM).patient()).await
    }
}

async fn attach(sidecar: &str) -> SmbNode {
    within("a server is attached", SmbNode::attach(sidecar, Instance(rand::random()))).await.unwrap()
}

/// Runs a test on the cluster that all quiet ones share. It lives as long as one of them does.
fn on_quiet_site(test: impl AsyncFnOnce(&Site)) {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
    static SITE: tokio::sync::Mutex<Weak<Site>> = tokio::sync::Mutex::const_new(Weak::new());

    RUNTIME.block_on(async {
        let site = {
            let mut shared = SITE.lock().await;
            match shared.upgrade() {
                Some(site) => site,
                None => {
                    let site = Arc::new(Site::of_its_own().await);
                    *shared = Arc::downgrade(&site);
                    site
                }
            }
        };
        test(&site).await;
    });
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// A CREATE that must be answered without waiting for anybody.
async fn open(server: &SmbNode, create: &Create) -> Result<Granted, SmbNodeError> {
    let waits = || panic!("this CREATE has to wait: {create:?}");
    within("a CREATE is answered", server.create(create.clone(), waits)).await
}

async fn opened(server: &SmbNode, create: &Create) -> DurableFileId {
    open(server, create).await.unwrap().opened.durable_file_id
}

/// A CREATE that goes on by itself; its answer is told when it is there.
fn opening(server: &SmbNode, create: &Create) -> JoinHandle<Result<Granted, SmbNodeError>> {
    let (server, create) = (server.clone(), create.clone());
    tokio::spawn(async move { server.create(create, || {}).await })
}

async fn answer(opening: JoinHandle<Result<Granted, SmbNodeError>>) -> Result<Granted, SmbNodeError> {
    within("a CREATE that has waited is answered", opening).await.unwrap()
}

#[track_caller]
fn assert_refused<T>(answer: Result<T, SmbNodeError>, expected: NtStatus) {
    match answer {
        Err(SmbNodeError::Rejected { ntstatus, .. }) if ntstatus == expected.0 => {}
        Err(error) => panic!("{error}, not {expected:?}"),
        Ok(_) => panic!("it succeeds, and should get {expected:?}"),
    }
}

/// Waits for an event that is wanted.
async fn heard<T>(notices: &mut Notices, wanted: impl Fn(&EventKind) -> Option<T>) -> T {
    within("an event", async {
        loop {
            if let Notice::Event(_, kind) = notices.next().await.unwrap()
                && let Some(found) = wanted(&kind)
            {
                return found;
            }
        }
    })
    .await
}

/// Listens from now on.
async fn listen(server: &SmbNode) -> Notices {
    let mut notices = server.watch(None).await.unwrap();
    within("the present state", async { while !matches!(notices.next().await.unwrap(), Notice::Synced) {} })
        .await;
    notices
}

/// The state that this lease is to go down to.
fn break_of(lease: LeaseId) -> impl Fn(&EventKind) -> Option<LeaseState> {
    move |kind| match kind {
        EventKind::LeaseBreak { lease: broken, to, .. } if *broken == lease => Some(*to),
        _ => None,
    }
}

fn lease_of(create: &Create) -> LeaseId {
    let key = create.requested.lease().expect("it asks for a lease").key;
    LeaseId { client_guid: create.client.client_guid, key }
}

/// Waits until the cluster has found a server dead, as another node hears.
async fn death_of(dead: Owner, operator: &mut Notices) {
    let is_dead =
        |kind: &EventKind| matches!(kind, EventKind::NodeDown { owner, .. } if *owner == dead).then_some(());
    heard(operator, is_dead).await;
}

/// All opens, as the leader knows them: it has applied whatever was answered. Who is asked for it may not have heard yet that
/// the last one is dead.
async fn opens(cluster: &Cluster, ask: usize) -> Vec<Open> {
    let found = async {
        loop {
            if let Some(leader) = cluster.status(ask).await.unwrap().leader
                && let Ok(opens) = cluster.opens(usize::try_from(leader).unwrap() - 1).await
            {
                return opens;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the opens as the leader knows them", found).await
}

async fn opens_of(cluster: &Cluster, file: FileKey) -> Vec<Open> {
    opens(cluster, 0).await.into_iter().filter(|open| open.description.file == file).collect()
}

fn exclusive(offset: u64, length: u64) -> LockElement {
    LockElement { offset, length, kind: LockKind::Exclusive }
}

fn lock(open: DurableFileId, element: LockElement, sequence: LockSequence) -> Lock {
    Lock { open, elements: vec![element], sequence, dialect: Dialect::Smb311, multichannel: false }
}

// ------------------------------------------------------------------------------------------- share modes and breaks

#[test]
fn a_share_mode_refuses_an_open_on_another_node_and_no_longer_than_it_lasts() {
    on_quiet_site(async |site| {
        let [alpha, beta, gamma] = &site.servers;
        let mine = ClientMachine::new().create("share-mode");
        let held = opened(alpha, &Create { share_access: SHARE_NONE, ..mine }).await;

        let theirs = ClientMachine::new().create("share-mode");
        assert_refused(open(beta, &theirs).await, NtStatus::SHARING_VIOLATION);
        assert_refused(open(gamma, &theirs).await, NtStatus::SHARING_VIOLATION);

        alpha.close(held).await.unwrap();
        open(beta, &theirs).await.unwrap();
    });
}

#[test]
fn opens_that_get_along_succeed_on_all_nodes() {
    on_quiet_site(async |site| {
        for server in &site.servers {
            open(server, &ClientMachine::new().create("get-along")).await.unwrap();
        }
    });
}

#[test]
fn a_break_goes_to_the_node_of_the_holder_and_its_acknowledgement_lets_the_other_node_go_on() {
    on_quiet_site(async |site| {
        let [alpha, beta, _] = &site.servers;
        let mut alphas_notices = listen(alpha).await;
        let mine = ClientMachine::new().durable_create("break", RWH);
        opened(alpha, &mine).await;

        let theirs = ClientMachine::new().durable_create("break", RWH);
        let waiting = opening(beta, &theirs);
        let to = heard(&mut alphas_notices, break_of(lease_of(&mine))).await;
        assert_eq!(to, RH);
        assert!(!waiting.is_finished(), "it did not wait for the acknowledgement");
        alpha.ack_lease_break(lease_of(&mine), to).await.unwrap();

        let granted = answer(waiting).await.unwrap().opened;
        assert_eq!(granted.oplock.caching(), RH, "both may cache what they read, and their handles");
    });
}

#[test]
fn a_break_of_an_oplock_goes_the_same_way() {
    on_quiet_site(async |site| {
        let [alpha, _, gamma] = &site.servers;
        let mut gammas_notices = listen(gamma).await;
        let mine = Create { requested: Oplock::Batch, ..ClientMachine::new().create("oplock") };
        let held = opened(gamma, &mine).await;

        let waiting = opening(alpha, &ClientMachine::new().create("oplock"));
        let level = heard(&mut gammas_notices, |kind| match kind {
            EventKind::OplockBreak { open, to, .. } if *open == held => Some(*to),
            _ => None,
        })
        .await;
        gamma.ack_oplock_break(held, level).await.unwrap();
        answer(waiting).await.unwrap();
    });
}

#[test]
fn a_write_waits_until_those_who_cache_on_other_nodes_have_given_up() {
    on_quiet_site(async |site| {
        let [alpha, beta, _] = &site.servers;
        let mut alphas_notices = listen(alpha).await;
        let mine = ClientMachine::new().durable_create("write", RH);
        opened(alpha, &mine).await;
        let theirs = opened(beta, &ClientMachine::new().create("write")).await;

        within("the write may be done", beta.operate(theirs, Operation::Write, || {})).await.unwrap();
        assert_eq!(heard(&mut alphas_notices, break_of(lease_of(&mine))).await, LeaseState(0));
    });
}

#[test]
fn an_open_goes_on_when_the_acknowledgement_it_waits_for_never_comes() {
    on_quiet_site(async |site| {
        let [alpha, beta, _] = &site.servers;
        let mine = ClientMachine::new().durable_create("no-ack", RWH);
        opened(alpha, &mine).await;

        answer(opening(beta, &ClientMachine::new().create("no-ack"))).await.unwrap();
        let late = alpha.ack_lease_break(lease_of(&mine), RH).await;
        assert_refused(late, NtStatus::UNSUCCESSFUL);
        let held = opens_of(&site.cluster, mine.file).await;
        let mine = held.iter().find(|open| open.description.lease_id() == Some(lease_of(&mine))).unwrap();
        assert_eq!(mine.description.oplock.caching(), LeaseState(0), "who does not answer caches nothing");
    });
}

#[test]
fn an_open_that_nobody_waits_for_any_more_is_given_up() {
    on_quiet_site(async |site| {
        let [alpha, beta, _] = &site.servers;
        let mut alphas_notices = listen(alpha).await;
        let mine = ClientMachine::new().durable_create("given-up", RWH);
        opened(alpha, &mine).await;

        let mut operator = Notices::of_all(&site.cluster.sidecar(2), None).await.unwrap();
        let waiting = opening(beta, &ClientMachine::new().create("given-up"));
        let to = heard(&mut alphas_notices, break_of(lease_of(&mine))).await;
        waiting.abort();
        heard(&mut operator, |kind| {
            let EventKind::RequestFinished { outcome, .. } = kind else { return None };
            (*outcome == Outcome::Rejected(Rejection::Cancelled)).then_some(())
        })
        .await;
        alpha.ack_lease_break(lease_of(&mine), to).await.unwrap();
        assert_eq!(opens_of(&site.cluster, mine.file).await.len(), 1);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_goes_on_when_the_node_that_it_waits_for_is_killed_in_the_middle_of_a_break() {
    let Site { servers: [alpha, beta, gamma], mut cluster } = Site::of_its_own().await;
    let mut alphas_notices = listen(&alpha).await;
    let machine = ClientMachine::new();
    let mine = machine.durable_create("break", RWH);
    let held = opened(&alpha, &mine).await;
    let theirs = ClientMachine::new().durable_create("break", RWH);
    let waiting = opening(&beta, &theirs);
    heard(&mut alphas_notices, break_of(lease_of(&mine))).await;
    assert!(!waiting.is_finished(), "it did not wait for the acknowledgement");

    kill(&mut cluster, 0, alpha);

    let granted = answer(waiting).await.unwrap().opened;
    assert!(granted.durable.is_some());
    // Nobody can acknowledge the break any more, so the open went with its node.
    let machine = machine.in_new_session();
    let reclaimed = open(&gamma, &machine.reconnect(&mine, held)).await;
    assert_refused(reclaimed, NtStatus::OBJECT_NAME_NOT_FOUND);
}

/// Kills a node, its sidecar with SIGKILL and its server without a word.
fn kill(cluster: &mut Cluster, node: usize, server: SmbNode) {
    // First the sidecar: it would report the end of its server.
    cluster.kill(node).unwrap();
    drop(server);
}

// ----------------------------------------------------------------------------------------------- disconnected holders

#[test]
fn whoever_wants_a_file_takes_it_at_once_from_a_client_that_is_away_and_cached_writes() {
    on_quiet_site(async |site| {
        let [alpha, beta, gamma] = &site.servers;
        let machine = ClientMachine::new();
        let mine = machine.durable_create("purged", RWH);
        let held = opened(alpha, &mine).await;
        lose_connection(alpha, &machine, held).await;

        let granted = open(beta, &ClientMachine::new().durable_create("purged", RWH)).await.unwrap().opened;
        assert_eq!(granted.oplock.caching(), RWH);

        let machine = machine.in_new_session();
        for server in [alpha, gamma, alpha] {
            let reclaimed = open(server, &machine.reconnect(&mine, held)).await;
            assert_refused(reclaimed, NtStatus::OBJECT_NAME_NOT_FOUND);
        }
    });
}

#[test]
fn who_looks_at_attributes_alone_leaves_the_open_of_a_client_that_is_away() {
    on_quiet_site(async |site| {
        let [alpha, beta, gamma] = &site.servers;
        let machine = ClientMachine::new();
        let mine = machine.durable_create("stat", RWH);
        let before = open(alpha, &mine).await.unwrap().opened;
        lose_connection(alpha, &machine, before.durable_file_id).await;

        let stat = ClientMachine::new().create("stat");
        open(beta, &Create { granted_access: READ_ATTRIBUTES, ..stat }).await.unwrap();

        let machine = machine.in_new_session();
        let after = open(gamma, &machine.reconnect(&mine, before.durable_file_id)).await.unwrap().opened;
        assert_eq!((after.how, after.oplock), (OpenedHow::Reconnected, before.oplock));
    });
}

/// The last connection of the client is lost, and its open waits for it.
async fn lose_connection(server: &SmbNode, machine: &ClientMachine, open: DurableFileId) {
    let ended = server.end_session(machine.session()).await.unwrap();
    assert_eq!(ended, Outcome::SessionEnded { disconnected: vec![open], closed: Vec::new() });
}

// ------------------------------------------------------------------------------------------------ replays and takeovers

#[test]
fn a_create_whose_answer_was_lost_is_replayed_on_the_same_node_and_makes_no_second_open() {
    on_quiet_site(async |site| {
        let [alpha, ..] = &site.servers;
        let machine = ClientMachine::new();
        let create = machine.durable_create("replay-here", RWH);
        let first = open(alpha, &create).await.unwrap().opened;

        // By another channel of the same session; then after the session was lost as well.
        let second = open(alpha, &machine.replay(&create)).await.unwrap().opened;
        assert_eq!((second.how, second.durable_file_id), (OpenedHow::Replayed, first.durable_file_id));
        lose_connection(alpha, &machine, first.durable_file_id).await;
        let third = open(alpha, &machine.in_new_session().replay(&create)).await.unwrap();

        assert_eq!(third.opened.durable_file_id, first.durable_file_id);
        assert_eq!((third.opened.oplock, third.opened.create_action), (first.oplock, first.create_action));
        assert_eq!(third.open.unwrap().path, create.path, "the server may know nothing of it");
        assert_eq!(opens_of(&site.cluster, create.file).await.len(), 1);
    });
}

#[test]
fn a_create_whose_answer_was_lost_is_replayed_through_another_node_and_makes_no_second_open() {
    on_quiet_site(async |site| {
        let [alpha, beta, _] = &site.servers;
        let machine = ClientMachine::new();
        let create = machine.durable_create("replay-elsewhere", RWH);
        let first = open(alpha, &create).await.unwrap().opened;

        // Its connection is gone, and nobody has told node alpha yet.
        let later = machine.in_new_session();
        beta.replace_session(machine.session(), machine.client.user.clone()).await.unwrap();
        let second = open(beta, &later.replay(&create)).await.unwrap().opened;

        assert_eq!(second.durable_file_id, first.durable_file_id);
        assert_eq!((second.oplock, second.durable), (first.oplock, first.durable));
        let opens = opens_of(&site.cluster, create.file).await;
        assert_eq!(opens.len(), 1);
        assert_eq!(opens[0].connected_through(), Some(beta.owner()));
    });
}

#[test]
fn a_session_takes_the_place_of_one_on_another_node() {
    on_quiet_site(async |site| {
        let [alpha, beta, _] = &site.servers;
        let mut alphas_notices = listen(alpha).await;
        let machine = ClientMachine::new();
        let durable = machine.durable_create("previous-session", RWH);
        let before = open(alpha, &durable).await.unwrap().opened;
        let not_durable = opened(alpha, &machine.create("previous-session-plain")).await;

        let later = machine.in_new_session();
        let replaced = beta.replace_session(machine.session(), machine.client.user.clone()).await.unwrap();
        let expected =
            Outcome::SessionEnded { disconnected: vec![before.durable_file_id], closed: vec![not_durable] };
        assert_eq!(replaced, expected);
        let after = open(beta, &later.reconnect(&durable, before.durable_file_id)).await.unwrap().opened;
        assert_eq!((after.how, after.oplock), (OpenedHow::Reconnected, before.oplock));

        // The node that had it is told, and cannot use it any more.
        heard(&mut alphas_notices, |kind| {
            matches!(kind, EventKind::SessionReplaced { session } if *session == machine.session())
                .then_some(())
        })
        .await;
        let stale = lock(before.durable_file_id, exclusive(0, 1), LockSequence::default());
        assert_refused(alpha.lock(stale).await, NtStatus::FILE_CLOSED);
    });
}

#[test]
fn another_instance_of_an_application_takes_its_file_from_another_node() {
    on_quiet_site(async |site| {
        let [alpha, beta, _] = &site.servers;
        let mut alphas_notices = listen(alpha).await;
        let app_instance = Some(AppInstance { id: rand::random(), version: None });
        let wanted = |machine: &ClientMachine| Create {
            share_access: SHARE_NONE,
            app_instance,
            ..machine.durable_create("app-instance", RWH)
        };
        let held = opened(alpha, &wanted(&ClientMachine::new())).await;

        open(beta, &wanted(&ClientMachine::new())).await.unwrap();

        let reason = heard(&mut alphas_notices, |kind| match kind {
            EventKind::OpenClosed { open, reason } if *open == held => Some(*reason),
            _ => None,
        })
        .await;
        assert_eq!(reason, CloseReason::AppInstanceReplaced);
    });
}

// --------------------------------------------------------------------------------------------------- after a node's death

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_back_before_its_node_is_found_dead_is_held_until_it_is() {
    let Site { servers: [alpha, beta, gamma], mut cluster } = Site::of_its_own().await;
    let mut operator = Notices::of_all(&cluster.sidecar(1), None).await.unwrap();
    let (machine, other) = (ClientMachine::new(), ClientMachine::new());
    let (mine, theirs) = (machine.durable_create("held", RWH), other.durable_create("held-replay", RWH));
    let (held, unanswered) = (opened(&alpha, &mine).await, opened(&alpha, &theirs).await);

    let dead = alpha.owner();
    kill(&mut cluster, 0, alpha);
    // The first names no session that it had, the other has not even heard that it has an open.
    let reclaiming = opening(&beta, &machine.in_new_session().reconnect(&mine, held));
    let replaying = opening(&gamma, &other.in_new_session().replay(&theirs));
    death_of(dead, &mut operator).await;

    assert_eq!(answer(reclaiming).await.unwrap().opened.durable_file_id, held);
    assert_eq!(answer(replaying).await.unwrap().opened.durable_file_id, unanswered);
}

/// A node that is paused does not know that it has lost its client, and would go on for it when it wakes up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_takes_nothing_from_a_node_that_is_paused_before_that_is_found_dead() {
    let Site { servers: [alpha, beta, _gamma], mut cluster } = Site::of_its_own().await;
    let mut operator = Notices::of_all(&cluster.sidecar(1), None).await.unwrap();
    let machine = ClientMachine::new();
    let create = machine.durable_create("paused", RWH);
    let held = opened(&alpha, &create).await;

    cluster.pause(0);
    let user = machine.client.user.clone();
    let replacing = tokio::spawn({
        let (beta, previous) = (beta.clone(), machine.session());
        async move { beta.replace_session(previous, user).await }
    });
    let stopped = async {
        alpha.stopped().await;
        time::Instant::now()
    };
    let replaced = async {
        replacing.await.unwrap().unwrap();
        time::Instant::now()
    };
    let (stopped, replaced) = within("both", futures::future::join(stopped, replaced)).await;

    assert!(stopped < replaced, "the paused node may still serve what the client takes elsewhere");
    death_of(alpha.owner(), &mut operator).await;
    open(&beta, &machine.in_new_session().reconnect(&create, held)).await.unwrap();
    cluster.resume(0);
}

/// A client has something on a node, and the node is killed. What it has the second function looks for, with the same
/// client in a new session on another node, after the death was decided.
async fn fail_over<T>(
    machine: ClientMachine,
    before: impl AsyncFnOnce(&SmbNode, &ClientMachine) -> T,
    after: impl AsyncFnOnce(&SmbNode, &ClientMachine, T),
) {
    let Site { servers: [alpha, beta, _gamma], mut cluster } = Site::of_its_own().await;
    let mut operator = Notices::of_all(&cluster.sidecar(1), None).await.unwrap();
    let had = before(&alpha, &machine).await;
    let owner = alpha.owner();
    kill(&mut cluster, 0, alpha);
    death_of(owner, &mut operator).await;
    after(&beta, &machine.in_new_session(), had).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_open_is_reclaimed_on_another_node_with_locks_position_and_epoch() {
    const RANGE: ByteRangeLock = ByteRangeLock { offset: 100, length: 50, exclusive: true };
    fail_over(
        ClientMachine::new(),
        async |alpha, machine| {
            let create = machine.durable_create("reclaimed", RWH);
            let granted = open(alpha, &create).await.unwrap().opened;
            let id = granted.durable_file_id;
            let range = exclusive(RANGE.offset, RANGE.length);
            assert!(!alpha.lock(lock(id, range, LockSequence::default())).await.unwrap());
            let note = Note { open: id, position: Some(4711), image: Some([1, 2, 3].into()), is_used: true };
            alpha.decide(Request::Note(note)).await.unwrap();
            (create, granted)
        },
        async |beta, machine, (create, before)| {
            let id = before.durable_file_id;
            let Granted { opened: after, open: known } =
                open(beta, &machine.reconnect(&create, id)).await.unwrap();
            assert_eq!((after.durable_file_id, after.how), (id, OpenedHow::Reconnected));
            assert_eq!(after.oplock, before.oplock, "the lease with its epoch");
            let known = known.expect("this server has never heard of it");
            assert_eq!((known.byte_range_locks, known.position), (vec![RANGE], 4711));
            assert_eq!(*known.image, [1, 2, 3]);

            // Nobody else gets the range, and who holds it can give it back.
            let other = opening(beta, &ClientMachine::new().create("reclaimed"));
            let mut notices = beta.watch(None).await.unwrap();
            let to = heard(&mut notices, break_of(lease_of(&create))).await;
            beta.ack_lease_break(lease_of(&create), to).await.unwrap();
            let other = answer(other).await.unwrap().opened.durable_file_id;
            let wanted = lock(other, exclusive(120, 1), LockSequence::default());
            assert_refused(beta.lock(wanted.clone()).await, NtStatus::LOCK_NOT_GRANTED);
            let unlock = LockElement { kind: LockKind::Unlock, ..exclusive(RANGE.offset, RANGE.length) };
            beta.lock(lock(id, unlock, LockSequence::default())).await.unwrap();
            beta.lock(wanted).await.unwrap();
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_whose_answer_died_with_its_node_is_recognised_on_another() {
    const SEQUENCE: LockSequence = LockSequence { index: 7, number: 3 };
    const NEXT: LockSequence = LockSequence { index: 7, number: 4 };
    fail_over(
        ClientMachine::new(),
        async |alpha, machine| {
            let create = machine.durable_create("lock-replay", RWH);
            let id = opened(alpha, &create).await;
            assert!(!alpha.lock(lock(id, exclusive(0, 10), SEQUENCE)).await.unwrap());
            (create, id)
        },
        async |beta, machine, (create, id)| {
            open(beta, &machine.reconnect(&create, id)).await.unwrap();
            assert!(beta.lock(lock(id, exclusive(0, 10), SEQUENCE)).await.unwrap(), "it was not recognised");
            // Another request for the same range meets the client's own lock.
            let again = beta.lock(lock(id, exclusive(0, 10), NEXT)).await;
            assert_refused(again, NtStatus::LOCK_NOT_GRANTED);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resilient_open_survives_its_node_without_oplock_or_lease() {
    fail_over(
        ClientMachine::new(),
        async |alpha, machine| {
            let create = machine.create("resilient");
            let id = opened(alpha, &create).await;
            let not_kept = opened(alpha, &machine.create("resilient-not")).await;
            let (timeout, dialect) = (Millis(60_000), Dialect::Smb311);
            let resilient =
                alpha.decide(Request::RequestResiliency { open: id, timeout, dialect }).await.unwrap();
            assert_eq!(resilient, Outcome::Resilient { timeout });
            (create, id, not_kept)
        },
        async |beta, machine, (create, id, not_kept)| {
            // By DHnC: a resilient open has no CreateGuid.
            let reconnect = |open| Create {
                client: machine.client.clone(),
                contexts: CreateContexts { durable_reconnect: Some(open), ..CreateContexts::default() },
                ..create.clone()
            };
            let after = open(beta, &reconnect(id)).await.unwrap().opened;
            assert_eq!((after.durable_file_id, after.how), (id, OpenedHow::Reconnected));
            assert_refused(open(beta, &reconnect(not_kept)).await, NtStatus::OBJECT_NAME_NOT_FOUND);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_whose_answer_died_with_its_node_is_replayed_on_another() {
    fail_over(
        ClientMachine::new(),
        async |alpha, machine| {
            let create = machine.durable_create("replay-after-death", RWH);
            (opened(alpha, &create).await, create)
        },
        async |beta, machine, (id, create)| {
            let replayed = open(beta, &machine.replay(&create)).await.unwrap().opened;
            assert_eq!(replayed.durable_file_id, id);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_to_be_deleted_is_deleted_by_another_node_when_the_one_that_should_dies() {
    let Site { servers: [alpha, beta, gamma], mut cluster } = Site::of_its_own().await;
    let [mut alphas_notices, mut betas_notices, mut gammas_notices] =
        [listen(&alpha).await, listen(&beta).await, listen(&gamma).await];
    let create = Create { create_options: DELETE_ON_CLOSE, ..ClientMachine::new().create("delete") };
    let held = opened(&alpha, &create).await;
    let to_delete = |kind: &EventKind| match kind {
        EventKind::DeleteFile { file, path, .. } if *file == create.file => Some(path.clone()),
        _ => None,
    };
    alpha.close(held).await.unwrap();
    assert_eq!(heard(&mut alphas_notices, to_delete).await, create.path);

    kill(&mut cluster, 0, alpha);

    let survivors = [(&beta, &mut betas_notices), (&gamma, &mut gammas_notices)];
    let told = survivors.map(|(server, notices)| {
        Box::pin(async move {
            heard(notices, to_delete).await;
            server
        })
    });
    let (deleter, ..) = select_all(told).await;
    let next = ClientMachine::new().create("delete");
    assert_refused(open(&beta, &next).await, NtStatus::DELETE_PENDING);
    deleter.decide(Request::FileDeleted(create.file)).await.unwrap();
    open(&beta, &next).await.unwrap();
}

/// The leader dies while requests are on their way through all nodes. Those of the survivors are all answered; whatever
/// was answered to anybody is there once, and nothing is there twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creates_that_lose_their_leader_on_the_way_are_made_exactly_once() {
    const EACH: usize = 300;
    let Site { servers, mut cluster } = Site::with_long_leases().await;
    let leader = cluster.leader().await.unwrap();
    let machine = ClientMachine::new();
    let mut survivors = Vec::new();
    let mut victims = Vec::new();
    for (node, server) in servers.iter().enumerate() {
        let creates = (0..EACH).map(|number| machine.durable_create(&format!("{node}-{number}"), RWH));
        let creates: Vec<_> = creates.map(|create| (opening(server, &create), create)).collect();
        if node == leader { victims = creates } else { survivors.extend(creates) }
    }
    let (first, _) = &mut survivors[0];
    let first = within("the first answer", first).await.unwrap().unwrap();

    cluster.kill(leader).unwrap();

    let mut answered = BTreeMap::from([(survivors[0].1.path.clone(), first.opened.durable_file_id)]);
    for (opening, create) in survivors.into_iter().skip(1) {
        answered.insert(create.path, answer(opening).await.unwrap().opened.durable_file_id);
    }
    for (opening, create) in victims {
        // Of these some have no answer.
        if let Ok(granted) = answer(opening).await {
            answered.insert(create.path, granted.opened.durable_file_id);
        }
    }
    cluster.leader().await.unwrap();
    let mut paths = BTreeSet::new();
    for open in opens(&cluster, (leader + 1) % cluster.len()).await {
        let open = open.description;
        assert!(paths.insert(open.path.clone()), "{} is open twice", open.path);
        if let Some(answered) = answered.remove(&open.path) {
            assert_eq!(answered, open.durable_file_id, "{}", open.path);
        }
    }
    assert!(answered.is_empty(), "answered and not there: {answered:?}");
}

// ------------------------------------------------------------------------------------------------- streams and restarts

/// Breaks some leases that need no acknowledgement, so that their holder is told. Returns the leases.
async fn break_leases(holder: &SmbNode, path: &str, count: usize) -> Vec<LeaseId> {
    let mut leases = Vec::new();
    for number in 0..count {
        let create = ClientMachine::new().durable_create(&format!("{path}-{number}"), R);
        opened(holder, &create).await;
        let other = opened(holder, &ClientMachine::new().create(&create.path)).await;
        holder.operate(other, Operation::Write, || {}).await.unwrap();
        leases.push(lease_of(&create));
    }
    leases
}

/// The next breaks of these leases, as many as there are leases, with their numbers.
async fn next_breaks(notices: &mut Notices, of: &[LeaseId]) -> Vec<(u64, LeaseId)> {
    let mut found = Vec::new();
    within("all breaks", async {
        while found.len() < of.len() {
            if let Notice::Event(Some(sequence), EventKind::LeaseBreak { lease, .. }) =
                notices.next().await.unwrap()
                && of.contains(&lease)
            {
                found.push((sequence, lease));
            }
        }
    })
    .await;
    found
}

#[test]
fn who_lost_the_event_stream_goes_on_behind_the_last_event_and_hears_each_once() {
    on_quiet_site(async |site| {
        let [alpha, ..] = &site.servers;
        let mut notices = listen(alpha).await;
        let first = break_leases(alpha, "stream-before", 3).await;
        next_breaks(&mut notices, &first).await;
        let after = notices.after();
        drop(notices);

        let missed = break_leases(alpha, "stream-meanwhile", 5).await;

        let mut notices = alpha.watch(after).await.unwrap();
        let later = break_leases(alpha, "stream-after", 2).await;
        let all = [first, missed.clone(), later.clone()].concat();
        let found = next_breaks(&mut notices, &[missed.clone(), later.clone()].concat()).await;
        let order: Vec<_> = found.iter().map(|(_, lease)| *lease).collect();
        assert_eq!(order, [missed, later].concat(), "lost, twice, or out of order");
        assert!(found.is_sorted(), "{found:?}");

        // The same behind the same number at another node.
        let mut elsewhere = Notices::of_all(&site.cluster.sidecar(1), after).await.unwrap();
        let same = next_breaks(&mut elsewhere, &all[3..]).await;
        assert_eq!(same, found, "another node counts otherwise");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_creates_are_on_their_way_at_once() {
    const COUNT: usize = 2_000;
    let Site { servers: [_alpha, beta, _gamma], cluster: _cluster } = Site::with_long_leases().await;
    let machine = ClientMachine::new();
    let creates = (0..COUNT).map(|number| machine.durable_create(&format!("flood-{number}"), RWH));
    let beta = &beta;
    let answers = creates.map(|create| async move { open(beta, &create).await.unwrap() });
    let answers = within("all are answered", join_all(answers)).await;
    let ids: BTreeSet<_> = answers.iter().map(|granted| granted.opened.durable_file_id).collect();
    assert_eq!(ids.len(), COUNT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_sidecar_was_restarted_is_told_of_its_opens_and_breaks() {
    let Site { servers: [alpha, beta, _gamma], mut cluster } = Site::with_long_leases().await;
    let mut notices = listen(&alpha).await;
    let machine = ClientMachine::new();
    let (quiet, wanted) = (machine.durable_create("quiet", RWH), machine.durable_create("wanted", RWH));
    let quiet = opened(&alpha, &quiet).await;
    let held = opened(&alpha, &wanted).await;

    cluster.kill_sidecar(0).unwrap();
    let waiting = opening(&beta, &ClientMachine::new().create("wanted"));
    cluster.start_sidecar(0).unwrap();

    // Whether the sidecar has the event still or tells the present state, the server hears of the break.
    let to = heard(&mut notices, break_of(lease_of(&wanted))).await;
    alpha.ack_lease_break(lease_of(&wanted), to).await.unwrap();
    answer(waiting).await.unwrap();

    // And of what there is besides, if it asks.
    let mut notices = alpha.watch(None).await.unwrap();
    let mut opens = BTreeSet::new();
    within("the present state", async {
        assert!(matches!(notices.next().await.unwrap(), Notice::Resync));
        loop {
            match notices.next().await.unwrap() {
                Notice::OpenNow(open) => assert!(opens.insert(open.description.durable_file_id)),
                Notice::Synced => return,
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    assert_eq!(opens, BTreeSet::from([quiet, held]));
    assert_eq!(alpha.owner().incarnation.0, 1, "it was taken for another one");
    alpha.close(quiet).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_sidecar_stays_away_stops_and_its_opens_go_to_another_node() {
    let Site { servers: [alpha, beta, _gamma], mut cluster } = Site::of_its_own().await;
    let mut operator = Notices::of_all(&cluster.sidecar(1), None).await.unwrap();
    let machine = ClientMachine::new();
    let create = machine.durable_create("abandoned", RWH);
    let held = opened(&alpha, &create).await;

    cluster.kill_sidecar(0).unwrap();
    let dead = alpha.owner();
    let stopped = async {
        alpha.stopped().await;
        time::Instant::now()
    };
    let found_dead = async {
        death_of(dead, &mut operator).await;
        time::Instant::now()
    };
    let (stopped, found_dead) = within("both", futures::future::join(stopped, found_dead)).await;

    assert!(stopped < found_dead, "it could still serve what others may have");
    assert!(matches!(alpha.close(held).await, Err(SmbNodeError::Stopped)));
    open(&beta, &machine.in_new_session().reconnect(&create, held)).await.unwrap();
}
