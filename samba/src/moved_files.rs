//! Where files are that are not under their names any more.
//!
//! smbd renames a file first and stores its new name then. If its node dies in between, all records say a name that the
//! file does not have. It is looked for by its inode, in one walk through the share for all files that are missed there
//! at a time: clients wait at the gate meanwhile, and most of the missed files are found nowhere, because their last
//! opens were being closed for deletion.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

use crate::image::OpenImage;

/// How many names of a share are looked at, those of the directories in which files are missed first. That takes some
/// hundred milliseconds on a local disk.
const LOOKED_AT_MAX: usize = 100_000;

/// The files of some orphans, by share.
#[derive(Debug, Default)]
pub(crate) struct MovedFiles(BTreeMap<String, Share>);

#[derive(Debug, Default)]
struct Share {
    inodes: HashSet<u64>,
    directories: BTreeSet<PathBuf>,
    /// The names that these inodes have, once somebody has missed one.
    names: Option<HashMap<u64, Vec<String>>>,
}

impl MovedFiles {
    /// The files of these orphans may be missed.
    pub(crate) fn among<'a>(orphans: impl Iterator<Item = &'a OpenImage>) -> Self {
        let mut shares = BTreeMap::<String, Share>::new();
        for image in orphans {
            let cookie = image.cookie();
            let share = shares.entry(cookie.service_path.clone()).or_default();
            share.inodes.insert(cookie.file.inode);
            share.directories.extend(Path::new(image.path()).parent().map(Path::to_owned));
        }
        Self(shares)
    }

    /// The names below the path of its share that an orphan's file has, or a younger file that has its inode.
    pub(crate) fn names_of(&mut self, service_path: &str, inode: u64) -> &[String] {
        let Some(share) = self.0.get_mut(service_path) else { return &[] };
        let Share { inodes, directories, names } = share;
        let names = names.get_or_insert_with(|| walk(Path::new(service_path), inodes, directories));
        names.get(&inode).map_or(&[], Vec::as_slice)
    }
}

/// Looks for inodes, in these directories and then everywhere else.
fn walk(share: &Path, inodes: &HashSet<u64>, first: &BTreeSet<PathBuf>) -> HashMap<u64, Vec<String>> {
    let mut found = HashMap::<u64, Vec<String>>::new();
    let mut known: HashSet<PathBuf> = first.iter().cloned().chain([PathBuf::new()]).collect();
    let mut directories: VecDeque<PathBuf> = first.iter().cloned().collect();
    if !first.contains(Path::new("")) {
        directories.push_back(PathBuf::new());
    }
    let mut left = LOOKED_AT_MAX;
    while let Some(directory) = directories.pop_front() {
        // One that cannot be read, or is gone, has nothing to tell.
        for entry in fs::read_dir(share.join(&directory)).into_iter().flatten().flatten() {
            if left == 0 {
                return found;
            }
            left -= 1;
            let is_directory = entry.file_type().is_ok_and(|of| of.is_dir());
            if !is_directory && !inodes.contains(&entry.ino()) {
                continue;
            }
            let path = directory.join(entry.file_name());
            if is_directory {
                if known.insert(path.clone()) {
                    directories.push_back(path);
                }
            } else if let Ok(path) = path.into_os_string().into_string() {
                found.entry(entry.ino()).or_default().push(path);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn all_missed_files_are_found_in_one_walk() {
        let share = tempfile::tempdir().unwrap();
        let inode_of = |path: &str| {
            let path = share.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::metadata(&path).unwrap().ino()
        };
        let (near, far, other) = (inode_of("old/near"), inode_of("else/where/far"), inode_of("other"));
        fs::hard_link(share.path().join("old/near"), share.path().join("second name")).unwrap();

        let gone = u64::MAX;
        let mut found = walk(
            share.path(),
            &HashSet::from([near, far, gone]),
            &BTreeSet::from(["old".into(), "gone".into()]),
        );
        found.values_mut().for_each(|names| names.sort());
        assert_eq!(found[&near], ["old/near", "second name"]);
        assert_eq!(found[&far], ["else/where/far"]);
        assert!(!found.contains_key(&other) && !found.contains_key(&gone));
    }
}
