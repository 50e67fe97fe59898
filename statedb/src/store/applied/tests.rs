use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use super::*;

const TABLE: Table = Table::new(1);
const OTHER: Table = Table::new(2);

/// Names the directory for a child process that this test binary starts of itself.
const CHILD_DIR: &str = "HOLDFAST_TEST_APPLIED_DIR";

fn put(table: Table, key: u64, value: &[u8]) -> Change {
    Change { table, key: key.to_be_bytes().to_vec(), value: Some(value.to_vec()) }
}

fn remove(table: Table, key: u64) -> Change {
    Change { table, key: key.to_be_bytes().to_vec(), value: None }
}

fn record(table: Table, key: u64, value: &[u8]) -> StoredRecord {
    StoredRecord { table, key: key.to_be_bytes().to_vec(), value: value.to_vec() }
}

fn open(dir: &Path) -> (AppliedStore, Option<Applied>) {
    let store = AppliedStore::open(dir).expect("opens");
    let applied = store.load().expect("sound");
    (store, applied)
}

/// What batch `n` does, and what all batches up to it made of the state. Records are written, written over
/// and removed.
fn batch(n: u64) -> Vec<Change> {
    vec![
        put(TABLE, n % 20, &n.to_be_bytes()),
        put(OTHER, n, &[n as u8; 1500]),
        remove(OTHER, n.wrapping_sub(30)),
    ]
}

fn state_after(n: u64) -> Applied {
    let mut records = BTreeMap::new();
    for change in (0..=n).flat_map(batch) {
        let key = (change.table, change.key);
        match change.value {
            Some(value) => records.insert(key, value),
            None => records.remove(&key),
        };
    }
    let record = |((table, key), value)| StoredRecord { table, key, value };
    Applied { meta: n.to_be_bytes().to_vec(), records: records.into_iter().map(record).collect() }
}

fn write(store: &AppliedStore, n: u64) -> Result<(), StoreError> {
    store.write(&n.to_be_bytes(), batch(n))
}

#[test]
fn a_reopened_store_is_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, before) = open(dir.path());
    assert_eq!(before, None);
    (0..100).for_each(|n| write(&store, n).expect("written"));
    drop(store);
    let (store, after) = open(dir.path());
    assert_eq!(after, Some(state_after(99)));
    write(&store, 100).expect("goes on");
    assert_eq!(store.load().expect("sound"), Some(state_after(100)));
}

#[test]
fn of_two_changes_of_one_record_the_later_one_counts() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, _) = open(dir.path());
    let changes = vec![put(TABLE, 1, b"a"), put(TABLE, 2, b"b"), put(TABLE, 1, b"c"), remove(TABLE, 2)];
    store.write(b"meta", changes).expect("written");
    let expected = Applied { meta: b"meta".to_vec(), records: vec![record(TABLE, 1, b"c")] };
    assert_eq!(store.load().expect("sound"), Some(expected));
}

#[test]
fn a_replaced_state_has_nothing_of_the_old_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, _) = open(dir.path());
    (0..50).for_each(|n| write(&store, n).expect("written"));
    let records: Vec<_> = (0..3000).map(|key| record(OTHER, key, b"new")).collect();
    store.replace(b"snapshot", records.clone()).expect("replaced");
    store.write(b"after", vec![remove(OTHER, 0)]).expect("goes on");
    drop(store);
    let (_, applied) = open(dir.path());
    assert_eq!(applied, Some(Applied { meta: b"after".to_vec(), records: records[1..].to_vec() }));
}

#[test]
fn a_snapshot_that_was_not_written_to_its_end_leaves_the_old_state() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, _) = open(dir.path());
    write(&store, 0).expect("written");
    let next = store.db.open_tree(format!("{GENERATION_TREE_PREFIX}1")).expect("a tree");
    next.insert([1, 2, 3], b"half a snapshot").expect("inserted");
    drop((store, next));
    let (store, applied) = open(dir.path());
    assert_eq!(applied, Some(state_after(0)));
    store.replace(b"snapshot", []).expect("replaced");
    assert_eq!(store.load().expect("sound"), Some(Applied { meta: b"snapshot".to_vec(), records: vec![] }));
}

#[test]
fn a_lost_or_foreign_record_is_noticed() {
    let harm: [fn(&Tree); 4] = [
        |tree| drop(tree.remove(TABLE.key(&3_u64.to_be_bytes()))),
        |tree| drop(tree.insert(TABLE.key(&999_u64.to_be_bytes()), b"foreign")),
        |tree| {
            // Sound, but where another one belongs.
            let other = tree.get(TABLE.key(&4_u64.to_be_bytes())).expect("readable").expect("there");
            drop(tree.insert(TABLE.key(&5_u64.to_be_bytes()), other));
        },
        |tree| drop(tree.remove(META_KEY)),
    ];
    for harm in harm {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, _) = open(dir.path());
        (0..20).for_each(|n| write(&store, n).expect("written"));
        harm(&store.current.lock().expect("no panic").tree);
        assert!(matches!(store.load(), Err(StoreError::Damaged { .. })));
    }
}

