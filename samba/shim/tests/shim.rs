//! The shim in a process of its own, between a program that calls libtdb and a fake sidecar.

mod support;

use std::time::{Duration, Instant};

use frame::frame::HEADER_LEN;
use frame::{Database, NodeSlot, Prelude, Record, RecordKey, Reply, Request, TdbError};
use support::{CTDB_HEADER, FENCE_TICK, Program, Rig, clustered, store};

/// A lease that no test outlives by accident.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(800);

const SIGKILL: i32 = 9;
const SIGSTOP: i32 = 19;

const FILE_ID: &str = "0102030405060708090a0b0c0d0e0f101112131415161718";
const TCON: Database = Database::TconGlobal;
const OPEN: Database = Database::OpenGlobal;

/// Starts a rig, or ends the test where there is no libtdb.
macro_rules! rig {
    () => {
        match Rig::start() {
            Some(rig) => rig,
            None => return,
        }
    };
}

#[test]
fn a_tree_connect_is_stored_only_after_proceed() {
    let rig = rig!();
    let (mut program, mut observer) = (rig.program(), rig.observer());
    program.begin(&store(TCON, "00000001", "aabb"));
    rig.sidecar.welcome();
    let asked = rig.sidecar.next();
    let expected = Request::Store { database: TCON, key: vec![0, 0, 0, 1], value: vec![0xaa, 0xbb] };
    assert_eq!(asked.request, expected);
    assert_eq!(program.answer_so_far(), None);
    assert_eq!(observer.call(&format!("fetch {TCON} 00000001")), "-");

    asked.connection.reply(asked.request_id, Reply::Proceed);
    assert_eq!(program.answer(), "ok");
    assert_eq!(observer.call(&format!("fetch {TCON} 00000001")), "aabb");
}

#[test]
fn a_delete_is_made_only_after_proceed() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    let mut observer = rig.observer();
    program.begin(&format!("delete {TCON} 00000001"));
    let asked = rig.sidecar.next();
    assert_eq!(asked.request, Request::Delete { database: TCON, key: vec![0, 0, 0, 1] });
    assert_eq!(observer.call(&format!("fetch {TCON} 00000001")), "aa");
    asked.connection.reply(asked.request_id, Reply::Proceed);
    assert_eq!(program.answer(), "ok");
    assert_eq!(observer.call(&format!("fetch {TCON} 00000001")), "-");
}

#[test]
fn a_value_in_pieces_is_asked_about_as_one() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    program.begin(&format!("storev {TCON} 00000002 01 - 020304"));
    let asked = rig.sidecar.next();
    assert_eq!(
        asked.request,
        Request::Store { database: TCON, key: vec![0, 0, 0, 2], value: vec![1, 2, 3, 4] }
    );
    asked.connection.reply(asked.request_id, Reply::Proceed);
    assert_eq!(program.answer(), "ok");
    assert_eq!(program.call(&format!("fetch {TCON} 00000002")), "01020304");
}

#[test]
fn a_refused_store_is_not_made_and_tdb_error_says_why() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    for tdb_error in TdbError::ALL {
        program.begin(&store(TCON, "00000009", "ff"));
        let asked = rig.sidecar.next();
        asked.connection.reply(asked.request_id, Reply::Refuse { tdb_error });
        assert_eq!(program.answer(), format!("error {}", tdb_error as u8));
        assert_eq!(program.call(&format!("fetch {TCON} 00000009")), "-");
    }
    assert_eq!(rig.sidecar.proceed(&mut program, &store(TCON, "00000009", "ff")), "ok");
}

#[test]
fn a_change_that_is_skipped_is_not_made_and_succeeds() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    let mut observer = rig.observer();
    rig.sidecar.page.set_id(7);
    assert_eq!(rig.sidecar.proceed(&mut program, &store(OPEN, "00000007", "aa")), "ok");
    for change in [store(OPEN, "00000007", "bb"), format!("delete {OPEN} 00000007")] {
        program.begin(&change);
        let asked = rig.sidecar.next();
        asked.connection.reply(asked.request_id, Reply::Skip);
        assert_eq!(program.answer(), "ok");
        assert_eq!(observer.call(&format!("fetch {OPEN} 00000007")), "aa");
    }
}

