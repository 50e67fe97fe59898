use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;

/// Small enough that a test fills several chunks.
const SMALL_CHUNK: usize = 512;

/// No test waits longer for the disk.
const PATIENCE: Duration = Duration::from_secs(30);

/// Names the directory for a child process that this test binary starts of itself.
const CHILD_DIR: &str = "HOLDFAST_TEST_LOG_DIR";

fn entry(term: u64, index: u64) -> Entry {
    let payload: Vec<u8> = (0..index % 50).map(|n| (n + term) as u8).collect();
    Entry { position: Position { term, index }, payload: payload.into() }
}

fn signal() -> (OnSynced, mpsc::Receiver<Result<(), StoreError>>) {
    let (sender, receiver) = mpsc::channel();
    (Box::new(move |result| drop(sender.send(result))), receiver)
}

/// Runs a write and waits until it is on disk.
fn synced(write: impl FnOnce(OnSynced) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let (on_synced, receiver) = signal();
    write(on_synced)?;
    receiver.recv_timeout(PATIENCE).expect("every write is answered")
}

fn append(log: &LogStore, entries: impl IntoIterator<Item = Entry>) -> Result<(), StoreError> {
    synced(|on_synced| log.append(entries, on_synced))
}

fn indexes(log: &LogStore) -> Vec<u64> {
    let entries = log.read(0..u64::MAX, usize::MAX).expect("readable");
    entries.iter().for_each(|found| {
        assert_eq!(*found, entry(found.position.term, found.position.index), "as it was written");
    });
    entries.iter().map(|entry| entry.position.index).collect()
}

/// A log with every type of record in several chunks.
fn write_varied_log(dir: &Path) {
    let log = LogStore::open_with_chunk_size(dir, SMALL_CHUNK).expect("opens");
    let vote = Vote { term: 1, committed: false, voted_for: 2 };
    synced(|on_synced| log.save_vote(vote, on_synced)).expect("saved");
    append(&log, (0..14).map(|index| entry(1, index))).expect("appended");
    log.save_committed(Position { term: 1, index: 10 }).expect("saved");
    synced(|on_synced| log.truncate_after(Some(Position { term: 1, index: 11 }), on_synced))
        .expect("truncated");
    synced(|on_synced| log.save_vote(Vote { term: 2, committed: true, voted_for: 1 }, on_synced))
        .expect("saved");
    append(&log, (12..20).map(|index| entry(2, index))).expect("appended");
    synced(|on_synced| log.purge(Position { term: 1, index: 3 }, on_synced)).expect("purged");
    log.save_committed(Position { term: 2, index: 19 }).expect("saved");
    append(&log, [entry(2, 20)]).expect("appended");
}

fn chunk_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .expect("a directory")
        .map(|file| file.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    files.sort();
    files
}

#[test]
fn a_reopened_log_is_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    write_varied_log(dir.path());
    let log = LogStore::open_with_chunk_size(dir.path(), SMALL_CHUNK).expect("opens");
    assert_eq!(indexes(&log), (4..=20).collect::<Vec<_>>());
    let state = LogState {
        vote: Some(Vote { term: 2, committed: true, voted_for: 1 }),
        committed: Some(Position { term: 2, index: 19 }),
        purged: Some(Position { term: 1, index: 3 }),
        last: Some(Position { term: 2, index: 20 }),
    };
    assert_eq!(log.state().expect("a state"), state);
    append(&log, [entry(3, 21)]).expect("goes on");
    assert_eq!(log.read(21..22, 0).expect("readable"), [entry(3, 21)], "the first is read whatever its size");
}

