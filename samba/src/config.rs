//! Whether an `smb.conf` allows durable handles, asked of Samba's own `testparm`.
//!
//! smbd grants no durable handle on a share where the kernel or POSIX take part in locking; it says so nowhere.
//! Nothing here parses `smb.conf`: includes, defaults and the `[global]` section's share options are testparm's to
//! know.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use statedb::ShareName;
use thiserror::Error;

use crate::process::{self, CommandError};

/// How long one question to testparm may take; it answers in some ten milliseconds.
const TESTPARM_TIMEOUT: Duration = Duration::from_secs(10);

/// What a share needs to give durable handles, and Samba's reason.
const NEEDED: [(&str, bool); 4] = [
    ("kernel oplocks", false),
    ("kernel share modes", false),
    ("posix locking", false),
    ("durable handles", true),
];

/// What Holdfast needs to know of an smbd's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SambaConfig {
    /// Where the volatile databases are.
    pub lock_directory: PathBuf,
    /// The file shares, in the order of the file; those without a path are left out.
    pub shares: Vec<Share>,
}

/// A file share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its name.
    pub name: ShareName,
    /// Its root on this host: what records call the service path.
    pub path: PathBuf,
}

impl SambaConfig {
    /// Reads the configuration and checks that every share for which `is_protected` can give durable handles.
    /// All that is wrong is reported at once.
    pub fn read(smb_conf: &Path, is_protected: impl Fn(&ShareName) -> bool) -> Result<Self, ConfigError> {
        let testparm = Testparm { smb_conf };
        let lock_directory = testparm.parameter("global", "lock directory")?.into();
        let mut shares = Vec::new();
        for section in testparm.sections()? {
            let path = testparm.parameter(&section, "path")?;
            if section != "global" && !path.is_empty() {
                shares.push((section.clone(), Share { name: ShareName::new(&section), path: path.into() }));
            }
        }

        let mut problems = Vec::new();
        for (section, _) in shares.iter().filter(|(_, share)| is_protected(&share.name)) {
            testparm.check_share(section, &mut problems)?;
        }
        if !problems.is_empty() {
            return Err(ConfigError::Wrong { smb_conf: smb_conf.to_owned(), problems: Problems(problems) });
        }
        Ok(Self { lock_directory, shares: shares.into_iter().map(|(_, share)| share).collect() })
    }

    /// The shares that have their root at this service path: usually one. A record does not say which it was.
    pub fn shares_at(&self, service_path: &str) -> impl Iterator<Item = &ShareName> {
        let at_path = move |share: &&Share| share.path == Path::new(service_path);
        self.shares.iter().filter(at_path).map(|share| &share.name)
    }
}

struct Testparm<'a> {
    smb_conf: &'a Path,
}

impl Testparm<'_> {
    fn ask(&self, options: &[&str]) -> Result<String, CommandError> {
        let mut arguments: Vec<&OsStr> = vec![OsStr::new("--suppress-prompt")];
        arguments.extend(options.iter().map(OsStr::new));
        arguments.push(self.smb_conf.as_os_str());
        process::output(OsStr::new("testparm"), &arguments, TESTPARM_TIMEOUT)
    }

    /// The names of all sections, which testparm prints as `[name]`.
    fn sections(&self) -> Result<Vec<String>, CommandError> {
        let listing = self.ask(&[])?;
        let name = |line: &str| Some(line.strip_prefix('[')?.strip_suffix(']')?.to_owned());
        Ok(listing.lines().filter_map(name).collect())
    }

    /// The value that a parameter has in a section, wherever it comes from.
    fn parameter(&self, section: &str, parameter: &str) -> Result<String, CommandError> {
        let section = format!("--section-name={section}");
        let parameter = format!("--parameter-name={parameter}");
        Ok(self.ask(&[&section, &parameter])?.trim().to_owned())
    }

    fn check_share(&self, section: &str, problems: &mut Vec<Problem>) -> Result<(), CommandError> {
        for (option, needed) in NEEDED {
            let found = self.parameter(section, option)?;
            if found != yes_or_no(needed) {
                let share = section.to_owned();
                problems.push(Problem::WrongOption { share, option, found, needed });
            }
        }
        Ok(())
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