#[test]
fn what_does_not_concern_the_cluster_is_never_asked_about() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    assert_eq!(program.call(&store(OPEN, "00000007", "aa")), "ok");
    assert_eq!(program.call(&format!("delete {OPEN} 00000007")), "ok");
    for database in [Database::Locking, Database::Brlock, Database::Leases] {
        assert_eq!(program.call(&store(database, FILE_ID, "aa")), "ok");
        assert_eq!(program.call(&format!("delete {database} {FILE_ID}")), "ok");
    }
    // The first thing that is asked is the first that concerns the cluster.
    program.begin(&store(TCON, "00000003", "aa"));
    assert!(matches!(rig.sidecar.next().request, Request::Store { database: TCON, .. }));
}

#[test]
fn tracked_keys_are_asked_about_from_the_moment_they_are_tracked() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    let file_id: Vec<u8> = (1..=24).collect();
    rig.sidecar.page.set_id(7);
    rig.sidecar.page.set_file(&file_id);
    rig.sidecar.page.set_lease(&file_id);
    for (database, key) in [
        (OPEN, "00000007"),
        (Database::Locking, FILE_ID),
        (Database::Brlock, FILE_ID),
        (Database::Leases, FILE_ID),
    ] {
        assert_eq!(rig.sidecar.proceed(&mut program, &store(database, key, "aa")), "ok");
        assert_eq!(rig.sidecar.proceed(&mut program, &format!("delete {database} {key}")), "ok");
    }
    rig.sidecar.page.clear_file(&file_id);
    assert_eq!(program.call(&store(Database::Locking, FILE_ID, "aa")), "ok");
}

#[test]
fn needed_records_are_sent_as_they_are_stored() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    assert_eq!(program.call(&store(Database::Brlock, FILE_ID, "c0ffee")), "ok");
    let file_id: Vec<u8> = (1..=24).collect();

    program.begin(&store(OPEN, "00000007", &"ab".repeat(100)));
    let asked = rig.sidecar.next();
    let key = |database| RecordKey { database, key: file_id.clone() };
    let keys = vec![key(Database::Locking), key(Database::Brlock)];
    asked.connection.reply(asked.request_id, Reply::Need { keys });

    let records = rig.sidecar.next();
    assert_eq!(records.request_id, asked.request_id);
    let record = |database, value| Record { database, key: file_id.clone(), value };
    let expected =
        vec![record(Database::Locking, None), record(Database::Brlock, Some(vec![0xc0, 0xff, 0xee]))];
    assert_eq!(records.request, Request::Records { records: expected });
    assert_eq!(program.answer_so_far(), None);

    asked.connection.reply(asked.request_id, Reply::Proceed);
    assert_eq!(program.answer(), "ok");
}

#[test]
fn the_shared_records_stored_last_are_sent_ahead_of_an_open() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    let (file_id, lease_key): (Vec<u8>, Vec<u8>) = ((1..=24).collect(), vec![0x11; 32]);
    for (database, key, value) in [
        (Database::Locking, "00".repeat(24), "0bad"),
        (Database::Locking, FILE_ID.to_owned(), "c0ffee"),
        (Database::Leases, "11".repeat(32), "ea5e"),
    ] {
        assert_eq!(program.call(&store(database, &key, value)), "ok");
    }
    program.begin(&store(OPEN, "00000007", &"ab".repeat(100)));
    let ahead = rig.sidecar.next();
    let record = |database, key: &Vec<u8>, value| Record { database, key: key.clone(), value };
    let expected = vec![
        record(Database::Locking, &file_id, Some(vec![0xc0, 0xff, 0xee])),
        record(Database::Brlock, &file_id, None),
        record(Database::Leases, &lease_key, Some(vec![0xea, 0x5e])),
    ];
    assert_eq!(ahead.request, Request::Records { records: expected });
    let asked = rig.sidecar.next();
    assert_eq!(asked.request_id, ahead.request_id);
    assert!(matches!(asked.request, Request::Store { database: OPEN, .. }));
    asked.connection.reply(asked.request_id, Reply::Proceed);
    assert_eq!(program.answer(), "ok");
}

