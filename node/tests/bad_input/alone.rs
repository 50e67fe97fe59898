//! What a node needs to itself, its data directory, its id, its run directory; and that it outlives a signal that is
//! meant for others.

use nix::sys::signal::{Signal, kill};

use crate::sidecar::{Sidecar, Site, assert_says, free_endpoint, refused};

/// A node that runs.
fn running(site: &Site) -> Sidecar {
    let sidecar = Sidecar::spawn(site.run());
    sidecar.wait_for_log("a new cluster is formed");
    sidecar
}

#[test]
fn a_data_directory_in_use_is_refused_and_left_alone() {
    let first = Site::alone();
    let mut running = running(&first);
    let mut second = Site::alone();
    second.data_dir = first.data_dir.clone();
    let error = refused(second.run());
    assert_says(
        &error,
        &[&first.data_dir.display().to_string(), "in use by another process", "a directory of its own"],
    );
    running.assert_lives();
    running.stop();
}

#[test]
fn a_second_sidecar_with_the_same_configuration_cannot_listen() {
    let site = Site::alone();
    let mut running = running(&site);
    let error = refused(site.run());
    let address = site.address().to_string();
    assert_says(&error, &["cannot listen at", &address, "is another holdfast running as node 1?"]);
    running.assert_lives();
}

#[test]
fn a_second_sidecar_with_the_same_id_finds_the_first_one_at_its_address() {
    let first = Site::alone();
    let mut running = running(&first);
    let mut second = Site::alone();
    second.members = first.members.clone();
    second.listen = Some(free_endpoint());
    let error = refused(second.run());
    let address = first.address().to_string();
    assert_says(
        &error,
        &["another holdfast (node 1) answers at", &address, "give each its own in [node] id"],
    );
    running.assert_lives();
}

#[test]
fn a_run_directory_in_use_is_refused_and_left_alone() {
    let Some(first) = Site::with_scripted_samba() else { return };
    let mut running = first.start();
    let mut second = Site::with_scripted_samba().expect("there was one before");
    second.run_dir = first.run_dir.clone();
    let error = refused(second.run());
    assert_says(
        &error,
        &[&first.run_dir.display().to_string(), "is another sidecar running?", "[samba] run_dir"],
    );
    running.assert_lives();
    crate::smbd::Smbd::welcome(&first.run_dir);
}

#[test]
fn a_run_directory_that_cannot_be_used_is_named() {
    let Some(mut site) = Site::with_scripted_samba() else { return };
    let file = site.path("a-file");
    std::fs::write(&file, "").expect("a file");
    site.run_dir = file.join("run");
    let error = refused(site.run());
    assert_says(
        &error,
        &["cannot make", &site.run_dir.display().to_string(), "[samba] run_dir", "Not a directory"],
    );
}

#[test]
fn a_hang_up_is_ignored_and_says_why() {
    let site = Site::alone();
    let mut running = running(&site);
    for _ in 0..2 {
        kill(running.pid(), Signal::SIGHUP).expect("it runs");
    }
    running.wait_for_log("SIGHUP is ignored: there are no log files to reopen");
    assert_eq!(site.status()["role"], "leader");
    running.assert_lives();
    running.stop();
}
