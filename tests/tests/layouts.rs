//! Opens of a dead smbd are given back by another one, whatever versions of Samba the two are: captured from the records of
//! the one and placed in the databases of the other, without a cluster in between. Versions that are missing are left
//! out with a line that says so; `tests/roots/make` makes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use frame::page::NODE_SLOTS;
use frame::{Database, RecordKey};
use harness::cluster::{Cluster, ClusterOptions};
use harness::samba::{SambaSite, SambaTools, Smbd, SmbdOptions};
use harness::smb_client::{Client, CreateRequest, LeaseState, LockElement, OplockLevel};
use samba::records::OpenGlobal;
use samba::tdb::{ChangeCount, RawRecord, Tdb, TdbFile};
use samba::{Capture, Layout, LocalDatabases, Location, OpenImage, Orphan, SambaVersion};

/// How long a record may be locked.
const LOCKED_AT_MOST: Duration = Duration::from_secs(5);

/// The program under test, with the sidecar in it.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

/// That many random ids are not by chance all of the same slot.
const OPENS: usize = 16;

/// Every version that is there.
fn versions() -> Vec<(Layout, SambaTools)> {
    SambaTools::all_there().into_iter().map(|tools| (layout_of(&tools), tools)).collect()
}

fn layout_of(tools: &SambaTools) -> Layout {
    let version = SambaVersion::of_smbd(tools.smbd()).unwrap();
    Layout::for_version(&version).unwrap()
}

#[tokio::test]
async fn open_of_each_version_is_given_back_by_each_version() {
    for (from, from_tools) in versions() {
        for (to, to_tools) in versions() {
            give_back(from, &from_tools, to, &to_tools).await;
        }
    }
}

async fn give_back(from: Layout, from_tools: &SambaTools, to: Layout, to_tools: &SambaTools) {
    let context = format!("from {from} to {to}");
    let site = SambaSite::new(from_tools.clone()).unwrap();
    let mut dead = site.smbd("dead", SmbdOptions::default()).unwrap();
    dead.start().await.unwrap();

    let client = Client::new(site.credentials());
    let session = client.connect(dead.address()).await.unwrap();
    let share = session.tree_connect(&dead.share()).await.unwrap();
    let requests = [
        CreateRequest::durable_v2_with_lease("report.docx"),
        CreateRequest::durable_v2_with_batch("plan.xlsx"),
        CreateRequest::new("notes.txt").with_oplock(OplockLevel::Batch).durable_v1(),
    ];
    let mut opens = Vec::new();
    for request in requests {
        let open = share.create(request).await.unwrap();
        assert!(open.is_durable(), "{context}");
        open.write(0, b"written before the death").await.unwrap();
        open.lock(&[LockElement::exclusive(10, 20)]).await.unwrap();
        opens.push(open);
    }
    let images = images(from, &dead.lock_dir());
    assert_eq!(images.len(), opens.len(), "{context}");
    dead.kill().unwrap();
    session.drop_connection().await;

    let (_site, survivor) = survivor(&site, &dead, to_tools).await;
    place(to, &survivor.lock_dir(), &images);
    let session = client.connect(survivor.address()).await.unwrap();
    let share = session.tree_connect(&survivor.share()).await.unwrap();
    for open in opens {
        let again = share.create(open.reconnect_request()).await;
        let again = again.unwrap_or_else(|error| panic!("{context}: {open:?}: {error}"));
        assert_eq!(again.file_id().persistent, open.file_id().persistent, "{context}");
        assert_eq!(again.response().oplock_level, open.response().oplock_level, "{context}");
        assert_eq!(again.lease_state(), open.lease_state(), "{context}");
        assert!(
            again.lease_state() == LeaseState::NONE || again.lease_state() == LeaseState::READ_WRITE_HANDLE
        );
        assert_eq!(again.read(0, 24).await.unwrap(), b"written before the death", "{context}");
        // What is not locked cannot be unlocked.
        again.lock(&[LockElement::unlock(10, 20)]).await.unwrap_or_else(|error| panic!("{context}: {error}"));
        again.close().await.unwrap();
    }
    session.drop_connection().await;
}

