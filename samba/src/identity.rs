//! Who this Samba is: what has to be the same on every node, because Samba gives an open back only to the user who
//! had it, on the file that it was.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Share;
use crate::process::{self, CommandError};

/// How long `net` and `pdbedit` may take. They answer in some ten milliseconds, or in seconds with many users.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What has to be the same on every node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The SID of the machine, which the SIDs of its own users begin with.
    pub machine_sid: String,
    /// The SIDs of the users in this machine's own user database.
    pub users: BTreeMap<String, String>,
    /// The file shares.
    pub shares: BTreeMap<String, ShareIdentity>,
}

/// What of a share has to be the same on every node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareIdentity {
    /// Its root.
    pub path: PathBuf,
    /// The device number of its root, which is part of each file's id. `None` where the file system is not there now, and
    /// where Samba makes file ids that do not depend on it.
    pub device: Option<u64>,
}

impl Identity {
    /// Asks Samba's own tools, which are in the directory `tools`. Blocks for at most two minutes.
    pub fn read(tools: &Path, smb_conf: &Path, shares: &[Share]) -> Result<Self, CommandError> {
        let configfile = [OsStr::new("--configfile"), smb_conf.as_os_str()];
        let ask = |tool: &str, arguments: &[&str]| {
            let arguments: Vec<_> = arguments.iter().map(OsStr::new).chain(configfile).collect();
            process::output(tools.join(tool).as_os_str(), &arguments, TIMEOUT)
        };
        let machine_sid = sid_in(&ask("net", &["getlocalsid"])?);
        let users = users_in(&ask("pdbedit", &["--list", "--verbose"])?);
        let shares = shares.iter().map(|share| (share.name.as_str().to_owned(), ShareIdentity::of(share)));
        Ok(Self { machine_sid, users, shares: shares.collect() })
    }

    /// What is not the same on another node.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let mut differences = Vec::new();
        if self.machine_sid != other.machine_sid {
            differences.push(Difference::MachineSid {
                here: self.machine_sid.clone(),
                there: other.machine_sid.clone(),
            });
        }
        let users: BTreeSet<_> = self.users.keys().chain(other.users.keys()).collect();
        for user in users {
            let (here, there) = (self.users.get(user).cloned(), other.users.get(user).cloned());
            if here != there {
                differences.push(Difference::User { user: user.clone(), here, there });
            }
        }
        for (share, here) in &self.shares {
            let Some(there) = other.shares.get(share) else {
                differences.push(Difference::NoShare { share: share.clone() });
                continue;
            };
            if here.path != there.path {
                let (here, there) = (here.path.clone(), there.path.clone());
                differences.push(Difference::Path { share: share.clone(), here, there });
            }
            if let (Some(here), Some(there)) = (here.device, there.device)
                && here != there
            {
                differences.push(Difference::Device { share: share.clone(), here, there });
            }
        }
        differences
    }
}

impl ShareIdentity {
    fn of(share: &Share) -> Self {
        let metadata = std::fs::metadata(&share.path).ok().filter(|_| !share.maps_file_ids);
        Self { path: share.path.clone(), device: metadata.map(|metadata| metadata.dev()) }
    }
}

/// The SID in what `net getlocalsid` prints: `SID for domain NAME is: S-1-5-…`.
fn sid_in(printed: &str) -> String {
    let sid = printed.lines().find_map(|line| line.rsplit_once("is: "));
    sid.map(|(_, sid)| sid.trim().to_owned()).unwrap_or_default()
}

/// The users in what `pdbedit` prints: a block of lines for each, with `Unix username:` before `User SID:`.
fn users_in(printed: &str) -> BTreeMap<String, String> {
    let mut users = BTreeMap::new();
    let mut name = None;
    for (field, value) in printed.lines().filter_map(|line| line.split_once(':')) {
        match field.trim() {
            "Unix username" => name = Some(value.trim().to_owned()),
            "User SID" => users.extend(name.take().map(|name| (name, value.trim().to_owned()))),
            _ => {}
        }
    }
    users
}

