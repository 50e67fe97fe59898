//! A Samba that cannot be served: missing, unknown, stuck, or configured so that it gives no durable handles.

use std::fs;
use std::path::PathBuf;

use crate::sidecar::{Samba, Sidecar, Site, assert_says, refused, skip_without_samba};

/// A node beside this `smbd`.
fn beside(site: &mut Site, smbd: PathBuf) -> Sidecar {
    site.samba = Some(Samba { smbd, smb_conf: site.path("smb.conf") });
    Sidecar::spawn(site.run())
}

fn refused_smbd(body: &str) -> String {
    let mut site = Site::alone();
    let smbd = site.script("smbd", body);
    let ended = beside(&mut site, smbd.clone()).wait_for_end();
    assert!(!ended.success);
    ended.assert_no_panic();
    assert_says(&ended.stderr, &["cannot serve the smbd on this node"]);
    ended.stderr
}

#[test]
fn an_unknown_version_is_refused_by_name_with_those_that_are_known() {
    let error = refused_smbd("echo Version 4.99.0");
    assert_says(&error, &["Samba 4.99.0", "4.17.x", "install one of these"]);
}

#[test]
fn something_else_than_smbd_is_told_by_what_it_says() {
    assert_says(&refused_smbd("echo GNU coreutils 9.1"), &["GNU coreutils 9.1", "smbd -V"]);
    assert_says(&refused_smbd("echo cannot load libfoo >&2; exit 127"), &["smbd -V", "cannot load libfoo"]);
}

#[test]
fn a_stuck_smbd_is_not_waited_for_for_ever() {
    assert_says(&refused_smbd("exec sleep 600"), &["smbd -V", "has not ended within 10s"]);
}

#[test]
fn a_missing_smbd_is_named() {
    let mut site = Site::alone();
    let smbd = site.path("no-smbd");
    let error = beside(&mut site, smbd.clone()).wait_for_end().stderr;
    assert_says(
        &error,
        &[&smbd.display().to_string(), "No such file", "check that it is installed and where"],
    );
}

#[test]
fn a_missing_testparm_is_named() {
    let mut site = Site::alone();
    let smbd = site.script("smbd", "echo Version 4.17.12-Test");
    site.samba = Some(Samba { smbd, smb_conf: site.path("smb.conf") });
    let mut command = site.run();
    // The script is found by its path, and needs nothing but a builtin of the shell.
    command.env("PATH", site.path("nothing-here"));
    assert_says(&refused(command), &["testparm", "No such file"]);
}

/// A node beside the real Samba of this machine, with this `smb.conf`.
fn beside_real_samba() -> Option<Site> {
    let found =
        ["/usr/sbin/smbd", "/usr/local/sbin/smbd"].map(PathBuf::from).into_iter().find(|smbd| smbd.exists());
    let Some(smbd) = found else { return skip_without_samba("no smbd: install samba") };
    let mut site = Site::alone();
    site.samba = Some(Samba { smbd, smb_conf: site.path("smb.conf") });
    Some(site)
}

#[test]
fn every_wrong_option_of_every_protected_share_is_said_at_once() {
    let Some(site) = beside_real_samba() else { return };
    let conf = site.path("smb.conf");
    let sound = "kernel oplocks = no\nkernel share modes = no\nposix locking = no\n";
    let text = format!(
        "[global]\nlock directory = {dir}\n\
         [kernel]\npath = /srv/kernel\nkernel oplocks = yes\nkernel share modes = yes\n\
         [sound]\npath = /srv/sound\n{sound}\
         [no handles]\npath = /srv/none\n{sound}durable handles = no\n",
        dir = site.path("").display()
    );
    fs::write(&conf, text).expect("a configuration");
    let error = refused(site.run());
    assert_says(
        &error,
        &[
            &conf.display().to_string(),
            "[kernel] has \"kernel oplocks = Yes\"; set \"kernel oplocks = no\"",
            "[kernel] has \"kernel share modes = Yes\"; set \"kernel share modes = no\"",
            // By default.
            "[kernel] has \"posix locking = Yes\"; set \"posix locking = no\"",
            "[no handles] has \"durable handles = No\"; set \"durable handles = yes\"",
        ],
    );
    assert!(!error.contains("[sound]"), "a sound share is called wrong: {error}");
}

#[test]
fn a_missing_smb_conf_is_named() {
    let Some(site) = beside_real_samba() else { return };
    assert_says(&refused(site.run()), &["testparm", &site.path("smb.conf").display().to_string()]);
}