/// An smbd of that version on the same share, with the same users and the same SIDs.
async fn survivor(site: &SambaSite, dead: &Smbd, tools: &SambaTools) -> (SambaSite, Smbd) {
    let of_its_own = SambaSite::new(tools.clone()).unwrap();
    let path = ("path".to_owned(), site.share_dir().display().to_string());
    let options = SmbdOptions { share_options: vec![path], ..SmbdOptions::default() };
    let mut smbd = of_its_own.smbd("survivor", options).unwrap();
    let private = |smbd: &Smbd| smbd.config_file().with_file_name("private");
    for file in ["passdb.tdb", "secrets.tdb"] {
        fs::copy(private(dead).join(file), private(&smbd).join(file)).unwrap();
    }
    smbd.start().await.unwrap();
    (of_its_own, smbd)
}

/// An image of each durable open in the databases of a running smbd.
fn images(layout: Layout, lock_directory: &Path) -> Vec<OpenImage> {
    let libtdb = Tdb::load().unwrap();
    let mut records = BTreeMap::new();
    for (database, change_count) in [
        (Database::OpenGlobal, ChangeCount::None),
        (Database::Locking, ChangeCount::SequenceNumber),
        (Database::Leases, ChangeCount::SequenceNumber),
        (Database::Brlock, ChangeCount::SequenceNumber),
    ] {
        let path = lock_directory.join(database.file_name());
        for RawRecord { key, value } in
            TdbFile::open(&libtdb, &path, change_count).unwrap().records().unwrap()
        {
            records.insert(RecordKey { database, key }, value);
        }
    }
    let is_open = |key: &RecordKey| key.database == Database::OpenGlobal && key.key.len() == size_of::<u32>();
    let values = records.iter().filter(|(key, _)| is_open(key)).map(|(_, value)| value);
    let durable = values.filter(|value| OpenGlobal::decode(layout, value).unwrap().durable);
    durable.map(|value| image(layout, value, &records)).collect()
}

fn image(layout: Layout, open_global: &[u8], records: &BTreeMap<RecordKey, Vec<u8>>) -> OpenImage {
    let mut answers = BTreeMap::new();
    loop {
        match OpenImage::capture(layout, open_global, &answers).unwrap() {
            Capture::Complete(image) => return *image,
            Capture::Need(keys) => {
                answers.extend(keys.into_iter().map(|key| (key.clone(), records.get(&key).cloned())));
            }
        }
    }
}

fn place(layout: Layout, lock_directory: &Path, images: &[OpenImage]) {
    let images: Vec<_> = images.iter().map(|image| image.in_layout(layout).unwrap()).collect();
    let orphan = |image| Orphan { image, disconnected_at: SystemTime::now() };
    let orphans: Vec<_> = images.iter().map(orphan).collect();
    let location = Location::Plain { lock_directory: lock_directory.to_owned() };
    let mut databases =
        LocalDatabases::open(&Tdb::load().unwrap(), &location, layout, LOCKED_AT_MOST).unwrap();
    for placed in databases.materialise(&orphans) {
        placed.unwrap();
    }
}

/// The shim shows smbd's allocator a record for every id that is another node's, and smbd takes it for an open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smbd_of_each_version_draws_ids_of_its_own_node_alone() {
    for (layout, tools) in versions() {
        let options = ClusterOptions::with_samba(PROGRAM, tools).patient();
        let cluster = Cluster::start(options).await.unwrap();
        let session = Client::new(cluster.credentials()).connect(cluster.smb_address(0)).await.unwrap();
        let share = session.tree_connect(&cluster.share(0)).await.unwrap();
        let mut slots = BTreeSet::new();
        for file in 0..OPENS {
            let request = CreateRequest::durable_v2_with_lease(format!("file{file}"));
            let open = share.create(request).await.unwrap();
            assert!(open.is_durable(), "Samba {layout}");
            slots.insert(open.file_id().persistent % u64::from(NODE_SLOTS));
        }
        assert_eq!(slots.len(), 1, "Samba {layout}: ids of the slots {slots:?}");
    }
}
