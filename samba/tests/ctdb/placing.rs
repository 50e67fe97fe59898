//! Orphans in the databases of a cluster.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use samba::ctdb::{ClusterDatabase, Connection};
use samba::materialise::{Edit, Removed};
use samba::records::{Holder, LockingRecord, OpenGlobal, ServerId, file_key, open_global_key};
use samba::tdb::Tdb;
use samba::{
    Change, CtdbError, Layout, LocalDatabases, Location, MaterialiseError, OpenImage, Orphan, PlaceError,
    StoreError,
};
use statedb::{DurableFileId, ShareAccess};
use tempfile::TempDir;

use crate::cluster::{Cluster, PATIENCE, ctdb_is_there};
use crate::smbd::Smbd;
use crate::testdata::{image_of, shared_keys};

/// The layout of the machine's own Samba. CTDB knows nothing of layouts, so one is as good as another.
const LAYOUT: Layout = Layout::V4_17;

/// A cluster with the databases of opens, which are there when its first smbd has been started, and a share.
struct SambaCluster {
    cluster: Cluster,
    share: TempDir,
}

impl SambaCluster {
    fn start(nodes: usize) -> Self {
        let cluster = Cluster::start(nodes);
        for database in frame::Database::ALL {
            cluster.attach(0, database.file_name());
        }
        Self { cluster, share: tempfile::tempdir().expect("a temporary directory") }
    }

    fn share(&self) -> &Path {
        self.share.path()
    }

    fn databases(&self, node: usize) -> LocalDatabases {
        self.try_databases(node, PATIENCE).expect("the cluster runs")
    }

    fn try_databases(&self, node: usize, timeout: Duration) -> Result<LocalDatabases, StoreError> {
        let libtdb = Tdb::load().expect("libtdb comes with ctdb");
        let location = Location::Clustered { socket: self.cluster.socket(node) };
        LocalDatabases::open(&libtdb, &location, LAYOUT, timeout)
    }

    /// Places one orphan.
    fn place(&self, node: usize, image: &OpenImage) -> Result<(), PlaceError> {
        self.databases(node).materialise(&[orphan(image)]).pop().expect("one result for one orphan")
    }

    fn database(&self, node: usize, database: frame::Database) -> (Connection, ClusterDatabase) {
        self.cluster.attach(node, database.file_name())
    }

    fn record(&self, node: usize, database: frame::Database, key: &[u8]) -> Option<Vec<u8>> {
        let (mut connection, mut database) = self.database(node, database);
        database.fetch(&mut connection, key, Instant::now() + PATIENCE).expect("it can be fetched")
    }

    fn store(&self, node: usize, database: frame::Database, key: &[u8], value: &[u8]) {
        let (mut connection, mut database) = self.database(node, database);
        let deadline = Instant::now() + PATIENCE;
        let mut decide = |_: Option<&[u8]>| Edit::Store(value.to_vec());
        database.edit(&mut connection, key, deadline, &mut decide).expect("it can be stored");
    }
}

fn orphan(image: &OpenImage) -> Orphan<'_> {
    Orphan { image, disconnected_at: SystemTime::now() }
}

/// This process as an smbd of a node: it lives while it is connected to that node's ctdbd.
fn this_process(node: u32) -> ServerId {
    ServerId { pid: u64::from(std::process::id()), task_id: 0, vnn: node, unique_id: u64::MAX }
}

/// An open like another one, with another id.
fn renumbered(image: &OpenImage, id: u64) -> OpenImage {
    let mut image = image.clone();
    let id = DurableFileId(id);
    let open_global_id = u32::try_from(id.0).expect("Samba's ids have 32 bits");
    let open = OpenGlobal { open_persistent_id: id, open_global_id, ..image.open_global().clone() };
    image.update_open_global(&open.encode(LAYOUT)).expect("it has no locks");
    image
}