/// One thing that is not the same on two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The machine's SID.
    MachineSid {
        /// On this node.
        here: String,
        /// On the other.
        there: String,
    },
    /// The SID of a user, who may be missing on one of them.
    User {
        /// The user.
        user: String,
        /// On this node.
        here: Option<String>,
        /// On the other.
        there: Option<String>,
    },
    /// A share is missing on the other node.
    NoShare {
        /// The share.
        share: String,
    },
    /// The root of a share.
    Path {
        /// The share.
        share: String,
        /// On this node.
        here: PathBuf,
        /// On the other.
        there: PathBuf,
    },
    /// The device number of a share's file system.
    Device {
        /// The share.
        share: String,
        /// On this node.
        here: u64,
        /// On the other.
        there: u64,
    },
}

impl Difference {
    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::MachineSid { .. } => {
                "set one SID on all nodes with `net setlocalsid`, before users are made"
            }
            Self::User { .. } => {
                "give all nodes one user database: copy passdb.tdb and secrets.tdb, or join a domain"
            }
            Self::NoShare { .. } | Self::Path { .. } => "give all nodes one configuration",
            Self::Device { .. } => {
                "give the storage one device number on all nodes, or add \"vfs objects = fileid\" with \"fileid:algorithm = fsname\""
            }
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |sid: &Option<String>| sid.clone().unwrap_or_else(|| "none".to_owned());
        match self {
            Self::MachineSid { here, there } => {
                write!(f, "the machine's SID is {here} here and {there} there")
            }
            Self::User { user, here, there } => {
                write!(f, "user {user} has the SID {} here and {} there", or_none(here), or_none(there))
            }
            Self::NoShare { share } => write!(f, "share {share} is not there"),
            Self::Path { share, here, there } => {
                write!(f, "share {share} is at {} here and at {} there", here.display(), there.display())
            }
            Self::Device { share, here, there } => {
                write!(f, "the storage of share {share} is device {here} here and {there} there")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sids_are_found_in_what_sambas_tools_print() {
        assert_eq!(sid_in("SID for domain HOLDFAST is: S-1-5-21-1-2-3\n"), "S-1-5-21-1-2-3");
        let printed = "Unix username:        anna\nNT username:          \nUser SID:             S-1-5-21-1-2-3-1000\n\
                       Primary Group SID:    S-1-5-21-1-2-3-513\n---------------\nUnix username:        ben\nUser SID: S-1-9\n";
        let users = users_in(printed);
        assert_eq!(users["anna"], "S-1-5-21-1-2-3-1000");
        assert_eq!(users["ben"], "S-1-9");
    }

    #[test]
    fn what_differs_is_named() {
        let share = |path: &str, device| ShareIdentity { path: path.into(), device };
        let here = Identity {
            machine_sid: "S-1".to_owned(),
            users: [("anna".to_owned(), "S-1-1".to_owned())].into(),
            shares: [
                ("data".to_owned(), share("/srv/data", Some(7))),
                ("passive".to_owned(), share("/srv/passive", None)),
                ("gone".to_owned(), share("/srv/gone", None)),
            ]
            .into(),
        };
        let there = Identity {
            machine_sid: "S-2".to_owned(),
            users: [("anna".to_owned(), "S-2-1".to_owned()), ("ben".to_owned(), "S-2-2".to_owned())].into(),
            shares: [
                ("data".to_owned(), share("/data", Some(8))),
                ("passive".to_owned(), share("/srv/passive", Some(9))),
            ]
            .into(),
        };
        assert_eq!(here.differences(&here), []);
        let differences: Vec<_> = here.differences(&there).iter().map(ToString::to_string).collect();
        assert_eq!(
            differences,
            [
                "the machine's SID is S-1 here and S-2 there",
                "user anna has the SID S-1-1 here and S-2-1 there",
                "user ben has the SID none here and S-2-2 there",
                "share data is at /srv/data here and at /data there",
                "the storage of share data is device 7 here and 8 there",
                "share gone is not there",
            ]
        );
    }
}