#[test]
fn share_modes_that_stay_the_same_are_stored_without_a_question() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    rig.sidecar.page.set_file(&(1..=24).collect::<Vec<u8>>());
    rig.sidecar.page.set_locking_prelude(Prelude { fixed_len: 6, item_len: 2 });
    let [empty, opened, locked, changed] =
        ["00000000aaaa00", "00000000aaaaff", "010000007777bbbbff", "00000000aaaafe"];
    let locking = |value| store(Database::Locking, FILE_ID, value);
    assert_eq!(program.call(&locking(empty)), "ok");
    assert_eq!(rig.sidecar.proceed(&mut program, &locking(opened)), "ok");
    assert_eq!(program.call(&locking(locked)), "ok");
    assert_eq!(rig.sidecar.proceed(&mut program, &locking(changed)), "ok");
    assert_eq!(rig.sidecar.proceed(&mut program, &locking(empty)), "ok");
    assert_eq!(program.call(&format!("delete {} {FILE_ID}", Database::Locking)), "ok");
    // Of locks each byte counts.
    assert_eq!(rig.sidecar.proceed(&mut program, &store(Database::Brlock, FILE_ID, empty)), "ok");
}

#[test]
fn needed_records_that_fit_no_frame_make_the_store_fail() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    let half_a_frame = "00".repeat(600_000);
    for database in [Database::Locking, Database::Brlock] {
        assert_eq!(program.call(&store(database, FILE_ID, &half_a_frame)), "ok");
    }
    program.begin(&store(OPEN, "00000007", &"ab".repeat(100)));
    let asked = rig.sidecar.next();
    let key = |database| RecordKey { database, key: (1..=24).collect() };
    let keys = vec![key(Database::Locking), key(Database::Brlock)];
    asked.connection.reply(asked.request_id, Reply::Need { keys });
    assert_eq!(rig.sidecar.next().request, Request::Abandon { tdb_error: TdbError::Oom });
    assert_eq!(program.answer(), format!("error {}", TdbError::Oom as u8));
}

#[test]
fn a_value_that_fits_no_frame_is_refused() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    let too_long = "00".repeat(frame::frame::MAX_FRAME);
    assert_eq!(program.call(&store(TCON, "00000005", &too_long)), format!("error {}", TdbError::Oom as u8));
    assert_eq!(program.call(&format!("fetch {TCON} 00000005")), "-");
}

#[test]
fn a_lost_connection_is_made_again_and_the_request_repeated() {
    let mut rig = rig!();
    let (mut program, connection) = rig.bound_program(LONG);
    program.begin(&store(TCON, "00000004", "aa"));
    let first = rig.sidecar.next();
    connection.close();
    let hello = rig.sidecar.welcome();
    assert!(!hello.connection.is(&connection));
    let again = rig.sidecar.next();
    assert!(again.connection.is(&hello.connection));
    assert_eq!((again.request_id, &again.request), (first.request_id, &first.request));
    again.connection.reply(again.request_id, Reply::Proceed);
    assert_eq!(program.answer(), "ok");
}

