//! Hostile bytes on `shim.sock`: whoever sends them loses his connection, the sidecar lives and serves the others.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use frame::frame::{MAX_FRAME, PROTOCOL};
use frame::{Database, Record, RecordKey, Reply, Request, TdbError};

use crate::sidecar::{Sidecar, Site, assert_says, is_root};
use crate::smbd::{Smbd, encoded, hello};

/// Tells the child of [`a_stranger_is_not_let_in`] where to knock.
const STRANGER_RUN_DIR: &str = "HOLDFAST_TEST_STRANGER_RUN_DIR";

/// By when somebody who behaves is served, however many others say nothing.
const WELCOME_WITHIN: Duration = Duration::from_secs(20);

/// Asserts that a connection is closed without an answer.
#[track_caller]
fn assert_closed(smbd: &mut Smbd, after: &str) {
    assert_eq!(smbd.reply().expect("an end of the connection"), None, "after {after}");
}

/// Asserts that the sidecar serves who behaves.
#[track_caller]
fn assert_serves(sidecar: &mut Sidecar, site: &Site) {
    sidecar.assert_lives();
    let mut smbd = Smbd::welcome(&site.run_dir);
    assert_eq!(smbd.tree_connect("data").expect("an answer"), Some(Reply::Proceed));
}

#[test]
fn what_is_no_frame_costs_the_connection_and_nothing_else() {
    let Some(site) = Site::with_scripted_samba() else { return };
    let mut sidecar = site.start();
    let mut flags = encoded(&hello(PROTOCOL), 1);
    flags[5] = 1;
    let store = Request::Store { database: Database::Locking, key: vec![0; 24], value: vec![0; 132] };
    let mut truncated_field = encoded(&store, 1);
    truncated_field[13..17].copy_from_slice(&u32::MAX.to_le_bytes());
    let length = |length: u32| length.to_le_bytes().to_vec();
    let hostile: [(&str, Vec<u8>); 7] = [
        ("text", b"GET / HTTP/1.1\r\nHost: holdfast\r\n\r\n".to_vec()),
        ("a length of zero", length(0)),
        ("a length beyond every frame", length(u32::try_from(MAX_FRAME + 1).expect("it fits"))),
        ("the largest length", length(u32::MAX)),
        ("unknown flags", flags),
        ("a field longer than its frame", truncated_field),
        ("a message before the hello", encoded(&store, 1)),
    ];
    for (what, bytes) in hostile {
        let mut smbd = Smbd::connect(&site.run_dir).expect("it listens");
        smbd.send(&bytes).expect("it is read");
        assert_closed(&mut smbd, what);
    }
    assert_serves(&mut sidecar, &site);
    let pid = std::process::id();
    for text in
        [&format!("came from process {pid}"), "frame length 0 is outside", "sent a store where a hello was"]
    {
        sidecar.wait_for_log(text);
    }
}

#[test]
fn a_frame_that_is_cut_off_is_forgotten() {
    let Some(site) = Site::with_scripted_samba() else { return };
    let mut sidecar = site.start();
    let frame = encoded(&hello(PROTOCOL), 1);
    for end in [1, 4, frame.len() - 1] {
        let mut smbd = Smbd::connect(&site.run_dir).expect("it listens");
        smbd.send(&frame[..end]).expect("it is read");
    }
    assert_serves(&mut sidecar, &site);
}

#[test]
fn another_version_of_the_protocol_is_refused_with_the_remedy() {
    let Some(site) = Site::with_scripted_samba() else { return };
    let mut sidecar = site.start();
    let mut smbd = Smbd::connect(&site.run_dir).expect("it listens");
    let reply = smbd.ask(&hello(PROTOCOL + 1)).expect("an answer");
    assert_eq!(reply, Some(Reply::Refuse { tdb_error: TdbError::Io }));
    let theirs = format!("theirs={} ours={PROTOCOL}", PROTOCOL + 1);
    assert_says(&sidecar.log(), &[&theirs, "install both from one release and restart smbd"]);
    assert_serves(&mut sidecar, &site);
}