/// sled keeps more than one version of what was written, and may go back to an older one when it finds
/// a damaged one. So a rotten byte may go unnoticed, or lead to an older state, which is as sound as a
/// restart from an older copy. What must not come out is anything else.
#[test]
fn a_rotten_byte_never_makes_a_state_that_never_was() {
    // A prime, so that every part of a record is hit somewhere.
    const STEP: usize = 40_961;
    let dir = tempfile::tempdir().expect("a directory");
    let (store, _) = open(dir.path());
    // More than one of sled's segments of half a megabyte.
    let batches = 600;
    (0..batches).for_each(|n| write(&store, n).expect("written"));
    store.sync().expect("synced");
    drop(store);
    let past: Vec<_> = (0..batches).map(state_after).collect();
    let sound = std::fs::read(dir.path().join("db")).expect("readable");
    let end = sound.iter().rposition(|byte| *byte != 0).expect("something was written") + 1;
    let (mut damaged, mut older) = (0, 0);
    for position in (0..end).step_by(STEP) {
        let copy = tempfile::tempdir().expect("a directory");
        for file in std::fs::read_dir(dir.path()).expect("a directory") {
            let file = file.expect("an entry");
            if file.file_type().expect("a type").is_file() {
                std::fs::copy(file.path(), copy.path().join(file.file_name())).expect("copied");
            }
        }
        let mut rotten = sound.clone();
        rotten[position] ^= 0x24;
        std::fs::write(copy.path().join("db"), rotten).expect("writable");
        match AppliedStore::open(copy.path()).and_then(|store| store.load()) {
            Err(StoreError::Damaged { path, .. }) => {
                assert_eq!(path, copy.path());
                damaged += 1;
            }
            Err(error) => panic!("byte {position}: {error}"),
            Ok(None) => older += 1,
            Ok(Some(applied)) => {
                assert!(past.contains(&applied), "byte {position} makes a state that never was");
                older += usize::from(past.last() != Some(&applied));
            }
        }
    }
    assert!(damaged + older > 0, "none of the bytes counts");
    eprintln!("of {} rotten bytes, {damaged} were named and {older} led to an older state", end / STEP + 1);
}

/// Not a test: what [`sigkill_leaves_a_state_that_was`] and
/// [`a_disk_that_takes_no_more_is_an_error`] run in a process of its own.
#[test]
#[ignore = "run by other tests"]
fn child_that_writes_until_it_cannot() {
    let dir = std::env::var_os(CHILD_DIR).expect("the parent names a directory");
    let (store, applied) = open(Path::new(&dir));
    let start =
        applied.map_or(0, |applied| u64::from_be_bytes(applied.meta.try_into().expect("eight bytes")) + 1);
    eprintln!("ready");
    for n in start.. {
        let written = write(&store, n).and_then(|()| if n % 10 == 0 { store.sync() } else { Ok(()) });
        if let Err(error) = written {
            eprintln!("failed {error}");
            // sled may not be able to end in order, either.
            std::process::exit(0);
        }
    }
}

fn child(dir: &Path, limit: &str) -> Command {
    let mut command = Command::new("sh");
    let test = "store::applied::tests::child_that_writes_until_it_cannot";
    command
        .arg("-c")
        .arg(format!("{limit} exec \"$0\" --ignored --exact --nocapture {test}"))
        .arg(std::env::current_exe().expect("this test binary"))
        .env(CHILD_DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

#[test]
fn sigkill_leaves_a_state_that_was() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().expect("a directory");
    let mut newest = None;
    for round in 0..8 {
        let mut child = child(dir.path(), "").spawn().expect("a child");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        assert_eq!(lines.next().expect("it writes").expect("text"), "ready");
        std::thread::sleep(std::time::Duration::from_millis(5 + 9 * round));
        child.kill().expect("it lives");
        child.wait().expect("it ends");
        let (_, applied) = open(dir.path());
        let applied = applied.map(|applied| {
            let n = u64::from_be_bytes(applied.meta.as_slice().try_into().expect("eight bytes"));
            assert_eq!(applied, state_after(n));
            n
        });
        assert!(applied >= newest, "{applied:?} after {newest:?}");
        newest = applied;
    }
    assert!(newest > Some(20), "it was busy when it was killed: {newest:?}");
}

#[test]
fn a_disk_that_takes_no_more_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    // sled begins with a file of half a megabyte.
    let output = child(dir.path(), "trap '' XFSZ; ulimit -f 4096;").output().expect("it ends by itself");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.lines().any(|line| line.starts_with("failed ")), "{text}");
}

#[test]
fn a_second_process_is_told_that_the_directory_is_in_use() {
    let dir = tempfile::tempdir().expect("a directory");
    let _first = AppliedStore::open(dir.path()).expect("opens");
    assert!(matches!(AppliedStore::open(dir.path()), Err(StoreError::Locked { .. })));
}
