//! A byte that has rotted on disk while the node was down: found when it is started, and never served.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::sidecar::{Sidecar, Site, assert_says, files_under, wait_until};
use crate::smbd::Smbd;

/// About how many bytes of each file are damaged, one at a time.
const OFFSETS_PER_FILE: usize = 32;

/// A node that has served some shares and was stopped, and what it knew.
struct Stopped {
    site: Site,
    shares: serde_json::Value,
}

impl Stopped {
    fn with_some_entries() -> Option<Self> {
        let site = Site::with_scripted_samba()?;
        let sidecar = site.start();
        let mut smbd = Smbd::welcome(&site.run_dir);
        for share in ["data", "home", "scans"] {
            assert_eq!(smbd.tree_connect(share).expect("an answer"), Some(frame::Reply::Proceed));
        }
        let shares = site.status()["shares"].clone();
        assert_eq!(shares.as_array().map(Vec::len), Some(3));
        sidecar.stop();
        Some(Self { site, shares })
    }

    fn files(&self, part: &str) -> Vec<PathBuf> {
        let files = files_under(&self.site.data_dir.join(part));
        assert!(!files.is_empty(), "there is nothing under {part}");
        files
    }

    /// Starts the node on what is there. An error must name the damage; a node that starts must know everything.
    fn start(&self, file: &Path, damage: &str) -> Found {
        // Without Samba: what the node knows is decided before it looks at that.
        let mut site = Site::alone();
        site.members.clone_from(&self.site.members);
        site.data_dir.clone_from(&self.site.data_dir);
        let mut sidecar = Sidecar::spawn(site.run());
        let mut status = None;
        wait_until(
            || {
                status = site.try_status().ok().filter(|status| status["role"] == "leader");
                status.is_some() || sidecar.has_ended()
            },
            || format!("{damage} of {}: the node neither runs nor ends", file.display()),
        );
        if let Some(status) = status {
            assert_eq!(
                status["shares"],
                self.shares,
                "{damage} of {} changed what is served",
                file.display()
            );
            sidecar.stop();
            return Found::Harmless;
        }
        let ended = sidecar.wait_for_end();
        assert!(!ended.success, "{}", ended.stderr);
        ended.assert_no_panic();
        let data_dir = self.site.data_dir.display().to_string();
        assert_says(
            &ended.stderr,
            &["cannot start on", &data_dir, "is damaged", "move the node's data directory away"],
        );
        Found::Refused(ended.stderr)
    }
}

/// What came of a damaged byte.
enum Found {
    /// Refused with this message.
    Refused(String),
    /// The node runs, and knows everything that it knew.
    Harmless,
}

/// Where a file is damaged: evenly among the bytes that say something, and at both ends. A database file is mostly
/// zeros that nobody has written.
fn offsets(file: &Path) -> BTreeSet<usize> {
    let bytes = fs::read(file).expect("it is there");
    let written: Vec<_> = (0..bytes.len()).filter(|offset| bytes[*offset] != 0).collect();
    let step = (written.len() / OFFSETS_PER_FILE).max(1);
    let ends = (!bytes.is_empty()).then(|| [0, bytes.len() - 1]);
    written.into_iter().step_by(step).chain(ends.into_iter().flatten()).collect()
}

/// Changes one bit of a byte, looks, and changes it back.
fn with_damage(file: &Path, offset: usize, look: impl FnOnce()) {
    let offset = u64::try_from(offset).expect("a file's length");
    let handle = fs::File::options().read(true).write(true).open(file).expect("it is ours");
    let mut byte = [0];
    handle.read_exact_at(&mut byte, offset).expect("it is there");
    handle.write_all_at(&[byte[0] ^ 1], offset).expect("it is ours");
    look();
    handle.write_all_at(&byte, offset).expect("it is ours");
}

#[test]
fn a_damaged_byte_of_the_log_is_found_and_named() {
    let Some(stopped) = Stopped::with_some_entries() else { return };
    for file in stopped.files("log") {
        for offset in offsets(&file) {
            with_damage(&file, offset, || match stopped.start(&file, &format!("byte {offset}")) {
                Found::Refused(error) => assert_says(&error, &[&file.display().to_string()]),
                Found::Harmless => panic!("byte {offset} of {} went unseen", file.display()),
            });
        }
    }
}

/// The stored state may lag behind the log, which is whole here. So what sled drops because its checksum is wrong is
/// applied again from the log, and a checksum of sled's own parameters that is wrong while they are right is none of
/// our business. What must not happen is that anything else than before is served.
#[test]
fn a_damaged_byte_of_the_stored_state_is_found_or_makes_no_difference() {
    let Some(stopped) = Stopped::with_some_entries() else { return };
    let mut refused = 0;
    for file in stopped.files("applied") {
        for offset in offsets(&file) {
            with_damage(&file, offset, || match stopped.start(&file, &format!("byte {offset}")) {
                Found::Refused(_) => refused += 1,
                Found::Harmless => eprintln!("harmless: byte {offset} of {}", file.display()),
            });
        }
    }
    assert!(refused > 0, "no damage was noticed");
}
