//! Records of a cluster's databases.

use std::time::{Duration, Instant};

use samba::CtdbError;
use samba::ctdb::{ClusterDatabase, Connection, Membership, Pnn};
use samba::materialise::Edit;
use samba::records::ServerId;

use crate::cluster::{Cluster, PATIENCE, ctdb_is_there};

const DATABASE: &str = "records.tdb";

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// Stores a record and returns what it was before.
fn store(
    (connection, database): &mut (Connection, ClusterDatabase),
    key: &[u8],
    value: &[u8],
) -> Option<Vec<u8>> {
    let mut before = None;
    let mut decide = |local: Option<&[u8]>| {
        before = local.map(<[u8]>::to_vec);
        if value.is_empty() { Edit::Delete } else { Edit::Store(value.to_vec()) }
    };
    database.edit(connection, key, deadline(), &mut decide).expect("it can be edited");
    before
}

fn fetch((connection, database): &mut (Connection, ClusterDatabase), key: &[u8]) -> Option<Vec<u8>> {
    database.fetch(connection, key, deadline()).expect("it can be fetched")
}

/// This process, as one that has a connection to a node's ctdbd.
fn this_process(node: u32) -> ServerId {
    ServerId { pid: u64::from(std::process::id()), task_id: 0, vnn: node, unique_id: u64::MAX }
}

#[test]
fn one_node_is_asked_what_it_has() {
    if !ctdb_is_there() {
        return;
    }
    let cluster = Cluster::start(1);
    let mut node = cluster.attach(0, DATABASE);
    let (connection, database) = &mut node;
    assert_eq!(connection.pnn(), Pnn(0));
    assert!(!connection.is_recovering().unwrap());
    assert!(connection.cluster_lock().unwrap().unwrap().ends_with("/recovery.lock"));
    let map = connection.node_map().unwrap();
    assert!(map.len() == 1 && map[0].pnn == Pnn(0) && map[0].is_active(), "{map:?}");

    let id = database.id();
    let found = connection.find_databases(&["no such.tdb", DATABASE]).unwrap();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [(DATABASE.to_owned(), id)]);
    let path = connection.database_path(id).unwrap();
    assert!(path.ends_with(format!("volatile/{DATABASE}.0")), "{}", path.display());

    assert_eq!(fetch(&mut node, b"key"), None);
    assert_eq!(store(&mut node, b"key", b"value"), None);
    assert_eq!(fetch(&mut node, b"key").as_deref(), Some(&b"value"[..]));
    assert_eq!(node.1.records_here(Pnn(0)).unwrap().len(), 1);
    assert_eq!(store(&mut node, b"key", b"").as_deref(), Some(&b"value"[..]));
    assert_eq!(fetch(&mut node, b"key"), None);
    assert_eq!(node.1.records_here(Pnn(0)).unwrap(), []);
}

#[test]
fn database_is_opened_as_ctdbd_has_opened_it() {
    if !ctdb_is_there() {
        return;
    }
    // Who expects mutexes cannot open a file without, and the other way round.
    let cluster = Cluster::start_with(1, "tdb mutexes = false");
    let mut node = cluster.attach(0, DATABASE);
    assert_eq!(store(&mut node, b"key", b"value"), None);
    assert_eq!(fetch(&mut node, b"key").as_deref(), Some(&b"value"[..]));
}

/// What is refused is refused, what ctdbd does not answer takes as long as it was given, and neither breaks the
/// connection.
#[test]
fn what_ctdbd_does_not_know_is_an_error() {
    if !ctdb_is_there() {
        return;
    }
    let cluster = Cluster::start(1);
    let mut connection = Connection::open(&cluster.socket(0), Duration::from_secs(2)).unwrap();
    let unknown = samba::ctdb::DatabaseId(7);
    assert!(matches!(connection.open_flags(unknown), Err(CtdbError::Refused { .. })));
    let soon = Instant::now() + Duration::from_millis(200);
    let result = connection.migrate([(unknown, &b"key"[..])], soon);
    assert!(matches!(result, Err(CtdbError::Timeout { .. })), "{result:?}");
    assert!(connection.node_map().is_ok());
}

#[test]
fn record_goes_back_and_forth_between_nodes() {
    if !ctdb_is_there() {
        return;
    }
    let cluster = Cluster::start(3);
    let mut nodes = [0, 1, 2].map(|node| cluster.attach(node, DATABASE));
    let mut before = None;
    for round in 0..30_u32 {
        for (number, node) in nodes.iter_mut().enumerate() {
            let value = format!("{number} in round {round}").into_bytes();
            assert_eq!(fetch(node, b"key"), before);
            assert_eq!(store(node, b"key", &value), before);
            before = Some(value);
        }
    }
    for (number, node) in (0..).zip(&mut nodes) {
        assert_eq!(fetch(node, b"key"), before);
        assert!(node.1.is_here(b"key", Pnn(number)).unwrap(), "whoever looks at a record gets it");
    }
    // A deleted record is deleted everywhere.
    assert_eq!(store(&mut nodes[0], b"key", b""), before);
    for node in &mut nodes {
        assert_eq!(fetch(node, b"key"), None);
    }
}