#[test]
fn messages_in_the_wrong_place_cost_the_connection_and_nothing_else() {
    let Some(site) = Site::with_scripted_samba() else { return };
    let mut sidecar = site.start();
    let record = Record { database: Database::Locking, key: vec![0; 24], value: None };
    let records = Request::Records { records: vec![record] };
    for unasked in [hello(PROTOCOL), records.clone()] {
        let mut smbd = Smbd::welcome(&site.run_dir);
        // Records may come ahead of a request, once.
        smbd.send(&encoded(&records, 0)).expect("the connection is open");
        assert_eq!(smbd.ask(&unasked).expect("an end of the connection"), None, "{unasked:?}");
    }
    sidecar.wait_for_log("sent records where a question was expected");
    assert_serves(&mut sidecar, &site);
}

#[test]
fn what_smbd_does_anyhow_is_let_through_whatever_it_is() {
    let Some(site) = Site::with_scripted_samba() else { return };
    let mut sidecar = site.start();
    let mut smbd = Smbd::welcome(&site.run_dir);
    for message in [vec![], vec![0xff; 33], vec![0; 4096]] {
        let asked = Request::Break { receiver: [0xff; 24], message };
        assert_eq!(smbd.ask(&asked).expect("an answer"), Some(Reply::Proceed), "{asked:?}");
    }
    let unknown = Request::Position { share_file_id: u64::MAX, position: u64::MAX };
    assert_eq!(smbd.ask(&unknown).expect("an answer"), Some(Reply::Proceed));
    sidecar.wait_for_log("makes no sense; an smbd of another version?");
    assert_serves(&mut sidecar, &site);
}

#[test]
fn records_that_cannot_be_understood_are_refused() {
    let Some(site) = Site::with_scripted_samba() else { return };
    let mut sidecar = site.start();
    let mut smbd = Smbd::welcome(&site.run_dir);
    for database in [Database::OpenGlobal, Database::TconGlobal] {
        for value in [vec![], vec![0xff; 3], vec![0xff; 4096], vec![0; 400]] {
            let store = Request::Store { database, key: vec![0, 0, 0, 1], value: value.clone() };
            let reply = smbd.ask(&store).expect("an answer");
            let corrupt = Reply::Refuse { tdb_error: TdbError::Corrupt };
            assert_eq!(reply, Some(corrupt), "{database}: {} bytes", value.len());
        }
    }
    // Nothing of ours is behind these keys, whatever they and the values are.
    for database in [Database::Locking, Database::Brlock, Database::Leases] {
        for key in [vec![], vec![0xff; 24], vec![0xff; 32], vec![0; 1000]] {
            let store = Request::Store { database, key: key.clone(), value: vec![0xff; 7] };
            assert_eq!(smbd.ask(&store).expect("an answer"), Some(Reply::Proceed));
            let delete = Request::Delete { database, key };
            assert_eq!(smbd.ask(&delete).expect("an answer"), Some(Reply::Proceed));
        }
    }
    assert_serves(&mut sidecar, &site);
}

/// A survivor might just be putting back what `smbd` has purged, and `smbd` would find it: what it is told must not depend
/// on that.
#[test]
fn a_claim_of_an_open_that_somebody_has_purged_is_refused() {
    let Some(site) = Site::with_scripted_samba() else { return };
    let mut sidecar = site.start();
    let mut smbd = Smbd::welcome(&site.run_dir);
    assert_eq!(smbd.tree_connect("data").expect("an answer"), Some(Reply::Proceed));

    let claimed = open_global(include_str!("../../../samba/testdata/v4_17/rwh_v2_locks_reclaimed.txt"));
    let away = open_global(include_str!("../../../samba/testdata/v4_17/rwh_v2_locks_disconnected.txt"));
    assert_eq!(claimed.key, away.key, "one open");
    let mut reply = smbd.ask(&Request::Store {
        database: Database::OpenGlobal,
        key: claimed.key,
        value: claimed.value.expect("it is there"),
    });
    let mut asked_for = Vec::new();
    while let Ok(Some(Reply::Need { keys })) = reply {
        let records = keys.into_iter().map(|RecordKey { database, key }| {
            asked_for.push(database);
            // All that is left of it.
            let value = away.value.clone().filter(|_| database == Database::OpenGlobal);
            Record { database, key, value }
        });
        reply = smbd.give(records.collect());
    }
    assert_eq!(reply.expect("an answer"), Some(Reply::Refuse { tdb_error: TdbError::NoExist }));
    assert!(asked_for.contains(&Database::Locking), "refused without a look: {asked_for:?}");
    assert_serves(&mut sidecar, &site);
}

