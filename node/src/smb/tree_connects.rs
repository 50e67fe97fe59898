//! Who is in which share, kept in the run directory as well: a sidecar that is restarted finds it there.
//!
//! Without it the new one would not know to which of several shares with one path an open belongs, and would give up a
//! share whose clients it has never heard of. `smbd` has the same in `smbXsrv_tcon_global.tdb`, but a process that waits
//! for the sidecar's word about a tree connect has a lock there, so nobody could be answered before that is read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use samba::proc_stat::ProcStat;
use statedb::{Instance, ShareName};
use tracing::warn;

/// The tree connects of one instance of the SMB service.
#[derive(Debug)]
pub struct TreeConnects {
    /// Has a file for each. It says when the process was started, and which share it is.
    dir: PathBuf,
    shares: BTreeMap<TreeConnect, ShareName>,
}

/// By process and by the key of the tree connect's record, which only that process changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TreeConnect {
    /// The process of `smbd`.
    pub process: u32,
    /// The key in `smbXsrv_tcon_global.tdb`.
    pub record: Vec<u8>,
}

impl fmt::Display for TreeConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-", self.process)?;
        self.record.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl TreeConnect {
    /// Reads what [`fmt::Display`] writes.
    fn parse(name: &str) -> Option<Self> {
        let (process, record) = name.split_once('-')?;
        let byte = |at: usize| u8::from_str_radix(record.get(at..at + 2)?, 16).ok();
        let record = (0..record.len()).step_by(2).map(byte).collect::<Option<_>>()?;
        Some(Self { process: process.parse().ok()?, record })
    }
}

impl TreeConnects {
    /// Those that an earlier run of this sidecar has let in and whose processes are still there. What other instances
    /// have left in `dir` is removed.
    ///
    /// # Errors
    ///
    /// If the directory cannot be used.
    pub fn open(dir: &Path, instance: Instance) -> io::Result<Self> {
        let name = format!("{:032x}", u128::from_be_bytes(instance.0));
        fs::create_dir_all(dir.join(&name))?;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if *entry.file_name() != *name {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let mut this = Self { dir: dir.join(name), shares: BTreeMap::new() };
        for entry in fs::read_dir(&this.dir)? {
            let path = entry?.path();
            match read(&path) {
                Some((connect, share)) => drop(this.shares.insert(connect, share)),
                None => fs::remove_file(&path)?,
            }
        }
        Ok(this)
    }

    /// Adds one, or finds that it is there.
    ///
    /// # Errors
    ///
    /// If its file cannot be written, or the kernel cannot be asked about its process.
    pub fn insert(&mut self, connect: TreeConnect, share: &ShareName) -> io::Result<()> {
        let started_at = ProcStat::of(connect.process.into())?.map_or(0, |stat| stat.started_at);
        fs::write(self.dir.join(connect.to_string()), format!("{started_at} {share}"))?;
        self.shares.insert(connect, share.clone());
        Ok(())
    }

    /// Removes some, and returns their shares.
    pub fn remove_where(&mut self, is_over: impl Fn(&TreeConnect) -> bool) -> BTreeSet<ShareName> {
        let removed = self.shares.extract_if(.., |connect, _| is_over(connect));
        let removed = removed.map(|(connect, share)| {
            let path = self.dir.join(connect.to_string());
            if let Err(error) = fs::remove_file(&path) {
                warn!(path = %path.display(), %error, "a tree connect that is over stays noted, until its process ends");
            }
            share
        });
        removed.collect()
    }

    /// Whether somebody is in a share.
    #[must_use]
    pub fn has(&self, share: &ShareName) -> bool {
        self.shares.values().any(|entered| entered == share)
    }

    /// The shares that a process has entered.
    #[must_use]
    pub fn of(&self, process: u32) -> BTreeSet<ShareName> {
        let first = TreeConnect { process, record: Vec::new() };
        let of_it = self.shares.range(first..).take_while(|(connect, _)| connect.process == process);
        of_it.map(|(_, share)| share.clone()).collect()
    }

    /// The processes that have entered any.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<u32> {
        self.shares.keys().map(|connect| connect.process).collect()
    }
}

/// What a file says of a tree connect; `None` if its process has ended, even if another one has its id now, or if the
/// file is one that was not written to its end.
fn read(path: &Path) -> Option<(TreeConnect, ShareName)> {
    let connect = TreeConnect::parse(path.file_name()?.to_str()?)?;
    let text = fs::read_to_string(path).ok()?;
    let (process_started_at, share) = text.split_once(' ')?;
    let lives = match ProcStat::of(connect.process.into()) {
        Ok(stat) => stat.is_some_and(|stat| process_started_at.parse() == Ok(stat.started_at)),
        // In doubt the share is still in use.
        Err(_) => true,
    };
    lives.then(|| (connect, ShareName::new(share)))
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    fn connect(process: u32, record: &[u8]) -> TreeConnect {
        TreeConnect { process, record: record.to_vec() }
    }

    #[test]
    fn the_next_sidecar_finds_those_whose_processes_live() {
        let dir = tempfile::tempdir().unwrap();
        let (instance, share) = (Instance([7; 16]), ShareName::new("Data $1"));
        let mut before = TreeConnects::open(dir.path(), instance).unwrap();
        before.insert(connect(process::id(), &[0, 255, 16]), &share).unwrap();
        before.insert(connect(process::id(), &[1]), &ShareName::new("other")).unwrap();
        // No process has this id.
        before.insert(connect(0, &[2]), &share).unwrap();
        assert_eq!(before.remove_where(|connect| connect.record == [1]), [ShareName::new("other")].into());

        let after = TreeConnects::open(dir.path(), instance).unwrap();
        assert_eq!(after.processes(), [process::id()].into());
        assert_eq!(after.of(process::id()), [share.clone()].into());
        assert!(after.has(&share) && !after.has(&ShareName::new("other")));
    }

    #[test]
    fn a_process_that_was_started_later_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let instance = Instance([7; 16]);
        let before = TreeConnects::open(dir.path(), instance).unwrap();
        let file = before.dir.join(connect(process::id(), &[1]).to_string());
        fs::write(&file, "1 share").unwrap();
        assert_eq!(TreeConnects::open(dir.path(), instance).unwrap().processes(), BTreeSet::new());
        assert!(!file.exists());
    }

    #[test]
    fn another_instance_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let share = ShareName::new("share");
        let mut before = TreeConnects::open(dir.path(), Instance([7; 16])).unwrap();
        before.insert(connect(process::id(), &[1]), &share).unwrap();
        assert!(!TreeConnects::open(dir.path(), Instance([8; 16])).unwrap().has(&share));
        assert!(!TreeConnects::open(dir.path(), Instance([7; 16])).unwrap().has(&share));
    }
}