#[test]
fn a_reply_cut_short_or_damaged_is_a_lost_connection() {
    let mut rig = rig!();
    let (mut program, connection) = rig.bound_program(LONG);
    program.begin(&store(TCON, "00000004", "aa"));
    let asked = rig.sidecar.next();
    let mut proceed = Vec::new();
    Reply::Proceed.encode(asked.request_id, &mut proceed).expect("small enough");
    connection.send(&proceed[..HEADER_LEN - 1]);
    connection.close();

    for damaged in
        [[0xFF; HEADER_LEN], [0; HEADER_LEN], [HEADER_LEN as u8, 0, 0, 0, 0x7F, 0, 0, 0, 0, 0, 0, 0]]
    {
        let hello = rig.sidecar.welcome();
        rig.sidecar.next();
        hello.connection.send(&damaged);
    }

    rig.sidecar.welcome();
    let asked = rig.sidecar.next();
    assert_eq!(program.answer_so_far(), None);
    asked.connection.reply(asked.request_id, Reply::Proceed);
    assert_eq!(program.answer(), "ok");
}

#[test]
fn a_reply_to_another_request_is_ignored() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    program.begin(&store(TCON, "00000004", "aa"));
    let asked = rig.sidecar.next();
    asked.connection.reply(asked.request_id - 1, Reply::Proceed);
    asked.connection.reply(asked.request_id + 1, Reply::Proceed);
    asked.connection.reply(asked.request_id, Reply::Refuse { tdb_error: TdbError::Lock });
    assert_eq!(program.answer(), format!("error {}", TdbError::Lock as u8));
}

#[test]
fn a_process_that_was_refused_the_hello_refuses_its_stores() {
    let rig = rig!();
    let mut program = rig.program();
    program.begin(&store(TCON, "00000004", "aa"));
    // The tick says hello too, and drops what is refused. In the end the call hears of a refusal.
    let answer = loop {
        if let Some(answer) = program.answer_so_far() {
            break answer;
        }
        let hello = rig.sidecar.hello();
        hello.connection.reply(hello.request_id, Reply::Refuse { tdb_error: TdbError::RdOnly });
    };
    assert_eq!(answer, format!("error {}", TdbError::RdOnly as u8));
}

#[test]
fn an_idle_process_finds_a_restarted_sidecar() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    rig.sidecar.stop();
    rig.sidecar.listen();
    let hello = rig.sidecar.welcome();
    assert!(matches!(hello.request, Request::Hello { pid, .. } if pid == program.pid()));
    assert_eq!(rig.sidecar.proceed(&mut program, &store(TCON, "00000002", "bb")), "ok");
}

#[test]
fn a_process_started_before_its_sidecar_finds_it() {
    let mut rig = rig!();
    rig.sidecar.stop();
    let mut program = rig.program();
    program.begin(&store(TCON, "00000002", "bb"));
    rig.sidecar.listen();
    rig.sidecar.bind(LONG);
    let asked = rig.sidecar.next();
    asked.connection.reply(asked.request_id, Reply::Proceed);
    assert_eq!(program.answer(), "ok");
}

#[test]
fn a_process_that_is_not_bound_gives_up_after_a_while_and_then_at_once() {
    let mut rig = rig!();
    rig.sidecar.stop();
    let mut program = rig.program();
    let io = format!("error {}", TdbError::Io as u8);
    assert_eq!(program.call(&store(TCON, "00000002", "bb")), io);

    let began = Instant::now();
    assert_eq!(program.call(&store(TCON, "00000002", "bb")), io);
    // Nobody admitted the tree connect, so nobody has to agree to its end. Libtdb finds nothing to delete.
    let no_exist = format!("error {}", TdbError::NoExist as u8);
    assert_eq!(program.call(&format!("delete {TCON} 00000002")), no_exist);
    assert!(began.elapsed() < Duration::from_secs(5), "waited again");

    rig.sidecar.listen();
    rig.sidecar.bind(LONG);
    assert_eq!(rig.sidecar.proceed(&mut program, &store(TCON, "00000002", "bb")), "ok");
}

#[test]
fn a_stopped_process_ends_at_its_deadline() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(SHORT);
    let began = Instant::now();
    program.signal(SIGSTOP);
    assert_eq!(program.ended_by(), Some(SIGKILL));
    assert!(began.elapsed() > SHORT / 2, "too early");
}