#[test]
fn orphan_is_placed_through_one_node_and_found_and_removed_through_others() {
    if !ctdb_is_there() {
        return;
    }
    let samba = SambaCluster::start(3);
    fs::write(samba.share().join("report.docx"), "text").unwrap();
    let image = image_of(LAYOUT, "rwh_v2_locks", samba.share(), "report.docx");
    let id = image.durable_file_id();
    assert_eq!(samba.databases(0).remove(id, image.file()).unwrap(), Removed::Absent);

    samba.place(0, &image).unwrap();
    let placed = samba.databases(1).open_global(id).unwrap().expect("it was placed");
    assert_eq!(placed.holder(), Holder::Disconnected);
    for (database, key) in shared_keys(&image) {
        assert!(samba.record(1, database, &key).is_some(), "{database}");
    }
    assert_eq!(samba.databases(1).disconnected_opens().unwrap(), [placed]);
    // Placing it again changes nothing, wherever that is done.
    for node in [0, 1] {
        samba.place(node, &image).unwrap();
    }

    assert_eq!(samba.databases(2).remove(id, image.file()).unwrap(), Removed::Removed);
    for node in [0, 1, 2] {
        assert_eq!(samba.databases(node).open_global(id).unwrap(), None);
        assert_eq!(samba.databases(node).disconnected_opens().unwrap(), []);
        for (database, key) in shared_keys(&image) {
            assert_eq!(samba.record(node, database, &key), None, "{database}");
        }
    }
}

/// The records of a dead node's open are not lost where another node had them last. Then they say that a process of the
/// dead node has the open, and only CTDB knows whether that runs.
#[test]
fn what_a_process_of_another_node_has_is_replaced_once_that_node_is_dead() {
    if !ctdb_is_there() {
        return;
    }
    let mut samba = SambaCluster::start(3);
    fs::write(samba.share().join("plan.xlsx"), "text").unwrap();
    let image = image_of(LAYOUT, "batch_v2", samba.share(), "plan.xlsx");
    let id = image.durable_file_id();
    let smbd = samba.cluster.connect(1);
    let held = OpenGlobal { server_id: this_process(1), ..image.open_global().clone() };
    samba.store(0, frame::Database::OpenGlobal, &open_global_key(id), &held.encode(LAYOUT));

    let error = samba.place(0, &image).unwrap_err();
    assert!(matches!(error, PlaceError::Materialise(MaterialiseError::Conflict { .. })), "{error}");
    assert_eq!(samba.databases(0).remove(id, image.file()).unwrap(), Removed::Claimed);

    samba.cluster.kill(1);
    drop(smbd);
    samba.place(0, &image).unwrap();
    let placed = samba.databases(2).open_global(id).unwrap().expect("it was placed");
    assert_eq!(placed.holder(), Holder::Disconnected);
}

/// While the orphan was lost, somebody has opened its file as the orphan would not have let him.
#[test]
fn orphan_that_somebody_contradicts_is_not_placed_and_leaves_no_trace() {
    if !ctdb_is_there() {
        return;
    }
    let samba = SambaCluster::start(2);
    fs::write(samba.share().join("report.docx"), "text").unwrap();
    let image = image_of(LAYOUT, "rwh_v2_locks", samba.share(), "report.docx");
    let other = renumbered(&image_of(LAYOUT, "batch_v2", samba.share(), "report.docx"), 0x0072_6568);
    samba.place(0, &other).unwrap();
    let key = file_key(image.file());
    let locking = samba.record(0, frame::Database::Locking, &key).expect("it was placed");
    let mut locking = LockingRecord::decode(LAYOUT, &locking).unwrap();
    let share_modes = locking.lock.as_mut().unwrap().share_modes.as_mut().unwrap();
    share_modes.entries[0].server_id = this_process(1);
    share_modes.entries[0].share_access = ShareAccess(0);
    let smbd = samba.cluster.connect(1);
    let locking = locking.encode(LAYOUT);
    samba.store(1, frame::Database::Locking, &key, &locking);

    let error = samba.place(0, &image).unwrap_err();
    assert!(matches!(error, PlaceError::Contradicted { id } if id == image.durable_file_id()), "{error}");
    assert_eq!(samba.databases(0).open_global(image.durable_file_id()).unwrap(), None);
    for (database, key) in shared_keys(&image) {
        let expected = (database == frame::Database::Locking).then(|| locking.clone());
        assert_eq!(samba.record(1, database, &key), expected, "{database}");
    }
    // Once he has gone, nobody is in the way.
    drop(smbd);
    samba.cluster.wait_until("ctdbd has seen the process go", |cluster| {
        cluster.connect(0).process_exists(this_process(1)).is_ok_and(|exists| !exists)
    });
    samba.place(0, &image).unwrap();
}