#[test]
fn every_rotten_byte_is_found_and_named() {
    // Every record type, in closed chunks and in the open one; and in each byte one bit and all of them, so
    // that lengths, tags and types become larger and smaller.
    let dir = tempfile::tempdir().expect("a directory");
    write_varied_log(dir.path());
    let files = chunk_files(dir.path());
    assert!(files.len() > 1, "several chunks");
    for file in files {
        let sound = std::fs::read(&file).expect("readable");
        for position in 0..sound.len() {
            for damage in [0x01, 0xFF] {
                let mut rotten = sound.clone();
                rotten[position] ^= damage;
                std::fs::write(&file, &rotten).expect("writable");
                match LogStore::open_with_chunk_size(dir.path(), SMALL_CHUNK) {
                    Err(StoreError::Damaged { path, .. }) => assert_eq!(path, file, "byte {position}"),
                    other => panic!("byte {position} ^ {damage:02x} of {}: {other:?}", file.display()),
                }
            }
        }
        std::fs::write(&file, &sound).expect("writable");
    }
    LogStore::open_with_chunk_size(dir.path(), SMALL_CHUNK).expect("sound again");
}

#[test]
fn a_byte_that_rots_under_a_running_node_is_found_when_it_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    write_varied_log(dir.path());
    let log = LogStore::open_with_chunk_size(dir.path(), SMALL_CHUNK).expect("opens");
    let inner = log.shared.lock();
    inner.raft_log.as_ref().expect("open").drain_cache_evictable();
    drop(inner);
    let file = &chunk_files(dir.path())[0];
    let rotten: Vec<u8> = std::fs::read(file).expect("readable").iter().map(|byte| byte ^ 0x10).collect();
    std::fs::write(file, rotten).expect("writable");
    assert!(matches!(log.read(4..20, usize::MAX), Err(StoreError::Damaged { .. })));
}

#[test]
fn a_torn_tail_is_cut_off_and_the_rest_kept() {
    // A crash in the middle of the last write leaves any number of its bytes, or zeros in their place.
    let dir = tempfile::tempdir().expect("a directory");
    write_varied_log(dir.path());
    let sound_len =
        std::fs::metadata(chunk_files(dir.path()).last().expect("a chunk")).expect("a file").len();
    let log = LogStore::open_with_chunk_size(dir.path(), SMALL_CHUNK).expect("opens");
    append(&log, [entry(2, 21)]).expect("appended");
    drop(log);
    let file = chunk_files(dir.path()).pop().expect("a chunk");
    let whole = std::fs::read(&file).expect("readable");
    let sound_len = usize::try_from(sound_len).expect("small");
    assert!(whole.len() > sound_len, "still in the same chunk");
    for len in sound_len..whole.len() {
        for zeros in [0, 7] {
            let mut torn = whole[..if zeros == 0 { len } else { sound_len }].to_vec();
            torn.extend(vec![0; zeros]);
            std::fs::write(&file, torn).expect("writable");
            let log = LogStore::open_with_chunk_size(dir.path(), SMALL_CHUNK).expect("opens");
            assert_eq!(indexes(&log), (4..=20).collect::<Vec<_>>(), "{len} bytes left");
            drop(log);
            chunk_files(dir.path()).into_iter().filter(|other| *other > file).for_each(|other| {
                std::fs::remove_file(other).expect("what followed the cut");
            });
        }
    }
}

#[test]
fn a_second_process_is_told_that_the_directory_is_in_use() {
    let dir = tempfile::tempdir().expect("a directory");
    let _first = LogStore::open(dir.path()).expect("opens");
    assert!(matches!(LogStore::open(dir.path()), Err(StoreError::Locked { .. })));
}

#[test]
fn an_unknown_format_version_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(dir.path(), SMALL_CHUNK).expect("a configuration");
    let mut raft_log: RaftLog<WalTypes> = RaftLog::open(Arc::new(config)).expect("opens");
    raft_log.save_user_data(Some(StoreHeader { version: LOG_FORMAT_VERSION + 1 })).expect("saved");
    drop(raft_log);
    assert!(matches!(LogStore::open(dir.path()), Err(StoreError::UnknownVersion { found: 2, .. })));
}

