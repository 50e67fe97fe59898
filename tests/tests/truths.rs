//! What happens to one process, one service, one sidecar: dying alone, being restarted, being one of hundreds.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use harness::{
    cluster::{Cluster, ClusterOptions, node_id},
    process::{is_zombie, open_files},
    samba::{SambaSite, Smbd, SmbdOptions, samba_or_skip},
    smb_client::{Client, CreateRequest, Credentials, Lease, LeaseState, LockElement, NtStatus, Session},
    workload::{Promise, Wish, reclaim, until_durable},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use statedb::Open;

/// The program that can be `holdfast`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

/// Means "it does not happen": far longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The process of an `smbd` that serves a session.
fn process_of(smbd: &Smbd, session: &Session) -> Pid {
    Pid::from_raw(smbd.child_of(session.client_address()).unwrap())
}

/// Whether a process runs a certain program.
fn runs(process: i32, program: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name.trim() == program)
}

/// The client whose process dies is back on the same node before anybody has noticed, and has everything again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_of_a_process_that_dies_alone_has_its_opens_back_at_once() {
    let Some(tools) = samba_or_skip() else { return };
    let cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
    let (owner, bystander) = (Client::new(cluster.credentials()), Client::new(cluster.credentials()));
    let (other_session, other_share) = cluster.connect(&bystander, 0).await.unwrap();
    let others = other_share.create(CreateRequest::durable_v2_with_lease("others")).await.unwrap();

    let (mut session, mut share) = cluster.connect(&owner, 0).await.unwrap();
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
        leased = reclaim(&share, &leased).await.unwrap();
        locked = reclaim(&share, &locked).await.unwrap();
    }
    locked.lock(&[LockElement::unlock(10, 5)]).await.unwrap();
    leased.write(0, b"still mine").await.unwrap();

    // Nobody else has noticed.
    others.write(0, b"mine too").await.unwrap();
    other_session.echo().await.unwrap();
    let status = cluster.status(0).await.unwrap();
    assert!(status.nodes.iter().all(|node| node.up && node.incarnation == 1), "{:?}", status.nodes);
}

/// Not only durable opens have locks. Those of a process that dies alone do not cost the next one its oplock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_locks_of_a_process_that_dies_alone_go_with_it() {
    let Some(tools) = samba_or_skip() else { return };
    let cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
    let [owner, other] = [(); 2].map(|()| Client::new(cluster.credentials()));
    let (_others, others_share) = cluster.connect(&other, 0).await.unwrap();
    // It ends a little differently each time: how much of it is left when its connections close is up to the kernel.
    for round in 0..5 {
        let path = format!("file {round}");
        let (session, share) = cluster.connect(&owner, 0).await.unwrap();
        let locked = share.create(CreateRequest::new(&*path)).await.unwrap();
        locked.lock(&[LockElement::exclusive(10, 5)]).await.unwrap();

        kill(process_of(cluster.smbd(0), &session), Signal::SIGKILL).unwrap();

        let open = until_durable(&others_share, &path).await.unwrap();
        open.lock(&[LockElement::exclusive(10, 5)]).await.unwrap();
    }
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
    let mut cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
    let client = Client::new(cluster.credentials());
    let (session, share) = cluster.connect(&client, 0).await.unwrap();
    let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    open.lock(&[LockElement::exclusive(10, 5)]).await.unwrap();

    cluster.restart_smbd(0).await.unwrap();
    session.ended().await;

    let (session, share) = cluster.connect(&client, 0).await.unwrap();
    let open = reclaim(&share, &open).await.unwrap();
    let status = cluster.status(0).await.unwrap();
    let restarted = status.nodes.iter().find(|node| node.node_id == node_id(0)).unwrap();
    assert!(restarted.up && restarted.incarnation == 2, "{status:?}");

    cluster.restart_smbd(0).await.unwrap();
    session.ended().await;

    let (_session, share) = cluster.connect(&client, 1).await.unwrap();
    let open = reclaim(&share, &open).await.unwrap();
    open.lock(&[LockElement::unlock(10, 5)]).await.unwrap();
}

