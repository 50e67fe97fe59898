//! Whether an `smb.conf` allows durable handles, asked of Samba's own `testparm`.
//!
//! smbd grants no durable handle on a share where the kernel or POSIX take part in locking; it says so nowhere.
//! Nothing here parses `smb.conf`: includes, defaults and the `[global]` section's share options are testparm's to
//! know.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use statedb::ShareName;
use thiserror::Error;

use crate::process::{self, CommandError};

/// How long testparm may take; it answers in some twenty milliseconds.
const TESTPARM_TIMEOUT: Duration = Duration::from_secs(10);

/// What a share needs to give durable handles, and Samba's reason.
const NEEDED: [(&str, bool); 4] = [
    ("kernel oplocks", false),
    ("kernel share modes", false),
    ("posix locking", false),
    ("durable handles", true),
];

/// Samba's own way to keep opens, since 4.25. With it smbd's databases have records of another form, and its shares of that
/// kind grant no durable handles.
const PERSISTENT_HANDLES: &str = "persistent handles";

/// What Holdfast needs to know of an smbd's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SambaConfig {
    /// Where the volatile databases are. Where [`Self::clustering`] is set, CTDB has them elsewhere.
    pub lock_directory: PathBuf,
    /// Where smbd writes its process id while it runs, as `smbd.pid`.
    pub pid_directory: PathBuf,
    /// Set where this smbd is one of a CTDB cluster.
    pub clustering: Option<Clustering>,
    /// The file shares, in the order of the file; those without a path are left out.
    pub shares: Vec<Share>,
}

/// How an smbd reaches its CTDB cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clustering {
    /// The socket of this node's ctdbd.
    pub ctdbd_socket: PathBuf,
}

/// A file share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its name.
    pub name: ShareName,
    /// Its root on this host: what records call the service path.
    pub path: PathBuf,
    /// Whether Samba's module `fileid` makes the file ids, so that device numbers need not agree between nodes.
    pub maps_file_ids: bool,
}

impl SambaConfig {
    /// Asks `testparm` about `smb_conf`, and checks that every share for which `is_protected` can give durable handles.
    /// All that is wrong is reported at once. Blocks for at most ten seconds.
    pub fn read(
        testparm: &Path,
        smb_conf: &Path,
        is_protected: impl Fn(&ShareName) -> bool,
    ) -> Result<Self, ConfigError> {
        let dump = Dump::of(testparm, smb_conf)?;
        let ctdbd_socket = || dump.parameter(GLOBAL, "ctdbd socket").into();
        let clustering =
            dump.is_set(GLOBAL, "clustering").then(|| Clustering { ctdbd_socket: ctdbd_socket() });
        let mut shares = Vec::new();
        let mut problems = Vec::new();
        if dump.is_set(GLOBAL, PERSISTENT_HANDLES) {
            problems.push(dump.wrong_option(GLOBAL, PERSISTENT_HANDLES, false));
        }
        for section in dump.shares() {
            let share = Share {
                name: ShareName::new(section),
                path: dump.parameter(section, "path").into(),
                maps_file_ids: dump
                    .parameter(section, "vfs objects")
                    .split_whitespace()
                    .any(|name| name == "fileid"),
            };
            if is_protected(&share.name) {
                problems.extend(dump.wrong_options(section));
            }
            shares.push(share);
        }
        if !problems.is_empty() {
            return Err(ConfigError::Wrong { smb_conf: smb_conf.to_owned(), problems: Problems(problems) });
        }
        Ok(Self {
            lock_directory: dump.parameter(GLOBAL, "lock directory").into(),
            pid_directory: dump.parameter(GLOBAL, "pid directory").into(),
            clustering,
            shares,
        })
    }

    /// The shares that have their root at this service path: usually one. A record does not say which it was.
    pub fn shares_at(&self, service_path: &str) -> impl Iterator<Item = &ShareName> {
        let at_path = move |share: &&Share| share.path == Path::new(service_path);
        self.shares.iter().filter(at_path).map(|share| &share.name)
    }
}

/// The section that holds the parameters of the server, and the defaults of those of its shares.
const GLOBAL: &str = "global";

/// All that testparm says of a configuration: every parameter in `[global]`, and in each share's section those that
/// are not as there.
struct Dump {
    /// In the order of the file.
    sections: Vec<(String, BTreeMap<String, String>)>,
}