#[test]
fn a_process_without_its_sidecar_ends_at_its_deadline() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(SHORT);
    rig.sidecar.stop();
    program.begin(&store(TCON, "00000002", "bb"));
    assert_eq!(program.ended_by(), Some(SIGKILL));
    assert_eq!(rig.observer().call(&format!("fetch {TCON} 00000002")), "-");
}

#[test]
fn a_process_whose_lease_is_extended_lives_on() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(SHORT);
    let began = Instant::now();
    while began.elapsed() < 4 * SHORT {
        rig.sidecar.extend_lease(SHORT);
        std::thread::sleep(SHORT / 10);
        assert_eq!(program.call("pid"), program.pid().to_string());
    }
    assert_eq!(program.ended_by(), Some(SIGKILL));
}

#[test]
fn a_process_ends_when_another_instance_is_bound() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    rig.sidecar.page.bind(&[0xEE; 16], u64::MAX);
    assert_eq!(program.ended_by(), Some(SIGKILL));
}

#[test]
fn a_process_ends_when_its_lease_is_withdrawn() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    rig.sidecar.page.unbind();
    assert_eq!(program.ended_by(), Some(SIGKILL));
}

#[test]
fn a_process_that_is_told_to_end_stores_nothing_more() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    program.begin(&store(TCON, "00000002", "bb"));
    let asked = rig.sidecar.next();
    asked.connection.reply(asked.request_id, Reply::Fence);
    assert_eq!(program.ended_by(), Some(SIGKILL));
    assert_eq!(rig.observer().call(&format!("fetch {TCON} 00000002")), "-");
}

#[test]
fn an_idle_process_is_ended_by_the_answer_to_its_hello() {
    let rig = rig!();
    let mut program = rig.program();
    let hello = rig.sidecar.hello();
    hello.connection.reply(hello.request_id, Reply::Fence);
    assert_eq!(program.ended_by(), Some(SIGKILL));
}

#[test]
fn a_process_that_is_not_bound_is_not_fenced() {
    let mut rig = rig!();
    let mut program = rig.program();
    rig.sidecar.welcome();
    rig.sidecar.page.bind(&[0xEE; 16], 1);
    std::thread::sleep(5 * FENCE_TICK);
    assert_eq!(program.call("pid"), program.pid().to_string());
}

#[test]
fn a_forked_child_has_its_own_connection_and_the_same_instance() {
    let mut rig = rig!();
    let (mut program, parent_connection) = rig.bound_program(LONG);
    let child = program.call("fork");
    let hello = rig.sidecar.welcome();
    assert!(!hello.connection.is(&parent_connection));
    let Request::Hello { main_pid, pid, .. } = hello.request else { unreachable!("checked in welcome") };
    assert_eq!((main_pid, pid.to_string()), (program.pid(), child));

    program.begin(&store(TCON, "00000002", "bb"));
    let asked = rig.sidecar.next();
    assert!(asked.connection.is(&hello.connection));
    asked.connection.reply(asked.request_id, Reply::Proceed);
    assert_eq!(program.answer(), "ok");
}

#[test]
fn a_forked_child_is_fenced_like_its_parent() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(SHORT);
    let child = program.call("fork");
    assert_eq!(program.ended_by(), Some(SIGKILL));
    // Its parent is gone, so init reaps it: then there is no such process.
    let deadline = Instant::now() + LONG;
    while is_running(&child) {
        assert!(Instant::now() < deadline, "the child lives on");
        std::thread::sleep(FENCE_TICK);
    }
}