/// An open's own record, as a real `smbd` has stored it.
fn open_global(situation: &str) -> Record {
    let unhex = |text: &str| {
        let digits = text.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).expect("hexadecimal"));
        digits.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal")).collect::<Vec<_>>()
    };
    let line = situation.lines().find_map(|line| line.strip_prefix("smbXsrv_open_global.tdb "));
    let (key, value) = line.and_then(|line| line.split_once(' ')).expect("a key and a value");
    Record { database: Database::OpenGlobal, key: unhex(key), value: Some(unhex(value)) }
}

#[test]
fn a_stranger_is_not_let_in() {
    if !is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let Some(site) = Site::with_scripted_samba() else { return };
    let mut sidecar = site.start();
    // A process of its own, because a uid belongs to a process. The test binary must be within its reach.
    let program = site.path("stranger");
    std::fs::copy(std::env::current_exe().expect("this program"), &program).expect("a copy");
    let mut child = Command::new(&program);
    child.args(["--exact", "hostile_frames::stranger", "--ignored", "--nocapture"]);
    child.env(STRANGER_RUN_DIR, &site.run_dir).current_dir("/").stdin(Stdio::null());
    let nobody = nix::unistd::User::from_name("nobody").expect("a user database").expect("nobody");
    child.gid(nobody.gid.as_raw()).uid(nobody.uid.as_raw());
    let output = child.output().expect("it can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_says(&sidecar.log(), &["a stranger says that it is smbd", &format!("uid={}", nobody.uid)]);
    let status = site.status();
    assert_eq!(status["nodes"][0]["incarnation"], 0, "the stranger was registered");
    assert_serves(&mut sidecar, &site);
}

#[test]
#[ignore = "runs as a child of a_stranger_is_not_let_in"]
fn stranger() {
    let run_dir = std::env::var(STRANGER_RUN_DIR).expect("started by its test");
    let mut smbd = Smbd::connect(run_dir.as_ref()).expect("the socket is open to everybody");
    assert_eq!(smbd.ask(&hello(PROTOCOL)).expect("an answer"), Some(Reply::Fence));
}

#[test]
fn connections_that_say_nothing_keep_nobody_out() {
    let Some(site) = Site::with_scripted_samba() else { return };
    // Fewer descriptors than there will be connections.
    let mut sidecar = Sidecar::spawn(site.run_after("ulimit -n 512"));
    sidecar.wait_for_log("waiting for smbd");

    let began = Instant::now();
    let mut silent = Vec::new();
    while silent.len() < 1200 {
        match Smbd::connect(&site.run_dir) {
            Ok(connection) => silent.push(connection),
            // The backlog is full: those before are being dealt with.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => panic!("{error} after {} connections", silent.len()),
        }
    }
    assert_serves(&mut sidecar, &site);
    let waited = began.elapsed();
    assert!(waited < WELCOME_WITHIN, "served after {waited:?}");
    assert_eq!(site.status()["role"], "leader");
    // The first ones have been sent away by now, or soon are.
    assert_closed(&mut silent[0], "silence");
    drop(silent);
    sidecar.stop();
}

#[test]
fn a_soft_limit_of_open_files_does_not_limit_the_smb_service() {
    let Some(site) = Site::with_scripted_samba() else { return };
    let mut sidecar = Sidecar::spawn(site.run_after("ulimit -Sn 64"));
    sidecar.wait_for_log("waiting for smbd");
    let welcome: Vec<_> = (0..100).map(|_| Smbd::welcome(&site.run_dir)).collect();
    assert_serves(&mut sidecar, &site);
    drop(welcome);
}
