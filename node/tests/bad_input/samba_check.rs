//! `holdfast samba check`: what it says of a Samba that is fit, and of one that is not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::sidecar::{Ended, Samba, Site, assert_says, end, holdfast, skip_without_samba, wait_until};

/// A node beside the real Samba of this machine, whose `smb.conf` has these shares.
fn site(shares: &str) -> Option<Site> {
    let smbd = PathBuf::from("/usr/sbin/smbd");
    if !smbd.exists() {
        return skip_without_samba("no smbd: install samba");
    }
    let mut site = Site::alone();
    let smb_conf = site.path("smb.conf");
    let directories = ["lock", "private", "state", "cache", "pid"].map(|name| {
        let dir = site.path(name);
        fs::create_dir(&dir).expect("a directory");
        let option = if name == "private" { "private dir".to_owned() } else { format!("{name} directory") };
        format!("{option} = {}\n", dir.display())
    });
    let text = format!(
        "[global]\nnetbios name = HOLDFAST\nlog file = {}\n{}",
        site.path("log").display(),
        directories.concat()
    );
    fs::write(&smb_conf, text + shares).expect("a configuration");
    site.samba = Some(Samba { smbd, smb_conf });
    Some(site)
}

fn sound_share(site: &Site) -> String {
    format!(
        "[data]\npath = {}\nkernel oplocks = no\nkernel share modes = no\nposix locking = no\n",
        site.path("").display()
    )
}

/// Some library: the loader does not mind which it preloads.
fn library() -> PathBuf {
    let found = [
        "/lib/x86_64-linux-gnu/libz.so.1",
        "/usr/lib/x86_64-linux-gnu/libtdb.so.1",
        "/usr/lib64/libtdb.so.1",
    ];
    found.into_iter().map(PathBuf::from).find(|path| path.exists()).expect("libtdb is installed with smbd")
}

fn check(site: &Site, shim: &Path, more: &[&Path]) -> Ended {
    let mut command = holdfast(["samba", "check", "--output", "json", "--config"]);
    command.arg(site.config()).arg("--shim").arg(shim);
    for other in more {
        command.arg("--compare").arg(other);
    }
    end(command)
}

fn report(ended: &Ended) -> Value {
    ended.assert_no_panic();
    serde_json::from_str(&ended.stdout).expect("JSON on standard output")
}

/// What was found of something, as "verdict: found → advice".
fn findings(report: &Value, what: &str) -> Vec<String> {
    let findings = report["findings"].as_array().expect("findings");
    let of_it = findings.iter().filter(|finding| finding["what"] == what);
    of_it
        .map(|finding| format!("{}: {} → {}", finding["verdict"], finding["found"], finding["advice"]))
        .collect()
}

#[test]
fn a_samba_that_is_fit_passes_and_agrees_with_itself() {
    let Some(site) = site("") else { return };
    let conf = site.path("smb.conf");
    fs::write(&conf, fs::read_to_string(&conf).expect("it is there") + &sound_share(&site))
        .expect("it is ours");
    let ended = check(&site, &library(), &[]);
    assert!(ended.success, "{}{}", ended.stdout, ended.stderr);
    let other = site.path("other.json");
    fs::write(&other, &ended.stdout).expect("a report");
    let ended = check(&site, &library(), &[&other]);
    assert!(ended.success, "{}{}", ended.stdout, ended.stderr);
    let report = report(&ended);
    assert_eq!(findings(&report, "node 1").len(), 1);
    for what in ["smbd", "shim", "libtdb", "smb.conf", "running smbd", "topology", "identity"] {
        assert!(findings(&report, what)[0].starts_with("\"ok\""), "{what}: {report:#}");
    }
}

#[test]
fn everything_that_is_wrong_is_said_with_what_to_do() {
    let Some(site) = site("[bad]\npath = /nonexistent\nkernel oplocks = yes\ndurable handles = no\n") else {
        return;
    };
    let conf = site.path("smb.conf");
    let clustered = fs::read_to_string(&conf).expect("it is there").replace(
        "[global]\n",
        &format!("[global]\nclustering = yes\nctdbd socket = {}\n", site.path("no-ctdbd").display()),
    );
    fs::write(&conf, clustered).expect("it is ours");
    let ended = check(&site, &site.path("no-shim.so"), &[]);
    assert!(!ended.success);
    assert_says(&ended.stderr, &["problems"]);
    let report = report(&ended);
    assert_says(&findings(&report, "shim").concat(), &["problem", "no-shim.so", "--shim"]);
    assert_says(
        &findings(&report, "smb.conf").concat(),
        &["kernel oplocks = Yes", "durable handles = No", "unprotected_shares"],
    );
    assert_says(&findings(&report, "topology").concat(), &["no-ctdbd", "start ctdbd"]);
    assert_says(&findings(&report, "share").concat(), &["warning", "/nonexistent"]);
}

#[test]
fn another_node_with_another_sid_is_told() {
    let Some(site) = site("") else { return };
    let mut other = report(&check(&site, &library(), &[]));
    other["node"] = 2.into();
    other["machine_sid"] = "S-1-5-21-9-9-9".into();
    let path = site.path("other.json");
    fs::write(&path, other.to_string()).expect("a report");
    let ended = check(&site, &library(), &[&path]);
    assert!(!ended.success);
    assert_says(
        &findings(&report(&ended), "node 2").concat(),
        &["problem", "S-1-5-21-9-9-9", "net setlocalsid"],
    );
}

#[test]
fn what_is_no_report_is_refused_by_name() {
    let Some(site) = site("") else { return };
    let path = site.path("other.json");
    fs::write(&path, "{\"node\": \"two\"}").expect("a file");
    let ended = check(&site, &library(), &[&path]);
    assert!(!ended.success);
    assert_says(&ended.stderr, &[&path.display().to_string(), "holdfast samba check --output json"]);
}

#[test]
fn an_smbd_that_runs_without_the_shim_is_told() {
    let Some(site) = site("") else { return };
    let found_with = |environment: &[(&str, &Path)]| {
        let mut running =
            Command::new("sleep").arg("60").envs(environment.iter().copied()).spawn().expect("sleep");
        fs::write(site.path("pid/smbd.pid"), format!("{}\n", running.id())).expect("a pid file");
        // It has loaded what it preloads when it does not run this test's program any more.
        let program = format!("/proc/{}/exe", running.id());
        let is_sleep = || fs::read_link(&program).is_ok_and(|program| program.ends_with("sleep"));
        wait_until(is_sleep, || "sleep does not run".to_owned());
        let of_it = || findings(&report(&check(&site, &library(), &[])), "running smbd").concat();
        // The loader may still be at it.
        let is_settled = || environment.is_empty() || of_it().starts_with("\"ok\"");
        wait_until(is_settled, || "the preloaded library is not seen".to_owned());
        let found = of_it();
        running.kill().and_then(|()| running.wait()).expect("it is ours");
        found
    };
    assert_says(&found_with(&[]), &["problem", "without the shim", "LD_PRELOAD"]);
    assert_says(&found_with(&[("LD_PRELOAD", &library())]), &["ok", "has loaded the shim"]);
    fs::remove_file(site.path("pid/smbd.pid")).expect("it is ours");
    assert_says(&findings(&report(&check(&site, &library(), &[])), "running smbd").concat(), &["ok", "none"]);
}