#[test]
fn whatever_is_appended_during_a_sync_shares_the_next_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = LogStore::open(dir.path()).expect("opens");
    let (sender, receiver) = mpsc::channel();
    for index in 0..1000 {
        let sender = sender.clone();
        let on_synced = Box::new(move |result: Result<(), StoreError>| drop(sender.send((index, result))));
        log.append([entry(1, index)], on_synced).expect("appended");
    }
    for expected in 0..1000 {
        let (index, result) = receiver.recv_timeout(PATIENCE).expect("every append is answered");
        assert_eq!((index, result.is_ok()), (expected, true), "in order");
    }
    let inner = log.shared.lock();
    let syncs = inner.raft_log.as_ref().expect("open").stat().flush_metrics.sync_batch_count;
    assert!(syncs < 500, "{syncs} syncs for 1000 appends");
}

#[test]
fn what_would_leave_a_hole_or_undo_a_commit_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = LogStore::open(dir.path()).expect("opens");
    append(&log, (0..10).map(|index| entry(1, index))).expect("appended");
    log.save_committed(Position { term: 1, index: 5 }).expect("saved");
    let before = log.state().expect("a state");
    let too_long = Entry { payload: vec![0; PAYLOAD_LEN_MAX + 1].into(), ..entry(1, 10) };
    let keep = Some(Position { term: 1, index: 4 });
    for refused in [
        append(&log, [entry(1, 11)]),
        append(&log, [entry(1, 9)]),
        append(&log, [too_long]),
        synced(|on_synced| log.truncate_after(keep, on_synced)),
    ] {
        assert!(matches!(refused, Err(StoreError::Refused { .. })), "{refused:?}");
    }
    assert_eq!(log.state().expect("a state"), before);
    append(&log, [entry(1, 10)]).expect("still good");
}

#[test]
fn a_purge_beyond_the_end_leaves_nothing_of_an_earlier_term() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = LogStore::open(dir.path()).expect("opens");
    append(&log, (0..10).map(|index| entry(1, index))).expect("appended");
    synced(|on_synced| log.purge(Position { term: 3, index: 7 }, on_synced)).expect("purged");
    assert_eq!(indexes(&log), [0; 0]);
    append(&log, [entry(3, 8)]).expect("goes on after the purge");
    drop(log);
    let log = LogStore::open(dir.path()).expect("opens");
    assert_eq!(indexes(&log), [8]);
}

/// Not a test: what [`sigkill_loses_nothing_that_was_acknowledged`] and
/// [`a_disk_that_takes_no_more_is_an_error_and_stops_the_log`] run in a process of its own.
#[test]
#[ignore = "run by other tests"]
fn child_that_appends_until_it_cannot() {
    let dir = std::env::var_os(CHILD_DIR).expect("the parent names a directory");
    let log = LogStore::open(Path::new(&dir)).expect("opens");
    let mut next = log.state().expect("a state").last.map_or(0, |last| last.index + 1);
    let (sender, receiver) = mpsc::channel();
    let report = |(index, result): (u64, Result<(), StoreError>)| match result {
        Ok(()) => eprintln!("acknowledged {index}"),
        Err(error) => eprintln!("failed {error}: {:?}", std::error::Error::source(&error)),
    };
    loop {
        for _ in 0..8 {
            let index = next;
            next += 1;
            let on_synced = {
                let sender = sender.clone();
                Box::new(move |result| drop(sender.send((index, result))))
            };
            if let Err(error) = log.append([entry(1, index)], on_synced) {
                drop(sender);
                // Until the last append that was taken has been answered.
                receiver.into_iter().for_each(report);
                eprintln!("stopped {error}");
                return;
            }
        }
        while let Ok(answer) = receiver.recv_timeout(Duration::from_micros(200)) {
            report(answer);
        }
    }
}

