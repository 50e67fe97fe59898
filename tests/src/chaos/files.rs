//! What should be on the disk.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::oracle::{Breach, History, Oracle};

/// A file that a client knows, and what may be found of it.
#[derive(Clone, Debug)]
pub(super) struct KnownFile {
    /// Its possible names: several while it is not known whether a rename was carried out. It has one of them.
    pub(super) paths: Vec<String>,
    /// Its possible contents: several while it is not known whether a write was carried out, none if they do not
    /// matter.
    pub(super) contents: Vec<Vec<u8>>,
    /// Whether it is there.
    pub(super) presence: Presence,
    /// Of the open that it was last known by.
    pub(super) history: History,
}

/// Whether a file is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Must,
    May,
    MustNot,
}

/// Reads a file, and leaves no trace of that: smbd gives no open back whose file has another access time than when its client
/// was lost.
fn contents_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(path)?;
    file.read_to_end(&mut contents)?;
    Ok(contents)
}

/// Compares the share with what the clients know, and takes down every difference. Returns whether a file is still
/// there that is to go: then it may be worth to look again.
pub(super) fn check(share: &Path, known: &[KnownFile], oracle: &Oracle, last_look: bool) -> io::Result<bool> {
    let mut found: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for entry in fs::read_dir(share)? {
        let entry = entry?;
        match contents_of(&entry.path()) {
            Ok(contents) => drop(found.insert(entry.file_name().to_string_lossy().into_owned(), contents)),
            // Deleted since the directory was read.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
    }
    let left_behind =
        |file: &KnownFile| file.presence == Presence::MustNot && found.contains_key(&file.paths[0]);
    if !last_look && known.iter().any(left_behind) {
        return Ok(true);
    }

    for file in known {
        let there: Vec<&String> = file.paths.iter().filter(|path| found.contains_key(*path)).collect();
        let broken = |breach, what: &str| {
            oracle.violation(breach, format!("{} {what}", file.paths.join(" or ")), Some(&file.history));
        };
        match (file.presence, &there[..]) {
            (Presence::MustNot, []) | (Presence::May, []) => {}
            (Presence::MustNot, _) => {
                broken(Breach::LeftBehind, "should have been deleted");
                // So that it is reported once.
                fs::remove_file(share.join(&file.paths[0]))?;
            }
            (Presence::Must, []) => broken(Breach::WronglyDeleted, "is gone"),
            (_, [path]) if file.contents.is_empty() || file.contents.contains(&found[*path]) => {}
            (_, [path]) => {
                let contents = String::from_utf8_lossy(&found[*path]).into_owned();
                let expected: Vec<_> =
                    file.contents.iter().map(|contents| String::from_utf8_lossy(contents)).collect();
                broken(Breach::WronglyDeleted, &format!("holds {contents:?} instead of {expected:?}"));
            }
            (_, [..]) => broken(Breach::LeftBehind, "has several names"),
        }
    }
    let names: std::collections::BTreeSet<&String> = known.iter().flat_map(|file| &file.paths).collect();
    for name in found.keys().filter(|name| !names.contains(name)) {
        oracle.violation(Breach::LeftBehind, format!("{name} is no client's"), None);
        fs::remove_file(share.join(name))?;
    }
    oracle.count(|account| account.files_checked += known.len() as u64);
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(path: &str, contents: &[u8], presence: Presence, oracle: &Oracle) -> KnownFile {
        let (_, history) = oracle.register();
        KnownFile { paths: vec![path.to_owned()], contents: vec![contents.to_vec()], presence, history }
    }

    #[test]
    fn every_difference_from_what_the_clients_know_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        for (name, contents) in [("kept", "1"), ("changed", "2"), ("undead", "3"), ("unknown", "4")] {
            fs::write(dir.path().join(name), contents).unwrap();
        }
        let oracle = Oracle::new();
        let files = [
            known("kept", b"1", Presence::Must, &oracle),
            known("changed", b"1", Presence::Must, &oracle),
            known("gone", b"1", Presence::Must, &oracle),
            known("perhaps", b"1", Presence::May, &oracle),
            known("deleted", b"1", Presence::MustNot, &oracle),
            known("undead", b"3", Presence::MustNot, &oracle),
        ];
        assert!(check(dir.path(), &files, &oracle, false).unwrap(), "undead may still go");
        assert!(!check(dir.path(), &files, &oracle, true).unwrap());
        let account = oracle.account();
        let violations: Vec<_> = account.violations.iter().map(|violation| &*violation.what).collect();
        assert_eq!(
            violations,
            [
                r#"changed holds "2" instead of ["1"]"#,
                "gone is gone",
                "undead should have been deleted",
                "unknown is no client's"
            ]
        );
        assert_eq!(account.breached(Breach::WronglyDeleted), 2);
        assert_eq!(account.breached(Breach::LeftBehind), 2);
    }
}