/// A recovery has brought back the records of an orphan that somebody has claimed and closed since. Nobody has the file open, and
/// its locks go; not so those of a share that the cluster does not look after.
#[test]
fn what_a_recovery_brings_back_of_an_open_that_has_ended_counts_for_nothing() {
    if !ctdb_is_there() {
        return;
    }
    let samba = SambaCluster::start(1);
    fs::write(samba.share().join("report.docx"), "text").unwrap();
    let image = image_of(LAYOUT, "rwh_v2_locks", samba.share(), "report.docx");
    let (id, file) = (image.durable_file_id(), image.file());
    let locks = || samba.record(0, frame::Database::Brlock, &file_key(file));
    samba.place(0, &image).unwrap();
    assert!(locks().is_some());

    // The control: an orphan that the cluster knows, and one of a share of which it knows nothing.
    for (is_known, is_protected) in [(true, true), (false, false)] {
        let databases = || samba.databases(0).knowing(move |_| is_known, move |_| is_protected);
        assert!(databases().is_open(file).unwrap(), "known: {is_known}");
        databases().remove_locks_of_the_dead().unwrap();
        databases().lay_ghosts(file).unwrap();
        assert!(locks().is_some(), "known: {is_known}");
        assert!(databases().is_open(file).unwrap(), "known: {is_known}");
    }

    let databases = || samba.databases(0).knowing(move |known| known != id, |_| true);
    assert!(!databases().is_open(file).unwrap());
    databases().remove_locks_of_the_dead().unwrap();
    assert_eq!(locks(), None);
    databases().lay_ghosts(file).unwrap();
    assert_eq!(samba.record(0, frame::Database::Locking, &file_key(file)), None);
}

/// A node dies with all the records of its opens, and another one puts them back: a thousand at once, through one
/// connection, beginning while CTDB has not yet noticed.
#[test]
fn thousand_orphans_of_a_dead_node_are_put_back() {
    if !ctdb_is_there() {
        return;
    }
    const ORPHANS: u64 = 1000;
    let mut samba = SambaCluster::start(3);
    let images: Vec<_> = (0..ORPHANS)
        .map(|number| {
            let name = format!("file {number}");
            fs::write(samba.share().join(&name), "text").unwrap();
            renumbered(&image_of(LAYOUT, "batch_v2", samba.share(), &name), 1 + number)
        })
        .collect();
    let orphans: Vec<_> = images.iter().map(orphan).collect();
    let placed = samba.databases(1).materialise(&orphans);
    assert!(placed.iter().all(Result::is_ok), "{placed:?}");
    samba.cluster.kill(1);

    let killed = Instant::now();
    let mut databases = samba.databases(0);
    let lost = databases.open_global(images[0].durable_file_id()).unwrap();
    assert_eq!(lost, None, "its records died with the node");
    let recovered = Instant::now();
    let placed = databases.materialise(&orphans);
    assert!(placed.iter().all(Result::is_ok), "{placed:?}");
    eprintln!("recovery {:?}, {ORPHANS} orphans {:?}", recovered - killed, recovered.elapsed());
    drop(databases);

    let mut databases = samba.databases(2);
    for image in &images {
        let placed = databases.open_global(image.durable_file_id()).unwrap().expect("it was placed");
        assert_eq!(placed.holder(), Holder::Disconnected);
    }
}