#[test]
fn ids_of_other_nodes_and_ids_in_use_look_taken() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    let slot = NodeSlot::new(3).expect("slot");
    assert_eq!(program.call(&format!("parse {OPEN} 00000004")), "-");
    rig.sidecar.page.set_allocator(slot, b"\x0a\x0b\x0c").expect("fits");
    rig.sidecar.page.set_id(0x13);
    for lookup in ["parse", "fetch"] {
        assert_eq!(program.call(&format!("{lookup} {OPEN} 00000004")), "0a0b0c", "another node's");
        assert_eq!(program.call(&format!("{lookup} {OPEN} 00000003")), "-", "free");
        assert_eq!(program.call(&format!("{lookup} {OPEN} 00000013")), "0a0b0c", "tracked");
        assert_eq!(program.call(&format!("{lookup} {OPEN} {FILE_ID}")), "-", "not an open");
        assert_eq!(program.call(&format!("{lookup} {TCON} 00000004")), "-", "not an open");
    }
    assert_eq!(program.call(&store(OPEN, "00000004", "dd")), "ok");
    assert_eq!(program.call(&format!("parse {OPEN} 00000004")), "dd", "what is there is shown");
}

#[test]
fn needed_records_are_the_real_ones() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    rig.sidecar.page.set_allocator(NodeSlot::new(3).expect("slot"), b"in use").expect("fits");
    program.begin(&store(TCON, "00000002", "bb"));
    let asked = rig.sidecar.next();
    let key = vec![0, 0, 0, 4];
    let keys = vec![RecordKey { database: OPEN, key: key.clone() }];
    asked.connection.reply(asked.request_id, Reply::Need { keys });
    let records = vec![Record { database: OPEN, key, value: None }];
    assert_eq!(rig.sidecar.next().request, Request::Records { records });
}

#[test]
fn what_ctdb_puts_before_a_value_is_not_sent() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_clustered_program(LONG);
    let (leases, key) = (clustered(Database::Leases), "11".repeat(32));
    rig.sidecar.page.set_lease(&[0x11; 32]);
    let (header_begins, header_ends) = CTDB_HEADER.split_at(14);
    for pieces in [
        format!("{CTDB_HEADER} aabbcc"),
        format!("{CTDB_HEADER}aa bbcc"),
        format!("- {header_begins} {header_ends}aa bb - cc"),
    ] {
        program.begin(&format!("storev {leases} {key} {pieces}"));
        let asked = rig.sidecar.next();
        let value = vec![0xaa, 0xbb, 0xcc];
        let expected = Request::Store { database: Database::Leases, key: vec![0x11; 32], value };
        assert_eq!(asked.request, expected, "{pieces}");
        asked.connection.reply(asked.request_id, Reply::Proceed);
        assert_eq!(program.answer(), "ok");
        assert_eq!(program.call(&format!("fetch {leases} {key}")), format!("{CTDB_HEADER}aabbcc"));
    }
}

#[test]
fn a_value_of_nothing_but_what_ctdb_puts_there_is_a_delete() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_clustered_program(LONG);
    let open = clustered(OPEN);
    rig.sidecar.page.set_id(5);
    for pieces in [CTDB_HEADER.to_owned(), format!("{CTDB_HEADER} -"), "-".to_owned()] {
        program.begin(&format!("storev {open} 00000005 {pieces}"));
        let asked = rig.sidecar.next();
        assert_eq!(asked.request, Request::Delete { database: OPEN, key: vec![0, 0, 0, 5] }, "{pieces}");
        asked.connection.reply(asked.request_id, Reply::Proceed);
        assert_eq!(program.answer(), "ok");
    }
}

#[test]
fn the_length_of_an_open_counts_without_what_ctdb_puts_before_it() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_clustered_program(LONG);
    let store = |length| format!("store {} 00000006 {CTDB_HEADER}{}", clustered(OPEN), "cc".repeat(length));
    assert_eq!(program.call(&store(support::DURABLE_LEN as usize - 1)), "ok");
    assert_eq!(rig.sidecar.proceed(&mut program, &store(support::DURABLE_LEN as usize)), "ok");
}