/// The main process dies alone, and one of its children hangs, here in a script of the administrator's. Nobody could connect
/// to this node any more, so it must not go on keeping the share from the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_hangs_does_not_keep_up_a_service_whose_main_process_has_died() {
    let Some(tools) = samba_or_skip() else { return };
    let mut options = ClusterOptions::with_samba(PROGRAM, tools).patient();
    let script = tempfile::NamedTempFile::new().unwrap();
    let preexec = format!("/bin/sh {}", script.path().display());
    options.smbd.share_options = vec![("root preexec".to_owned(), preexec)];
    let mut cluster = Cluster::start(options).await.unwrap();
    let client = Client::new(cluster.credentials());
    let (session, share) = cluster.connect(&client, 0).await.unwrap();
    let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    let stuck = Client::new(cluster.credentials()).connect(cluster.smb_address(0)).await.unwrap();
    let hanging = process_of(cluster.smbd(0), &stuck);
    std::fs::write(script.path(), "sleep 300").unwrap();
    let share_0 = cluster.share(0);
    let entering = tokio::spawn(async move { stuck.tree_connect(&share_0).await.map(drop) });
    let deadline = Instant::now() + PATIENCE;
    while !cluster.smbd(0).processes().iter().any(|&process| runs(process, "sleep")) {
        assert!(Instant::now() < deadline, "the script does not run");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    kill(Pid::from_raw(cluster.smbd(0).pid().unwrap()), Signal::SIGKILL).unwrap();
    session.ended().await;
    // The control: the other one has not noticed anything.
    kill(hanging, None).unwrap();
    assert!(!entering.is_finished());
    std::fs::write(script.path(), "").unwrap();

    let (_session, share) = loop {
        match cluster.connect(&client, 1).await {
            Ok(entered) => break entered,
            Err(refusal) => assert!(Instant::now() < deadline + PATIENCE, "not let in: {refusal}"),
        }
    };
    reclaim(&share, &open).await.unwrap();
    assert!(entering.await.unwrap().is_err());
    cluster.start_smbd(0).await.unwrap();
}

/// Nothing is served after the end of the lease: whatever a client asks later than that is not answered, although it asks
/// all the time. That is what lets another node give its open away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_served_longer_after_the_end_of_the_sidecar_than_its_lease() {
    /// As in [`ClusterOptions::patient`]. The lease cannot end later than this after its sidecar.
    const SELF_FENCE_AFTER: Duration = Duration::from_millis(2_500);
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
    let client = Client::new(cluster.credentials());
    let (session, share) = cluster.connect(&client, 0).await.unwrap();
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
    let (_session, share) = cluster.connect(&client, 1).await.unwrap();
    reclaim(&share, &open).await.unwrap();
}

