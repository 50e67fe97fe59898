//! A disk that takes no more: the node ends and says which directory is full, and what it has acknowledged is there
//! when it is started again with space.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use frame::Reply;

use crate::sidecar::{Ended, Sidecar, Site, assert_says, wait_until};
use crate::smbd::Smbd;

/// More entries than fit anywhere here.
const ENTRIES_MAX: usize = 100_000;

/// Within this time a node whose disk is full must have said so and ended.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// Makes entries until the node takes no more. Returns the shares whose entries it has acknowledged.
fn fill_log(site: &Site, name_len: usize) -> BTreeSet<String> {
    let mut smbd = Smbd::welcome(&site.run_dir);
    let mut acknowledged = BTreeSet::new();
    for number in 0..ENTRIES_MAX {
        let share = format!("{number:0name_len$}");
        match smbd.tree_connect(&share) {
            Ok(Some(Reply::Proceed)) => assert!(acknowledged.insert(share)),
            // Refused, or the end of the connection: nothing was promised.
            Ok(_) | Err(_) => return acknowledged,
        }
    }
    panic!("the disk does not get full")
}

fn assert_says_full(site: &Site, ended: &Ended, cause: &str) {
    assert!(!ended.success);
    ended.assert_no_panic();
    let data_dir = site.data_dir.display().to_string();
    // Not always the last line: the thread that stores the applied state ends by itself, and sled logs that it cannot.
    let error = ended.stderr.lines().rfind(|line| line.starts_with("holdfast: ")).unwrap_or_default();
    assert_says(
        error,
        &["this node cannot go on", &data_dir, "make space there and start the node again", cause],
    );
}

fn assert_all_there(site: &Site, acknowledged: &BTreeSet<String>) {
    let status = site.status();
    let shares = status["shares"].as_array().expect("a list");
    let known: BTreeSet<_> = shares.iter().filter_map(|share| share["share"].as_str()).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|share| !known.contains(share.as_str())).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged entries are lost", lost.len(), acknowledged.len());
}

#[test]
fn a_full_disk_ends_the_node_and_loses_nothing_that_was_acknowledged() {
    let Some(site) = Site::with_scripted_samba() else { return };
    let Some(disk) = Disk::mount(&site.data_dir, "16m") else { return };
    let run = || Sidecar::spawn(disk.enter(&site.run()));

    let sidecar = run();
    sidecar.wait_for_log("waiting for smbd");
    // Registered first, so that the entries are what meets the full disk.
    assert_eq!(Smbd::welcome(&site.run_dir).tree_connect("first").expect("an answer"), Some(Reply::Proceed));
    disk.fill();
    let began = Instant::now();
    let acknowledged = fill_log(&site, 64);
    assert_says_full(&site, &sidecar.wait_for_end(), "No space left on device");
    assert!(began.elapsed() < ENDS_WITHIN, "it took {:?}", began.elapsed());

    // Nothing has changed: it says so again, at once.
    let sidecar = run();
    wait_until(|| sidecar.log().contains("No space left on device"), || sidecar.log());
    let ended = sidecar.wait_for_end();
    assert!(!ended.success);
    ended.assert_no_panic();
    let data_dir = site.data_dir.display().to_string();
    assert_says(
        &ended.stderr,
        &["cannot start on", &data_dir, "make space there", "No space left on device"],
    );

    disk.make_space();
    let sidecar = run();
    sidecar.wait_for_log("waiting for smbd");
    assert_all_there(&site, &acknowledged);
    assert_eq!(Smbd::welcome(&site.run_dir).tree_connect("last").expect("an answer"), Some(Reply::Proceed));
    sidecar.stop();
}

#[test]
fn a_file_that_may_not_grow_ends_the_node_and_loses_nothing_that_was_acknowledged() {
    let Some(site) = Site::with_scripted_samba() else { return };
    // In units of 512 bytes. Without the trap the signal would end the node before it learns of an error.
    let sidecar = Sidecar::spawn(site.run_after("trap '' XFSZ; ulimit -f 2048"));
    sidecar.wait_for_log("waiting for smbd");
    let acknowledged = fill_log(&site, 8000);
    assert_says_full(&site, &sidecar.wait_for_end(), "File too large");

    let sidecar = site.start();
    assert_all_there(&site, &acknowledged);
    sidecar.stop();
}

/// A small disk that only the processes in its mount namespace see. Gone when this is dropped.
struct Disk {
    /// Keeps the namespace.
    keeper: Sidecar,
    path: std::path::PathBuf,
}

impl Disk {
    /// `None`, with a notice, where that is not allowed: to ordinary users, and in most containers.
    fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).expect("a directory");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c"]);
        command
            .arg("mount -t tmpfs -o size=\"$0\" holdfast-test \"$1\" && echo mounted >&2 && exec sleep 600");
        command.arg(size).arg(path);
        let mut keeper = Sidecar::spawn(command);
        let is_mounted = |keeper: &Sidecar| keeper.log().lines().any(|line| line == "mounted");
        wait_until(|| is_mounted(&keeper) || keeper.has_ended(), || "neither mounted nor refused".to_owned());
        if !is_mounted(&keeper) {
            eprintln!("skipped: a small disk cannot be mounted: {}", keeper.log());
            return None;
        }
        Some(Self { keeper, path: path.to_owned() })
    }

    /// The same command, on this disk.
    fn enter(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        // nsenter becomes the command, so signals and exit codes are the command's own.
        inside.arg(format!("--mount=/proc/{}/ns/mnt", self.keeper.pid()));
        inside.arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside
    }

    /// The file that takes all the space there is, as this process can reach it.
    fn ballast(&self) -> std::path::PathBuf {
        let root = Path::new("/proc").join(self.keeper.pid().to_string()).join("root");
        root.join(self.path.strip_prefix("/").expect("an absolute path")).join("ballast")
    }

    fn fill(&self) {
        let mut ballast = File::create(self.ballast()).expect("a file");
        while ballast.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_space(&self) {
        fs::remove_file(self.ballast()).expect("it is there");
    }
}