#[test]
fn needed_records_come_without_what_ctdb_puts_before_them() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_clustered_program(LONG);
    let open = clustered(OPEN);
    assert_eq!(program.call(&format!("store {open} 00000001 {CTDB_HEADER}dd")), "ok");
    assert_eq!(program.call(&format!("store {open} 00000002 {CTDB_HEADER}")), "ok");
    program.begin(&format!("store {} 00000002 {CTDB_HEADER}bb", clustered(TCON)));
    let asked = rig.sidecar.next();
    let key = |id: u8| RecordKey { database: OPEN, key: vec![0, 0, 0, id] };
    asked.connection.reply(asked.request_id, Reply::Need { keys: vec![key(1), key(2), key(3)] });
    let record = |id: u8, value| Record { database: OPEN, key: vec![0, 0, 0, id], value };
    let records = vec![record(1, Some(vec![0xdd])), record(2, None), record(3, None)];
    assert_eq!(rig.sidecar.next().request, Request::Records { records });
}

#[test]
fn the_record_of_an_open_that_others_may_have_is_locked_only_after_proceed() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_clustered_program(LONG);
    let open = clustered(OPEN);
    let (lock, unlock) = (format!("lock {open} 00000007"), format!("unlock {open} 00000007"));
    assert_eq!((program.call(&lock), program.call(&unlock)), ("ok".into(), "ok".into()), "nobody's");
    rig.sidecar.page.set_id(7);
    rig.sidecar.page.set_elsewhere(7);
    let mut observer = Program::start_unprotected();
    assert_eq!(observer.call(&format!("open {}", rig.path().join(&open).display())), "ok");
    // Each time anew: what is true before the wait for the lock need not be true after it.
    for _ in 0..2 {
        program.begin(&lock);
        let asked = rig.sidecar.next();
        assert_eq!(asked.request, Request::Look { database: OPEN, key: vec![0, 0, 0, 7] });
        assert_eq!((observer.call(&lock), observer.call(&unlock)), ("ok".into(), "ok".into()));
        asked.connection.reply(asked.request_id, Reply::Proceed);
        assert_eq!((program.answer(), program.call(&unlock)), ("ok".into(), "ok".into()));
    }
    rig.sidecar.page.clear_elsewhere(7);
    assert_eq!((program.call(&lock), program.call(&unlock)), ("ok".into(), "ok".into()), "its own");
}

#[test]
fn a_new_tree_connect_of_a_ctdb_cluster_is_asked_about_before_its_lock_is_taken() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_clustered_program(LONG);
    let tcon = clustered(TCON);
    let (lock, unlock) = (format!("lock {tcon} 00000007"), format!("unlock {tcon} 00000007"));
    program.begin(&lock);
    let asked = rig.sidecar.next();
    assert_eq!(asked.request, Request::Look { database: TCON, key: vec![0, 0, 0, 7] });
    asked.connection.reply(asked.request_id, Reply::Proceed);
    assert_eq!(program.answer(), "ok");
    let store = format!("store {tcon} 00000007 {CTDB_HEADER}aabb");
    assert_eq!(rig.sidecar.proceed(&mut program, &store), "ok");
    assert_eq!(program.call(&unlock), "ok");

    assert_eq!((program.call(&lock), program.call(&unlock)), ("ok".into(), "ok".into()), "it is there");
}

#[test]
fn a_refused_look_takes_no_lock_and_a_fenced_one_ends_the_process() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_clustered_program(LONG);
    let lock = format!("lock {} 00000007", clustered(OPEN));
    rig.sidecar.page.set_look_at_all(true);
    program.begin(&lock);
    let asked = rig.sidecar.next();
    asked.connection.reply(asked.request_id, Reply::Refuse { tdb_error: TdbError::Lock });
    assert_eq!(program.answer(), format!("error {}", TdbError::Lock as u8));
    // It holds nothing, so it asks again.
    program.begin(&lock);
    let asked = rig.sidecar.next();
    asked.connection.reply(asked.request_id, Reply::Fence);
    assert_eq!(program.ended_by(), Some(SIGKILL));
}

