//! What becomes of an open whose client does not come back: somebody else wants the file, or its time is up, or the
//! file was to be deleted with it. After the death of a node it is the same as after the loss of a connection.

use std::time::{Duration, Instant};

use frame::Database;
use harness::{
    cluster::{Cluster, ClusterOptions},
    samba::{SambaTools, samba_or_skip},
    smb_client::{
        AccessMask, Client, CreateOptions, CreateRequest, Durability, Lease, LeaseState, LockElement,
        NtStatus, Opened, OplockLevel, ShareAccess, Tree,
    },
    workload::reclaim,
};
use samba::tdb::{ChangeCount, Tdb, TdbFile};
use statedb::{OpenState, Timestamp};

/// The program that can be `holdfast`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

/// Nobody waits for the time of an open to pass who has a right to its file: far less than the 35 s of a break that
/// nobody acknowledges, and the 300 s of the opens here.
const AT_ONCE: Duration = Duration::from_secs(10);

/// How exactly an open has to end at its time.
const TOLERANCE: Duration = Duration::from_secs(1);

/// How long a node may take to be found dead.
const FOUND_DEAD_WITHIN: Duration = Duration::from_secs(20);

async fn cluster(tools: SambaTools) -> Cluster {
    Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap()
}

fn with_timeout(request: CreateRequest, timeout: Duration) -> CreateRequest {
    let Durability::RequestV2 { create_guid, persistent, .. } = request.durability else {
        panic!("only a durable v2 open has a timeout that its client chooses");
    };
    CreateRequest { durability: Durability::RequestV2 { create_guid, timeout, persistent }, ..request }
}

async fn open_for(share: &Tree, path: &str, timeout: Duration) -> Opened {
    let request = with_timeout(CreateRequest::durable_v2_with_lease(path), timeout);
    let open = share.create(request).await.unwrap();
    assert_eq!(open.response().durable_v2.map(|durable| durable.timeout), Some(timeout));
    open
}

async fn assert_gone(share: &Tree, open: &Opened, why: &str) {
    match share.create(open.reconnect_request()).await {
        Ok(_) => panic!("{why}: reclaimed"),
        Err(refusal) => {
            assert_eq!(refusal.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND), "{why}: {refusal}");
        }
    }
}