/// A cluster that cannot be used is found out once, not once for each orphan.
#[test]
fn without_a_cluster_the_first_orphan_fails_and_the_rest_are_not_tried() {
    if !ctdb_is_there() {
        return;
    }
    let mut samba = SambaCluster::start(2);
    let error = samba.try_databases(0, Duration::from_secs(5)).map(|mut databases| {
        samba.cluster.kill(0);
        let images: Vec<_> = ["one", "other", "third"]
            .into_iter()
            .zip(1..)
            .map(|(name, id)| {
                fs::write(samba.share().join(name), "text").unwrap();
                renumbered(&image_of(LAYOUT, "batch_v2", samba.share(), name), id)
            })
            .collect();
        databases.materialise(&images.iter().map(orphan).collect::<Vec<_>>())
    });
    let results = error.expect("the cluster ran");
    assert!(matches!(results[0], Err(PlaceError::Store(StoreError::Ctdb(_)))), "{results:?}");
    assert!(results[1..].iter().all(|result| matches!(result, Err(PlaceError::NotTried))), "{results:?}");
    let error = samba.try_databases(0, Duration::from_secs(5)).err();
    assert!(matches!(error, Some(StoreError::Ctdb(CtdbError::Connect { .. }))), "{error:?}");
}

#[test]
fn databases_that_no_smbd_has_attached_are_not_made() {
    if !ctdb_is_there() {
        return;
    }
    let cluster = Cluster::start(1);
    let libtdb = Tdb::load().expect("libtdb comes with ctdb");
    let location = Location::Clustered { socket: cluster.socket(0) };
    let error = LocalDatabases::open(&libtdb, &location, LAYOUT, PATIENCE).err();
    assert!(matches!(error, Some(StoreError::Ctdb(CtdbError::NoSuchDatabase { .. }))), "{error:?}");
}

/// An smbd of the cluster reads what was placed through another node: whoever wants the file meets the orphan, and smbd
/// gives it up for him by its own rules. And its processes are known to all nodes.
#[test]
fn smbd_of_another_node_meets_the_orphan() {
    if !ctdb_is_there() {
        return;
    }
    let cluster = Cluster::start(3);
    let samba = SambaCluster { cluster, share: tempfile::tempdir().expect("a temporary directory") };
    let smbd = Smbd::start(&samba.cluster.socket(1), samba.share());
    let smbclient = |command| smbd.smbclient().args(["-c", command]).output().expect("smbclient is there");
    samba.cluster.wait_until("smbd serves", |_| smbclient("ls").status.success());
    fs::write(samba.share().join("plan.xlsx"), "text").unwrap();
    let image = image_of(LAYOUT, "batch_v2", samba.share(), "plan.xlsx");
    let locking = |node| samba.record(node, frame::Database::Locking, &file_key(image.file()));

    let mut client = smbd.smbclient().stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut commands = client.stdin.take().expect("it is piped");
    writeln!(commands, "open plan.xlsx").unwrap();
    samba.cluster.wait_until("the file is open", |_| locking(0).is_some());
    let record = LockingRecord::decode(LAYOUT, &locking(0).expect("it is open")).unwrap();
    let holder = record.share_modes().expect("it is open").entries[0].server_id;
    assert_eq!(holder.vnn, 1);
    let exists = |cluster: &Cluster| cluster.connect(0).process_exists(holder).unwrap();
    assert!(exists(&samba.cluster));
    drop(commands);
    client.wait().unwrap();
    samba.cluster.wait_until("its process has ended", |cluster| !exists(cluster));

    samba.place(0, &image).unwrap();
    let got = smbclient("get plan.xlsx /dev/null");
    assert!(got.status.success(), "{got:?}\n{}", smbd.log());
    let given_up = locking(2);
    assert_eq!(image.clone().update_locking(given_up.as_deref()).unwrap(), Change::Gone);
    // Nobody places it again: before smbd's store went on, the cluster has closed the open. Its own record is left.
    assert_eq!(samba.databases(2).remove(image.durable_file_id(), image.file()).unwrap(), Removed::Removed);
}