#[test]
fn a_process_asks_before_it_locks_the_record_of_an_open_that_another_one_has_made() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_program(LONG);
    let mut another = rig.observer();
    for key in ["00000007", "00000008"] {
        let process = if key == "00000007" { &mut another } else { &mut program };
        assert_eq!(process.call(&store(OPEN, key, "aa")), "ok");
    }
    let locked = |program: &mut Program, key: &str| {
        assert_eq!(program.call(&format!("lock {OPEN} {key}")), "ok");
        assert_eq!(program.call(&format!("unlock {OPEN} {key}")), "ok");
    };
    locked(&mut program, "00000007");
    (7..=9).for_each(|id| rig.sidecar.page.set_id(id));
    locked(&mut program, "00000008");
    locked(&mut program, "00000009");

    program.begin(&format!("lock {OPEN} 00000007"));
    let asked = rig.sidecar.next();
    assert_eq!(asked.request, Request::Look { database: OPEN, key: vec![0, 0, 0, 7] });
    locked(&mut another, "00000007");
    asked.connection.reply(asked.request_id, Reply::Proceed);
    assert_eq!(program.answer(), "ok");
    assert_eq!(program.call(&format!("unlock {OPEN} 00000007")), "ok");

    // What its parent has made is not its own.
    program.call("fork");
    let child = rig.sidecar.welcome().connection;
    program.begin(&format!("lock {OPEN} 00000008"));
    let asked = rig.sidecar.next();
    assert!(asked.connection.is(&child));
    assert_eq!(asked.request, Request::Look { database: OPEN, key: vec![0, 0, 0, 8] });
    asked.connection.reply(asked.request_id, Reply::Proceed);
    assert_eq!(program.answer(), "ok");
}

#[test]
fn nobody_looks_under_a_lock() {
    let mut rig = rig!();
    let (mut program, _connection) = rig.bound_clustered_program(LONG);
    let (open, locking) = (clustered(OPEN), clustered(Database::Locking));
    rig.sidecar.page.set_elsewhere(7);
    assert_eq!(program.call(&format!("lock {locking} {FILE_ID}")), "ok");
    assert_eq!(program.call(&format!("lock {open} 00000007")), "ok", "not asked");
    assert_eq!(program.call(&format!("unlock {open} 00000007")), "ok");
    assert_eq!(program.call(&format!("unlock {locking} {FILE_ID}")), "ok");
    program.begin(&format!("lock {open} 00000007"));
    let asked = rig.sidecar.next();
    assert!(matches!(asked.request, Request::Look { .. }), "{:?}", asked.request);
    asked.connection.reply(asked.request_id, Reply::Proceed);
    assert_eq!(program.answer(), "ok");
}

#[test]
fn a_program_that_is_executed_belongs_to_no_instance() {
    let rig = rig!();
    let mut program = rig.program();
    assert_eq!(program.call(&format!("printenv {}", frame::RUN_DIR_ENV)), "-");
}

#[test]
fn without_a_run_directory_everything_passes() {
    let rig = rig!();
    let mut program = Program::start_unprotected();
    let path = rig.path().join(TCON.file_name());
    assert_eq!(program.call(&format!("open {}", path.display())), "ok");
    assert_eq!(program.call(&store(TCON, "00000001", "aa")), "ok");
    assert_eq!(program.call(&format!("fetch {TCON} 00000001")), "aa");
}

#[test]
fn with_an_unusable_run_directory_everything_passes() {
    let rig = rig!();
    let mut program = Program::start("not/absolute".as_ref());
    let path = rig.path().join(TCON.file_name());
    assert_eq!(program.call(&format!("open {}", path.display())), "ok");
    assert_eq!(program.call(&store(TCON, "00000001", "aa")), "ok");
}

fn is_running(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