/// Logs are rotated: the file gets another name, and SIGHUP makes `smbd` begin a new one and read its configuration
/// again. No open suffers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_logs_of_smbd_may_be_rotated_and_its_configuration_be_read_again() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
    let client = Client::new(cluster.credentials());
    let (session, share) = cluster.connect(&client, 0).await.unwrap();
    let before = share.create(CreateRequest::durable_v2_with_lease("before")).await.unwrap();
    let log = cluster.smbd(0).config_file().with_file_name("log");

    for process in [Pid::from_raw(cluster.smbd(0).pid().unwrap()), process_of(cluster.smbd(0), &session)] {
        std::fs::rename(&log, log.with_extension("old")).unwrap();
        kill(process, Signal::SIGHUP).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !log.exists() {
            assert!(Instant::now() < deadline, "process {process} has not begun a new log");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    before.write(0, b"still mine").await.unwrap();
    let after = share.create(CreateRequest::durable_v2_with_lease("after")).await.unwrap();
    assert!(after.is_durable());
    cluster.kill(0).unwrap();
    let (_session, share) = cluster.connect(&client, 1).await.unwrap();
    for open in [&before, &after] {
        reclaim(&share, open).await.unwrap();
    }
}

/// One process serves a protected share and one that Holdfast is to leave alone. What is done in that is nobody's business
/// but Samba's: nobody waits for the sidecar, nothing is kept in the cluster, and any node may serve it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unprotected_share_is_left_alone_beside_a_protected_one() {
    const SCRATCH: &str = "scratch";
    /// Far longer than a CREATE takes whose sidecar is there.
    const NOT_ANSWERED_WITHIN: Duration = Duration::from_millis(500);
    let Some(tools) = samba_or_skip() else { return };
    let mut options = ClusterOptions::with_samba(PROGRAM, tools);
    options.unprotected_shares = vec![SCRATCH.to_owned()];
    // The sidecar is away for some seconds below, and nobody is to be fenced for it.
    options.timing = vec![("self_fence_after_ms", 20_000), ("node_down_after_ms", 22_000)];
    let mut cluster = Cluster::start(options).await.unwrap();
    let client = Client::new(cluster.credentials());
    let (session, share) = cluster.connect(&client, 0).await.unwrap();
    let scratch = session.tree_connect(&cluster.smbd(0).share_called(SCRATCH)).await.unwrap();

    let kept = share.create(CreateRequest::durable_v2_with_lease("kept")).await.unwrap();
    let left_alone = scratch.create(CreateRequest::durable_v2_with_lease("left alone")).await.unwrap();
    assert!(left_alone.is_durable(), "Samba itself keeps it");
    let known: Vec<u64> =
        cluster.opens(0).await.unwrap().iter().map(|open| open.description.durable_file_id.0).collect();
    assert_eq!(known, [kept.file_id().persistent]);

    // Whoever asked the sidecar anything now would wait for it.
    cluster.pause_sidecar(0);
    for number in 0..50 {
        let lease = Lease::request(LeaseState::READ_WRITE_HANDLE);
        let request = CreateRequest::new(format!("file {number}")).with_lease(lease);
        let open = scratch.create(request).await.unwrap();
        open.write(0, b"nobody else's business").await.unwrap();
        open.lock(&[LockElement::exclusive(0, 1)]).await.unwrap();
        open.rename(&format!("renamed {number}"), false).await.unwrap();
        open.close().await.unwrap();
    }
    // The control: in the protected share a client waits.
    let protected = share.clone();
    let mut waiting =
        tokio::spawn(async move { protected.create(CreateRequest::durable_v2_with_lease("kept too")).await });
    let answer = tokio::time::timeout(NOT_ANSWERED_WITHIN, &mut waiting).await;
    assert!(answer.is_err(), "granted by nobody: {answer:?}");
    cluster.resume_sidecar(0);
    let kept_too = waiting.await.unwrap().unwrap();

    let elsewhere = Client::new(cluster.credentials()).connect(cluster.smb_address(1)).await.unwrap();
    let scratch = elsewhere.tree_connect(&cluster.smbd(1).share_called(SCRATCH)).await;
    scratch.expect("no node serves it alone");

    cluster.kill_smbd(0).unwrap();
    let (session, share) = cluster.connect(&client, 1).await.unwrap();
    for open in [&kept, &kept_too] {
        reclaim(&share, open).await.unwrap();
    }
    let scratch = session.tree_connect(&cluster.smbd(1).share_called(SCRATCH)).await.unwrap();
    let refusal = scratch.create(left_alone.reconnect_request()).await.unwrap_err();
    assert_eq!(refusal.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND), "{refusal}");
}

/// A client machine that has a durable open.
struct Holder {
    client: Client,
    session: Session,
    promise: Promise,
}

impl Holder {
    async fn come(cluster: &Cluster, user: Credentials, number: usize) -> Self {
        let client = Client::new(user);
        let (session, share) = cluster.connect(&client, 0).await.unwrap();
        let path = format!("file {number}");
        let write = Some(path.clone().into_bytes());
        let wish = Wish { request: CreateRequest::durable_v2_with_lease(path), lock: true, write };
        let promise = wish.obtain(&share).await.unwrap();
        assert!(promise.locked && promise.written.is_some());
        Self { client, session, promise }
    }

    fn id(&self) -> u64 {
        self.promise.open.file_id().persistent
    }
}

