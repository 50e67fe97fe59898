//! `holdfast samba check`: whether this node's Samba is fit for what is promised, before anything is started.
//!
//! Everything is looked at, and everything that is wrong is said at once, with what to change. Nothing is changed, and no
//! sidecar needs to run. What has to be the same on all nodes is compared with what the same command, with `--output
//! json`, has said on the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{ContentArrangement, Table};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use samba::ctdb::Connection;
use samba::identity::{Identity, ShareIdentity};
use samba::preload::Preload;
use samba::tdb::Tdb;
use samba::{Layout, SambaVersion};
use serde::{Deserialize, Serialize};
use statedb::ShareName;

use crate::cli::Output;
use crate::config::{Config, SambaConfig};
use crate::query::print;
use crate::telemetry::chain;

/// Columns of the table where it is not shown on a terminal.
const WIDTH_OF_NO_TERMINAL: u16 = 120;

/// How long ctdbd may take to answer what it knows by itself.
const CTDBD_ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// What to check.
#[derive(Debug)]
pub struct Subject {
    /// The sidecar's configuration.
    pub config: PathBuf,
    /// The library that `smbd` is to preload.
    pub shim: PathBuf,
    /// What other nodes have said, as JSON.
    pub compare: Vec<PathBuf>,
}

/// How something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could; or it could not be looked at.
    Warning,
    /// It does not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Finding {
    what: String,
    verdict: Verdict,
    found: String,
    /// What to do; empty where nothing is.
    advice: String,
}

/// All that was found on a node. What one node prints, another one can read.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    node: u64,
    findings: Vec<Finding>,
    /// What has to be the same on every node; nothing where Samba could not be asked.
    machine_sid: String,
    users: BTreeMap<String, String>,
    shares: BTreeMap<String, ReportedShare>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ReportedShare {
    path: PathBuf,
    device: Option<u64>,
}