/// Waits until the cluster knows that the client of an open is away, as `node` sees it: since when, and until when in
/// cluster time.
async fn disconnected(cluster: &Cluster, node: usize, open: &Opened) -> (Instant, Timestamp) {
    let asked_at = Instant::now();
    loop {
        let opens = cluster.opens(node).await.unwrap();
        let found =
            opens.iter().find(|known| known.description.durable_file_id.0 == open.file_id().persistent);
        if let Some(OpenState::Disconnected { durable_open_scavenger_timeout, .. }) =
            found.map(|found| found.state)
        {
            return (Instant::now(), durable_open_scavenger_timeout);
        }
        assert!(asked_at.elapsed() < FOUND_DEAD_WITHIN, "not disconnected: {opens:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Every open that the protocol lets an intruder purge is gone as soon as he has the file, and stays gone, whether or
/// not he is still there. Whoever breaks nothing takes nothing away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intruder_has_the_file_at_once_and_the_owner_is_refused() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let owner = Client::new(cluster.credentials());
    let (_session, share) = cluster.connect(&owner, 0).await.unwrap();
    let lease = |path, state, share_access| CreateRequest {
        share_access,
        ..CreateRequest::new(path).with_lease(Lease::request(state)).durable_v2()
    };
    let wishes = [
        CreateRequest::durable_v2_with_batch("batch"),
        lease("rwh", LeaseState::READ_WRITE_HANDLE, ShareAccess::ALL),
        lease("rwh-alone", LeaseState::READ_WRITE_HANDLE, ShareAccess::NONE),
        lease("rh-alone", LeaseState::READ_HANDLE, ShareAccess::NONE),
    ];
    let mut opens = Vec::new();
    for wish in wishes {
        let open = share.create(wish).await.unwrap();
        assert!(open.is_durable(), "{open:?}");
        opens.push(open);
    }
    let undisturbed = share.create(lease("rh", LeaseState::READ_HANDLE, ShareAccess::ALL)).await.unwrap();

    cluster.kill(0).unwrap();

    let (_intruders_session, intruders_share) =
        cluster.connect(&Client::new(cluster.credentials()), 1).await.unwrap();
    let mut intruders = Vec::new();
    for open in &opens {
        let path = open.path();
        let wanted_at = Instant::now();
        let intruder = intruders_share.create(CreateRequest::new(path)).await.unwrap();
        assert!(wanted_at.elapsed() < AT_ONCE, "the intruder waited for {path}: {:?}", wanted_at.elapsed());
        intruders.push(intruder);
    }
    let look = CreateRequest { desired_access: AccessMask::READ_ATTRIBUTES, ..CreateRequest::new("rh") };
    let visitor = intruders_share.create(look).await.unwrap();

    let (_session, share) = cluster.connect(&owner, 1).await.unwrap();
    for open in &opens {
        assert_gone(&share, open, open.path()).await;
    }
    visitor.close().await.unwrap();
    reclaim(&share, &undisturbed).await.unwrap();
    for intruder in intruders {
        intruder.close().await.unwrap();
    }
    for open in &opens {
        assert_gone(&share, open, open.path()).await;
    }
}

/// A handle lives as long as its client was told, counted from the death of its node, and not longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_lives_until_its_time_is_up_and_not_longer() {
    const TIMEOUT: Duration = Duration::from_secs(4);
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let owner = Client::new(cluster.credentials());
    let (_session, share) = cluster.connect(&owner, 0).await.unwrap();
    let in_time = open_for(&share, "in time", TIMEOUT).await;
    let too_late = open_for(&share, "too late", TIMEOUT).await;

    cluster.kill(0).unwrap();
    let (lost_at, _) = disconnected(&cluster, 1, &too_late).await;

    let (_session, share) = cluster.connect(&owner, 1).await.unwrap();
    tokio::time::sleep_until((lost_at + TIMEOUT - TOLERANCE).into()).await;
    let reclaimed = reclaim(&share, &in_time).await.unwrap();
    tokio::time::sleep_until((lost_at + TIMEOUT + TOLERANCE).into()).await;
    assert_gone(&share, &too_late, "its time is up").await;

    // Who has it again has it for good.
    reclaimed.write(0, b"mine").await.unwrap();
    assert_eq!(cluster.opens(1).await.unwrap().len(), 1);
    // Nothing of the other is left in the way.
    let alone = CreateRequest { share_access: ShareAccess::NONE, ..CreateRequest::new("too late") };
    share.create(alone).await.unwrap();
}

/// When a record is locked for longer than the sidecar waits, it is removed as soon as it can be, whether or not anything else
/// happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_whose_record_is_locked_at_its_time_goes_when_that_is_not_any_more() {
    const COMPLAINT: &str = "cannot be removed yet, trying again";
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let owner = Client::new(cluster.credentials());
    let (_session, share) = cluster.connect(&owner, 0).await.unwrap();
    open_for(&share, "file", Duration::from_secs(4)).await;
    cluster.kill(0).unwrap();
    until_logged(&cluster, 1, "waits for its client here").await;
    let path = cluster.smbd(1).lock_dir().join(Database::OpenGlobal.file_name());
    let mut opens = TdbFile::open(&Tdb::load().unwrap(), &path, ChangeCount::None).unwrap();
    let key = opens.records().unwrap().remove(0).key;

    let locked = opens.lock_chain(&key, FOUND_DEAD_WITHIN).unwrap();
    until_logged(&cluster, 1, COMPLAINT).await;
    drop(locked);

    let asked_at = Instant::now();
    while opens.fetch(&key).unwrap().is_some() {
        assert!(asked_at.elapsed() < AT_ONCE, "it stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until_logged(cluster: &Cluster, node: usize, what: &str) {
    let asked_at = Instant::now();
    while !cluster.sidecar_log(node).contains(what) {
        assert!(asked_at.elapsed() < FOUND_DEAD_WITHIN, "it is not logged: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The time counts from the loss of the client, even if its node dies after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_its_keeper_gives_no_disconnected_open_more_time() {
    const TIMEOUT: Duration = Duration::from_secs(10);
    const LOST_BEFORE: Duration = Duration::from_secs(2);
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let owner = Client::new(cluster.credentials());
    let (session, share) = cluster.connect(&owner, 0).await.unwrap();
    let in_time = open_for(&share, "in time", TIMEOUT).await;
    let too_late = open_for(&share, "too late", TIMEOUT).await;
    session.drop_connection().await;
    let (lost_at, until) = disconnected(&cluster, 1, &too_late).await;
    disconnected(&cluster, 1, &in_time).await;
    tokio::time::sleep_until((lost_at + LOST_BEFORE).into()).await;

    cluster.kill(0).unwrap();

    let (_session, share) = cluster.connect(&owner, 1).await.unwrap();
    assert_eq!(disconnected(&cluster, 1, &too_late).await.1, until);
    tokio::time::sleep_until((lost_at + TIMEOUT - TOLERANCE).into()).await;
    reclaim(&share, &in_time).await.unwrap();
    tokio::time::sleep_until((lost_at + TIMEOUT + TOLERANCE).into()).await;
    assert_gone(&share, &too_late, "its time is up").await;
}

/// A sidecar that is restarted knows what its predecessor has put where, and takes it away at its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_ends_at_its_time_although_the_sidecar_was_restarted() {
    const TIMEOUT: Duration = Duration::from_secs(9);
    let Some(tools) = samba_or_skip() else { return };
    let options = ClusterOptions::with_samba(PROGRAM, tools).with_time_for_sidecars();
    let mut cluster = Cluster::start(options).await.unwrap();
    let owner = Client::new(cluster.credentials());
    let (session, share) = cluster.connect(&owner, 0).await.unwrap();
    let kept_by_smbd = open_for(&share, "kept by smbd", TIMEOUT).await;
    let other = Client::new(cluster.credentials());
    let (_other_session, other_share) = cluster.connect(&other, 0).await.unwrap();
    session.drop_connection().await;
    let (lost_at, _) = disconnected(&cluster, 1, &kept_by_smbd).await;

    cluster.kill_sidecar(0).unwrap();
    cluster.start_sidecar(0).unwrap();

    tokio::time::sleep_until((lost_at + TIMEOUT + TOLERANCE).into()).await;
    let (_session, share) = cluster.connect(&owner, 0).await.unwrap();
    assert_gone(&share, &kept_by_smbd, "its time is up").await;
    let alone = CreateRequest { share_access: ShareAccess::NONE, ..CreateRequest::new("kept by smbd") };
    other_share.create(alone).await.unwrap();
}

/// How a client is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// Its connection breaks, and `smbd` cleans up after it.
    Clean,
    /// Its node dies.
    Crash,
}

/// What is left of a client's files after its loss, which must not depend on how it was lost.
async fn what_is_left(cluster: &mut Cluster, node: usize, survivor: usize, loss: Loss) -> Vec<String> {
    let owner = Client::new(cluster.credentials());
    let (session, share) = cluster.connect(&owner, node).await.unwrap();
    let name = |name: &str| format!("{name} after {loss:?}");
    let marked = share.create(CreateRequest::durable_v2_with_lease(name("marked"))).await.unwrap();
    let made_to_go = CreateRequest {
        options: CreateOptions::NON_DIRECTORY_FILE | CreateOptions::DELETE_ON_CLOSE,
        ..CreateRequest::durable_v2_with_batch(name("made to go"))
    };
    let made_to_go = share.create(made_to_go).await.unwrap();
    let renamed = share.create(CreateRequest::durable_v2_with_lease(name("before"))).await.unwrap();
    let forgiven = share.create(CreateRequest::durable_v2_with_lease(name("forgiven"))).await.unwrap();
    let kept = share.create(CreateRequest::durable_v2_with_lease(name("kept"))).await.unwrap();
    for open in [&marked, &made_to_go, &renamed, &forgiven, &kept] {
        assert!(open.is_durable());
        open.write(0, b"data").await.unwrap();
    }
    renamed.rename(&name("renamed"), false).await.unwrap();
    for open in [&marked, &renamed, &forgiven] {
        open.set_delete_pending(true).await.unwrap();
    }
    forgiven.set_delete_pending(false).await.unwrap();

    match loss {
        Loss::Clean => session.drop_connection().await,
        Loss::Crash => cluster.kill(node).unwrap(),
    }
    disconnected(cluster, survivor, &kept).await;
    // Whoever comes, whatever for, finds the files gone.
    let back = if loss == Loss::Clean { node } else { survivor };
    let (session, share) = cluster.connect(&owner, back).await.unwrap();
    for gone in [&marked, &made_to_go, &renamed] {
        assert_gone(&share, gone, &format!("{} after {loss:?}", gone.path())).await;
    }
    reclaim(&share, &forgiven).await.unwrap();
    reclaim(&share, &kept).await.unwrap();
    let directory = std::fs::read_dir(cluster.site().share_dir()).unwrap();
    let names = directory.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let suffix = format!(" after {loss:?}");
    let mut left: Vec<_> = names.filter_map(|name| name.strip_suffix(&suffix).map(str::to_owned)).collect();
    left.sort();
    session.logoff().await.unwrap();
    left
}

/// A file that the dead node should have deleted is deleted before anybody comes to its share, as `smbd` itself deletes
/// it when it loses the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_those_files_are_gone_that_are_after_a_clean_loss() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let after_a_clean_loss = what_is_left(&mut cluster, 0, 1, Loss::Clean).await;
    assert_eq!(after_a_clean_loss, ["forgiven", "kept"]);
    assert_eq!(what_is_left(&mut cluster, 0, 1, Loss::Crash).await, after_a_clean_loss);
}

/// Another file that has got the name meanwhile is nobody's to delete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_took_the_place_of_one_to_be_deleted_stays() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = cluster(tools).await;
    let owner = Client::new(cluster.credentials());
    let (_session, share) = cluster.connect(&owner, 0).await.unwrap();
    let marked = share.create(CreateRequest::durable_v2_with_lease("marked")).await.unwrap();
    marked.set_delete_pending(true).await.unwrap();
    let marked_too = share.create(CreateRequest::durable_v2_with_lease("marked too")).await.unwrap();
    marked_too.set_delete_pending(true).await.unwrap();

    cluster.kill(0).unwrap();
    let directory = cluster.site().share_dir();
    std::fs::write(directory.join("new"), b"precious").unwrap();
    std::fs::rename(directory.join("new"), directory.join("marked")).unwrap();

    let (_session, share) = cluster.connect(&owner, 1).await.unwrap();
    assert_gone(&share, &marked, "closed with its node").await;
    assert_eq!(std::fs::read(directory.join("marked")).unwrap(), b"precious");
    assert!(!directory.join("marked too").exists(), "the other one is not deleted");
}