/// What a node takes of its machine.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    /// Its `smbd`'s and its sidecar's, zombies too.
    processes: usize,
    zombies: usize,
    /// File descriptors of the sidecar.
    sidecar_files: usize,
    /// File descriptors of the first `smbd`, which all others inherit.
    smbd_files: usize,
}

impl Footprint {
    fn of(cluster: &Cluster, node: usize) -> Self {
        let (smbd, sidecar) = (cluster.smbd(node), cluster.sidecar_processes(node));
        let processes = [smbd.processes(), sidecar.clone()].concat();
        Self {
            processes: processes.len(),
            zombies: processes.into_iter().filter(|&pid| is_zombie(pid)).count(),
            sidecar_files: open_files(sidecar[0]),
            smbd_files: open_files(smbd.pid().unwrap()),
        }
    }

    /// Waits until a node takes no more than it did before, but for a few files and processes: a log has grown by one
    /// file, `smbd` has started a helper when it first needed one.
    async fn until_as_before(self, cluster: &Cluster, node: usize) {
        const MORE: usize = 10;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Self::of(cluster, node);
            if now.zombies == 0
                && now.processes <= self.processes + MORE
                && now.sidecar_files <= self.sidecar_files + MORE
                && now.smbd_files <= self.smbd_files + MORE
            {
                return;
            }
            assert!(Instant::now() < deadline, "before {self:?}, now {now:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Each client has a process of its own, and that acts as its user. They leave nothing behind but what they were promised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_processes_of_several_users_leave_nothing_behind_but_their_opens() {
    const CLIENTS: usize = 240;
    const RETURNING: usize = 36;
    const AT_A_TIME: usize = 6;
    let Some(tools) = samba_or_skip() else { return };
    let options = ClusterOptions { users: 3, ..ClusterOptions::with_samba(PROGRAM, tools).patient() };
    let mut cluster = Cluster::start(options).await.unwrap();
    let users: Vec<Credentials> = cluster.site().users().collect();
    let alone = Footprint::of(&cluster, 0);

    let come = |number: usize| Holder::come(&cluster, users[number % users.len()].clone(), number);
    let holders: Vec<Holder> = stream::iter(0..CLIENTS).map(come).buffered(AT_A_TIME).collect().await;
    let with_all = Footprint::of(&cluster, 0);
    assert!(with_all.processes >= alone.processes + CLIENTS, "a process each: {with_all:?}");
    let opens = cluster.opens(0).await.unwrap();
    let owners: BTreeSet<_> = opens.iter().map(|open| &open.description.durable_owner).collect();
    assert_eq!((opens.len(), owners.len()), (CLIENTS, users.len()));

    // Half of them close what they have; the others lose their connections.
    let (closing, away) = holders.split_at(CLIENTS / 2);
    stream::iter(closing)
        .for_each_concurrent(AT_A_TIME, async |holder| {
            holder.promise.open.close().await.unwrap();
            holder.session.drop_connection().await;
        })
        .await;
    stream::iter(away).for_each_concurrent(AT_A_TIME, |holder| holder.session.drop_connection()).await;
    alone.until_as_before(&cluster, 0).await;
    let left: BTreeSet<(u64, bool)> = away.iter().map(|holder| (holder.id(), true)).collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let opens = cluster.opens(0).await.unwrap();
        let of = |open: &Open| (open.description.durable_file_id.0, open.deadline().is_some());
        let known: BTreeSet<(u64, bool)> = opens.iter().map(of).collect();
        if known == left {
            break;
        }
        assert!(Instant::now() < deadline, "not those that were left, or not disconnected: {known:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    cluster.kill(0).unwrap();
    let alone = Footprint::of(&cluster, 1);
    let returned: Vec<Session> = stream::iter(&away[..RETURNING])
        .map(async |holder| {
            let (session, share) = cluster.connect(&holder.client, 1).await.unwrap();
            holder.promise.claim(&share).await.unwrap();
            session
        })
        .buffered(AT_A_TIME)
        .collect()
        .await;
    stream::iter(&returned).for_each_concurrent(AT_A_TIME, Session::drop_connection).await;
    alone.until_as_before(&cluster, 1).await;
    assert_eq!(cluster.opens(1).await.unwrap().len(), away.len());
}