impl Dump {
    fn of(testparm: &Path, smb_conf: &Path) -> Result<Self, CommandError> {
        let arguments = [OsStr::new("--suppress-prompt"), OsStr::new("--verbose"), smb_conf.as_os_str()];
        Ok(Self::parse(&process::output(testparm.as_os_str(), &arguments, TESTPARM_TIMEOUT)?))
    }

    fn parse(printed: &str) -> Self {
        let mut sections: Vec<(String, BTreeMap<String, String>)> = Vec::new();
        for line in printed.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                sections.push((name.to_owned(), BTreeMap::new()));
            } else if let (Some((_, parameters)), Some((name, value))) =
                (sections.last_mut(), line.split_once('='))
            {
                parameters.insert(name.trim().to_owned(), value.trim().to_owned());
            }
        }
        Self { sections }
    }

    /// The sections of file shares.
    fn shares(&self) -> impl Iterator<Item = &str> {
        let names = self.sections.iter().map(|(name, _)| name.as_str());
        names.filter(|name| *name != GLOBAL && !self.parameter(name, "path").is_empty())
    }

    /// The value that a parameter has in a section, wherever it comes from; empty if testparm knows none.
    fn parameter(&self, section: &str, parameter: &str) -> &str {
        let in_section = |wanted: &str| {
            let (_, parameters) = self.sections.iter().find(|(name, _)| name == wanted)?;
            parameters.get(parameter).map(String::as_str)
        };
        in_section(section).or_else(|| in_section(GLOBAL)).unwrap_or_default()
    }

    fn is_set(&self, section: &str, parameter: &str) -> bool {
        self.parameter(section, parameter) == yes_or_no(true)
    }

    fn wrong_options(&self, section: &str) -> impl Iterator<Item = Problem> {
        NEEDED.into_iter().filter_map(move |(option, needed)| {
            let found = self.parameter(section, option);
            (found != yes_or_no(needed)).then(|| self.wrong_option(section, option, needed))
        })
    }

    fn wrong_option(&self, section: &str, option: &'static str, needed: bool) -> Problem {
        let found = self.parameter(section, option).to_owned();
        Problem::WrongOption { share: section.to_owned(), option, found, needed }
    }
}

/// As testparm prints a boolean.
fn yes_or_no(value: bool) -> &'static str {
    if value { "Yes" } else { "No" }
}

/// The configuration cannot be read or does not allow durable handles.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// testparm gives no answer. It is part of every Samba (on Debian of the package samba-common-bin).
    #[error("the configuration of Samba cannot be read")]
    Testparm(#[from] CommandError),
    /// These things must change before durable handles can be protected.
    #[error("{} does not allow durable handles:{problems}", smb_conf.display())]
    Wrong {
        /// The configuration file.
        smb_conf: PathBuf,
        /// Everything that is wrong.
        problems: Problems,
    },
}

/// One or several things that are wrong; printed one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// An option has a value with which smbd grants no durable handle.
    #[error("[{share}] has \"{option} = {found}\"; set \"{option} = {}\"", if *needed { "yes" } else { "no" })]
    WrongOption {
        /// The share's section.
        share: String,
        /// The option.
        option: &'static str,
        /// The value it has, perhaps by default.
        found: String,
        /// The value it needs.
        needed: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What testparm 4.17 prints, in short.
    const PRINTED: &str = "\
[global]
\tclustering = Yes
\tctdbd socket = /run/ctdb/ctdbd.socket
\tdurable handles = Yes
\tkernel oplocks = No
\tkernel share modes = No
\tlock directory = /run/samba
\tpath =\x20
\tposix locking = No

[data]
\tpath = /srv/a = b

[homes]
\tbrowseable = No

[scratch]
\tposix locking = Yes
\tpath = /srv/scratch
";

    #[test]
    fn a_share_has_what_is_set_for_all_unless_it_says_otherwise() {
        let dump = Dump::parse(PRINTED);
        assert_eq!(dump.shares().collect::<Vec<_>>(), ["data", "scratch"]);
        assert_eq!(dump.parameter("data", "path"), "/srv/a = b");
        assert_eq!(dump.parameter("data", "lock directory"), "/run/samba");
        assert!(dump.is_set(GLOBAL, "clustering"));
        assert_eq!(dump.wrong_options("data").count(), 0);
        let wrong: Vec<_> = dump.wrong_options("scratch").map(|problem| problem.to_string()).collect();
        assert_eq!(wrong, ["[scratch] has \"posix locking = Yes\"; set \"posix locking = no\""]);
    }
}