/// A new file often gets the inode of one that was just deleted, and with it what the databases say of that inode. What a
/// dead process had locked there must not cost the new one its oplock, and so its durability.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_file_leaves_no_lock_to_the_next_one_with_its_inode() {
    let Some(tools) = samba_or_skip() else { return };
    let cluster = cluster(tools).await;
    let [owner, other] = [(); 2].map(|()| Client::new(cluster.credentials()));
    let (session, share) = cluster.connect(&owner, 0).await.unwrap();
    let marked = share.create(CreateRequest::durable_v2_with_batch("marked")).await.unwrap();
    marked.lock(&[LockElement::exclusive(10, 5)]).await.unwrap();
    marked.set_delete_pending(true).await.unwrap();
    // Stands for the new file: it has the inode for certain.
    let directory = cluster.site().share_dir();
    std::fs::hard_link(directory.join("marked"), directory.join("next")).unwrap();

    let (_session, others_share) = cluster.connect(&other, 0).await.unwrap();
    cluster.smbd(0).kill_child(session.client_address()).await.unwrap();
    let deadline = Instant::now() + FOUND_DEAD_WITHIN;
    while directory.join("marked").exists() {
        assert!(Instant::now() < deadline, "it is not deleted");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let next = others_share.create(CreateRequest::durable_v2_with_batch("next")).await.unwrap();
    assert_eq!(next.response().oplock_level, OplockLevel::Batch);
    assert!(next.is_durable());
}