#[test]
fn many_records_come_at_once() {
    if !ctdb_is_there() {
        return;
    }
    const RECORDS: u32 = 1000;
    let cluster = Cluster::start(3);
    let mut nodes = [0, 1, 2].map(|node| cluster.attach(node, DATABASE));
    let keys: Vec<_> = (0..RECORDS).map(u32::to_be_bytes).collect();
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(store(&mut nodes[number % 3], key, b"value"), None);
    }
    let (connection, database) = &mut nodes[1];
    let records = keys.iter().map(|key| (database.id(), &key[..]));
    connection.migrate(records.collect::<Vec<_>>(), deadline()).unwrap();
    for key in &keys {
        assert!(database.is_here(key, Pnn(1)).unwrap());
    }
    assert_eq!(database.records_here(Pnn(1)).unwrap().len(), keys.len());
}

#[test]
fn process_of_another_node_lives_until_its_node_is_dead() {
    if !ctdb_is_there() {
        return;
    }
    let mut cluster = Cluster::start(3);
    let mut here = cluster.connect(0);
    let there = cluster.connect(1);
    assert!(here.process_exists(this_process(0)).unwrap());
    assert!(here.process_exists(this_process(1)).unwrap());
    assert!(!here.process_exists(this_process(2)).unwrap(), "it is no client of that ctdbd");
    let another = ServerId { unique_id: 17, ..this_process(1) };
    assert!(!here.process_exists(another).unwrap(), "the process id was used again");
    let impossible = ServerId { pid: u64::MAX, ..this_process(1) };
    assert!(!here.process_exists(impossible).unwrap());
    for no_node in [9, 0xF000_0002, u32::MAX] {
        assert!(!here.process_exists(this_process(no_node)).unwrap(), "there is no node {no_node}");
    }

    cluster.kill(1);
    drop(there);
    cluster.wait_until("the node is disconnected", |cluster| {
        let map = cluster.connect(0).node_map().unwrap();
        !map[1].is_connected() && map[2].is_connected()
    });
    assert!(!here.process_exists(this_process(1)).unwrap());
}

/// A node is killed, and records are fetched and stored at once. That has to wait until CTDB has recovered; then what
/// only the dead node had is gone, and all else is there.
#[test]
fn store_during_a_recovery_waits_for_its_end() {
    if !ctdb_is_there() {
        return;
    }
    const RECORDS: u32 = 30;
    let mut cluster = Cluster::start(3);
    let mut nodes = [0, 1, 2].map(|node| cluster.attach(node, DATABASE));
    let keys: Vec<_> = (0..RECORDS).map(u32::to_be_bytes).collect();
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(store(&mut nodes[number % 3], key, b"before"), None);
    }
    for dead in [1, 0] {
        cluster.kill(dead);
        for (number, key) in keys.iter().enumerate().rev() {
            let before = store(&mut nodes[2], key, b"after");
            let was_lost = number % 3 == dead;
            let expected = if dead == 0 { &b"after"[..] } else { b"before" };
            assert_eq!(before.as_deref(), (!was_lost || dead == 0).then_some(expected), "{number}");
        }
    }
    for key in &keys {
        assert_eq!(fetch(&mut nodes[2], key).as_deref(), Some(&b"after"[..]));
    }
}

/// What a node holds that was out of the cluster is worth nothing afterwards.
#[test]
fn node_that_was_banned_forgets_its_records() {
    if !ctdb_is_there() {
        return;
    }
    let cluster = Cluster::start(2);
    let (mut node, mut other) = (cluster.attach(1, DATABASE), cluster.attach(0, DATABASE));
    store(&mut node, b"key", b"known to this node only");
    assert_eq!(node.0.membership().unwrap(), Membership::Member);

    node.0.ban(Duration::from_secs(2)).unwrap();

    assert_eq!(node.0.membership().unwrap(), Membership::Outside);
    assert_eq!(other.0.membership().unwrap(), Membership::Alone);
    cluster.wait_until("both are in the cluster", |cluster| {
        (0..2).all(|node| matches!(cluster.connect(node).membership(), Ok(Membership::Member)))
    });
    assert_eq!(fetch(&mut other, b"key"), None);
    assert_eq!(fetch(&mut node, b"key"), None);
}