/// Starts the child on `dir`, its files limited to `blocks` of 512 or 1024 bytes, as the shell counts.
fn start_child(dir: &Path, blocks: Option<u32>) -> Child {
    let limit = blocks.map_or(String::new(), |blocks| format!("trap '' XFSZ; ulimit -f {blocks};"));
    let test = "store::log::tests::child_that_appends_until_it_cannot";
    Command::new("sh")
        .arg("-c")
        .arg(format!("{limit} exec \"$0\" --ignored --exact --nocapture {test}"))
        .arg(std::env::current_exe().expect("this test binary"))
        .env(CHILD_DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a child")
}

#[test]
fn sigkill_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut acknowledged = None;
    for round in 0..12 {
        let mut child = start_child(dir.path(), None);
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let first = lines.next().expect("it writes").expect("text");
        assert!(first.starts_with("acknowledged "), "{first}");
        let reader = std::thread::spawn(move || lines.map_while(Result::ok).last());
        std::thread::sleep(Duration::from_millis(3 + 7 * round));
        child.kill().expect("it lives");
        child.wait().expect("it ends");
        let last = reader.join().expect("a reader").unwrap_or(first);
        let index = last.strip_prefix("acknowledged ").and_then(|index| index.parse().ok());
        acknowledged = acknowledged.max(index);
        let log = LogStore::open(dir.path()).expect("opens after SIGKILL");
        let found = indexes(&log);
        assert_eq!(found, (0..found.len() as u64).collect::<Vec<_>>(), "without a hole");
        assert!(found.last().copied() >= acknowledged, "{acknowledged:?} was acknowledged");
    }
    assert!(acknowledged > Some(20), "it was busy when it was killed: {acknowledged:?}");
}

#[test]
fn a_disk_that_takes_no_more_is_an_error_and_stops_the_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let child = start_child(dir.path(), Some(64));
    let output = child.wait_with_output().expect("it ends by itself");
    let text = String::from_utf8_lossy(&output.stderr);
    let failed = text.lines().find(|line| line.starts_with("failed ")).expect("the failure is reported");
    assert!(failed.contains("cannot write and sync the log in"), "{failed}");
    assert!(failed.contains("File too large"), "{failed}");
    assert!(text.lines().any(|line| line.starts_with("stopped ")), "nothing more is accepted: {text}");
    let acknowledged = text.lines().filter_map(|line| line.strip_prefix("acknowledged ")?.parse().ok()).max();
    let log = LogStore::open(dir.path()).expect("opens when there is room again");
    assert!(indexes(&log).last().copied() >= acknowledged);
}

/// `cargo test --release -p holdfast-statedb -- --ignored --nocapture compare` prints the figures.
#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "its output is its purpose")]
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn compare_append_and_sync_of_128_records_with_sled() {
    const RECORDS: u64 = 128;
    const ROUNDS: u64 = 200;
    let payload: Arc<[u8]> = vec![0x5A; 1024].into();
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };

    let dir = tempfile::tempdir().expect("a directory");
    let log = LogStore::open(dir.path()).expect("opens");
    let times = (0..ROUNDS).map(|round| {
        let started = Instant::now();
        let entries = (0..RECORDS).map(|n| {
            let position = Position { term: 1, index: round * RECORDS + n };
            Entry { position, payload: Arc::clone(&payload) }
        });
        append(&log, entries).expect("appended");
        started.elapsed()
    });
    println!("write-ahead log: {:?}", median(times.collect()));

    let dir = tempfile::tempdir().expect("a directory");
    let tree = sled::Config::new().path(dir.path()).flush_every_ms(None).open().expect("opens");
    let times = (0..ROUNDS).map(|round| {
        let started = Instant::now();
        for n in 0..RECORDS {
            tree.insert((round * RECORDS + n).to_be_bytes(), &payload[..]).expect("inserted");
        }
        tree.flush().expect("flushed");
        started.elapsed()
    });
    println!("sled 0.34:       {:?}", median(times.collect()));

    let dir = tempfile::tempdir().expect("a directory");
    let mut file = std::fs::File::create(dir.path().join("plain")).expect("created");
    let bytes = vec![0x5A; payload.len() * RECORDS as usize];
    let times = (0..ROUNDS).map(|_| {
        let started = Instant::now();
        std::io::Write::write_all(&mut file, &bytes).expect("written");
        file.sync_data().expect("synced");
        started.elapsed()
    });
    println!("a plain file:    {:?}", median(times.collect()));
}