/// Checks, and prints what was found.
///
/// # Errors
///
/// If there is a problem, after it was printed; if the configuration or another node's report cannot be read.
pub fn samba(subject: &Subject, output: Output) -> anyhow::Result<()> {
    let config = Config::load(&subject.config)?;
    let Some(samba) = &config.samba else {
        anyhow::bail!("{} has no [samba], so there is nothing to check", subject.config.display());
    };
    let mut findings = Findings::default();
    findings.smbd(samba, &subject.shim);
    findings.run_dir(&samba.run_dir);
    let identity = findings.smb_conf(samba, &subject.shim);
    for path in &subject.compare {
        let other = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let other: Report = serde_json::from_slice(&other).with_context(|| {
            format!("{} is not what `holdfast samba check --output json` prints", path.display())
        })?;
        findings.compare(&identity, other);
    }
    let report = Report::new(config.node.id, findings.0, identity);
    print(match output {
        Output::Json => serde_json::to_string_pretty(&report)?,
        Output::Table => report.table(),
    })?;
    match report.findings.iter().filter(|finding| finding.verdict == Verdict::Problem).count() {
        0 => Ok(()),
        1 => anyhow::bail!("there is a problem"),
        problems => anyhow::bail!("there are {problems} problems"),
    }
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn note(&mut self, what: &str, verdict: Verdict, found: impl Display, advice: impl Display) {
        let (what, found, advice) = (what.to_owned(), found.to_string(), advice.to_string());
        self.0.push(Finding { what, verdict, found, advice });
    }

    fn ok(&mut self, what: &str, found: impl Display) {
        self.note(what, Verdict::Ok, found, "");
    }

    /// The version of smbd, and whether the shim can stand between it and libtdb.
    fn smbd(&mut self, samba: &SambaConfig, shim: &Path) {
        let version = SambaVersion::of_smbd(&samba.smbd);
        match version.and_then(|version| Layout::for_version(&version).map(|layout| (version, layout))) {
            Ok((version, layout)) => {
                self.ok(
                    "smbd",
                    format!("{} is {version}, whose records are known ({layout})", samba.smbd.display()),
                );
            }
            Err(error) => self.note(
                "smbd",
                Verdict::Problem,
                chain(&error),
                "install a Samba that is known, or name it in [samba] smbd",
            ),
        }
        match Preload::ask(&samba.smbd, shim) {
            Ok(Preload::Works) => self.ok("shim", format!("{} can be preloaded", shim.display())),
            Ok(Preload::ShimMissing { why }) => self.note(
                "shim",
                Verdict::Problem,
                format!("{} is not loaded: {why}", shim.display()),
                "install it there or name it with --shim; build it on the oldest system that it is to run on",
            ),
            Ok(Preload::NoLibtdb) => self.note(
                "shim",
                Verdict::Problem,
                format!("{} does not load libtdb.so.1", samba.smbd.display()),
                "use an smbd that links libtdb dynamically, as distributions build it",
            ),
            Ok(Preload::Script) => self.note(
                "shim",
                Verdict::Warning,
                format!("{} is a script, so it could not be seen what it loads", samba.smbd.display()),
                "name the smbd itself in [samba] smbd",
            ),
            Err(error) => self.note("shim", Verdict::Problem, chain(&error), "check [samba] smbd"),
        }
        match Tdb::load() {
            Ok(_) => self.ok("libtdb", "the sidecar can use it"),
            Err(error) => self.note("libtdb", Verdict::Problem, chain(&error), "install libtdb1"),
        }
    }

    fn run_dir(&mut self, run_dir: &Path) {
        // It is made at the start, in a directory that is there.
        let there = run_dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        let in_memory = |kind: FsType| kind == TMPFS_MAGIC;
        match statfs(there).map(|statistics| in_memory(statistics.filesystem_type())) {
            Ok(true) => self.ok("run directory", format!("{} is in memory", run_dir.display())),
            Ok(false) => self.note(
                "run directory",
                Verdict::Warning,
                format!("{} is on a disk, and every smbd process reads in it", run_dir.display()),
                "put [samba] run_dir under /run",
            ),
            Err(error) => self.note(
                "run directory",
                Verdict::Problem,
                format!("{}: {error}", there.display()),
                "check [samba] run_dir",
            ),
        }
    }

    /// What smb.conf says, and who this Samba is.
    fn smb_conf(&mut self, samba: &SambaConfig, shim: &Path) -> Identity {
        let unprotected: BTreeSet<_> =
            samba.unprotected_shares.iter().map(|name| ShareName::new(name)).collect();
        let read = |is_protected: &dyn Fn(&ShareName) -> bool| {
            samba::config::SambaConfig::read(&samba.testparm, &samba.smb_conf, is_protected)
        };
        match read(&|share| !unprotected.contains(share)) {
            Ok(_) => self.ok("smb.conf", "every protected share can give durable handles"),
            Err(samba::config::ConfigError::Wrong { problems, .. }) => {
                for problem in problems.0 {
                    let advice = "change it, or name the share in [samba] unprotected_shares";
                    self.note("smb.conf", Verdict::Problem, problem, advice);
                }
            }
            Err(error) => {
                self.note("smb.conf", Verdict::Problem, chain(&error), "check [samba] smb_conf and testparm");
                return Identity::default();
            }
        }
        // Everything but what is wrong with shares, which was said.
        let Ok(conf) = read(&|_| false) else { return Identity::default() };
        self.running(&conf.pid_directory.join("smbd.pid"), shim);
        let is_reachable = self.topology(&conf);
        for share in &conf.shares {
            if !share.path.is_dir() {
                self.note(
                    "share",
                    Verdict::Warning,
                    format!("{}: there is no directory {} now", share.name, share.path.display()),
                    "right on a node that does not have the storage at the moment; wrong otherwise",
                );
            }
        }
        if !is_reachable {
            self.note(
                "identity",
                Verdict::Warning,
                "not looked at: it is in CTDB's databases",
                "start ctdbd",
            );
            return Identity::default();
        }
        self.identity(samba, &conf)
    }

    /// Whether an smbd that runs already has loaded the shim.
    fn running(&mut self, pid_file: &Path, shim: &Path) {
        let pid = fs::read_to_string(pid_file).ok().and_then(|pid| pid.trim().parse::<u32>().ok());
        // Of a process that has ended nothing is left here but its number.
        let Some((pid, mapped)) =
            pid.and_then(|pid| Some((pid, fs::read_to_string(format!("/proc/{pid}/maps")).ok()?)))
        else {
            return self.ok("running smbd", "none");
        };
        // The kernel names the file itself, not a link to it.
        let shim = fs::canonicalize(shim).unwrap_or_else(|_| shim.to_owned());
        if mapped.lines().any(|line| line.ends_with(&*shim.to_string_lossy())) {
            self.ok("running smbd", format!("process {pid} has loaded the shim"));
        } else {
            self.note(
                "running smbd",
                Verdict::Problem,
                format!("process {pid} runs without the shim: its handles are not protected"),
                "start it with LD_PRELOAD and HOLDFAST_RUN_DIR, as deploy/systemd/smbd.service.d does",
            );
        }
    }

    /// Whether Samba's databases can be reached, and stay one where nodes lose sight of each other.
    fn topology(&mut self, conf: &samba::config::SambaConfig) -> bool {
        let Some(clustering) = &conf.clustering else {
            self.ok("topology", "a separate smbd: one node at a time serves a share");
            return true;
        };
        let socket = &clustering.ctdbd_socket;
        let asked = Connection::open(socket, CTDBD_ANSWERS_WITHIN)
            .and_then(|mut ctdbd| Ok((ctdbd.pnn(), ctdbd.cluster_lock()?, ctdbd.bans_are_allowed()?)));
        let (pnn, lock, bans_are_allowed) = match asked {
            Ok(answer) => answer,
            Err(error) => {
                self.note(
                    "topology",
                    Verdict::Problem,
                    format!("clustering = yes, and ctdbd does not answer: {}", chain(&error)),
                    "start ctdbd, or set \"ctdbd socket\" in smb.conf",
                );
                return false;
            }
        };
        self.ok("topology", format!("node {pnn} of a CTDB cluster, by {}", socket.display()));
        match lock {
            Some(lock) => self.ok("cluster lock", lock),
            None => self.note(
                "cluster lock",
                Verdict::Warning,
                "CTDB has none: a node that is cut off can go on as a cluster of its own",
                "set \"cluster lock\" in the [cluster] section of ctdb.conf, on every node",
            ),
        }
        if bans_are_allowed {
            self.ok("bans", "a node that has hung can be kept from bringing its old records back");
        } else {
            self.note(
                "bans",
                Verdict::Warning,
                "CTDB allows none: a node that has hung can bring records of long ago back",
                "set EnableBans=1 in ctdb.tunables, on every node",
            );
        }
        true
    }

    fn identity(&mut self, samba: &SambaConfig, conf: &samba::config::SambaConfig) -> Identity {
        let tools = samba.testparm.parent().unwrap_or(Path::new(""));
        match Identity::read(tools, &samba.smb_conf, &conf.shares) {
            Ok(identity) if identity.machine_sid.is_empty() => {
                self.note(
                    "identity",
                    Verdict::Problem,
                    "this machine has no SID",
                    "make one with `net setlocalsid`",
                );
                identity
            }
            Ok(identity) => {
                let users = identity.users.len();
                self.ok("identity", format!("{}, {users} users of its own", identity.machine_sid));
                identity
            }
            Err(error) => {
                let advice = "net and pdbedit are expected beside testparm; see [samba] testparm";
                self.note("identity", Verdict::Problem, chain(&error), advice);
                Identity::default()
            }
        }
    }

    fn compare(&mut self, here: &Identity, other: Report) {
        let what = format!("node {}", other.node);
        let differences = here.differences(&other.into_identity());
        if differences.is_empty() {
            self.ok(&what, "the same to a client as this node");
        }
        for difference in differences {
            self.note(&what, Verdict::Problem, &difference, difference.advice());
        }
    }
}

impl Report {
    fn new(node: u64, findings: Vec<Finding>, identity: Identity) -> Self {
        let Identity { machine_sid, users, shares } = identity;
        let reported = |ShareIdentity { path, device }| ReportedShare { path, device };
        let shares = shares.into_iter().map(|(name, share)| (name, reported(share))).collect();
        Self { node, findings, machine_sid, users, shares }
    }

    fn into_identity(self) -> Identity {
        let Self { machine_sid, users, shares, .. } = self;
        let identity = |ReportedShare { path, device }| ShareIdentity { path, device };
        let shares = shares.into_iter().map(|(name, share)| (name, identity(share))).collect();
        Identity { machine_sid, users, shares }
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_HORIZONTAL_ONLY).set_header(["", "checked", "found", "what to do"]);
        table.set_content_arrangement(ContentArrangement::Dynamic);
        if table.width().is_none() {
            table.set_width(WIDTH_OF_NO_TERMINAL);
        }
        for Finding { what, verdict, found, advice } in &self.findings {
            let verdict = match verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Problem => "PROBLEM",
            };
            table.add_row([verdict, what, found, advice]);
        }
        table.to_string()
    }
}
