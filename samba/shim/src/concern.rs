//! Which calls concern the cluster. Pure functions of the call and the page, in the middle of every database
//! call of `smbd`: a few memory loads, no system call.

use frame::page::IN_USE_RECORD_MAX;
use frame::{Database, DatabaseFile, PageReader, Prelude};

/// What is about to happen to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It gets a value of this length.
    Store {
        /// In bytes.
        value_len: usize,
    },
    /// It goes.
    Delete,
}

/// Whether the sidecar has to be asked before this change.
///
/// Without a page there is no sidecar yet, so no tree connect can have been admitted and there is nothing to
/// change; if it is tried all the same, the sidecar has to be waited for.
pub(crate) fn must_ask(page: Option<&PageReader>, database: Database, key: &[u8], change: Change) -> bool {
    let Some(page) = page else { return true };
    match database {
        // A key of another length is not an open: newer Samba keeps its replay cache in the same database.
        Database::OpenGlobal => global_id(key).is_some_and(|persistent_id| {
            let may_be_durable = match change {
                Change::Store { value_len } => value_len >= page.open_global_durable_min_len(),
                Change::Delete => false,
            };
            may_be_durable || page.may_track_id(persistent_id)
        }),
        Database::Locking | Database::Brlock => page.may_track_file(key),
        Database::Leases => page.may_track_lease(key),
        // The gate: whether this node may serve the share at all, and when it stops to.
        Database::TconGlobal => true,
    }
}

/// Whether the sidecar has to be asked before the lock of this record is taken to look at it: who reclaims an open begins
/// with that. In a ctdb cluster, where the record is that of an open that another node may have had; otherwise where it is
/// that of an open that is tracked, and not one of those that this process has stored itself (`is_own`). A tree connect
/// begins in this way too, and in a ctdb cluster it may have to wait: not when it is stored, because ctdb does not recover
/// while anybody holds a lock.
///
/// Without a page nobody has been admitted yet who could want an open back.
pub(crate) fn must_look(
    page: Option<&PageReader>,
    file: DatabaseFile,
    key: &[u8],
    is_own: impl Fn(u32) -> bool,
) -> bool {
    let (Some(page), Some(id)) = (page, global_id(key)) else { return false };
    match file.database {
        Database::OpenGlobal => {}
        Database::TconGlobal => return file.is_clustered,
        Database::Locking | Database::Brlock | Database::Leases => return false,
    }
    if file.is_clustered { page.must_look(id) } else { page.may_track_id(id) && !is_own(id) }
}

/// Whether the sidecar has to know of a message by which an oplock or a lease is to be broken, before it is sent. It begins with
/// the key of the file.
///
/// Without a page nobody has been admitted yet who could have one.
pub(crate) fn must_tell_of_break(page: Option<&PageReader>, message: &[u8]) -> bool {
    const FILE_KEY_LEN: usize = 24;
    page.zip(message.get(..FILE_KEY_LEN)).is_some_and(|(page, file)| page.may_track_file(file))
}

/// Whether two values of `locking.tdb` say the same about opens. A record that is not there is an empty value; zeros after
/// the prelude are counts of nothing.
pub(crate) fn says_the_same(prelude: Prelude, stored: &[u8], new: &[u8]) -> bool {
    let [stored, new] = [stored, new].map(|value| prelude.rest_of(value));
    let is_nothing = |rest: &[u8]| rest.iter().all(|byte| *byte == 0);
    stored == new || (is_nothing(stored) && is_nothing(new))
}

/// The record to show Samba's allocator of persistent ids for a key that has none here, if this node must not
/// draw that id: because it is in another node's share of the ids, or because an open that is tracked has it.
///
/// Samba 4.17 draws random 32-bit ids until it finds one without a record. So two nodes, which see only their
/// own database, never draw the same id.
pub(crate) fn in_use_record<'a>(
    page: Option<&PageReader>,
    key: &[u8],
    copy: &'a mut [u8; IN_USE_RECORD_MAX],
) -> Option<&'a [u8]> {
    let page = page?;
    let persistent_id = global_id(key)?;
    let slot = page.node_slot()?;
    if slot.owns(persistent_id) && !page.may_track_id(persistent_id) {
        return None;
    }
    let length = page.in_use_record(copy)?;
    copy.get(..length)
}

/// An open's key in `smbXsrv_open_global.tdb`; the low half of its persistent id.
pub(crate) fn global_id(key: &[u8]) -> Option<u32> {
    key.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    use frame::{Limits, NodeSlot, PageWriter};

    use super::*;

    const DURABLE_LEN: usize = 400;
    const STORE: Change = Change::Store { value_len: 256 };

    struct Pages {
        writer: PageWriter,
        reader: PageReader,
        _directory: tempfile::TempDir,
    }

    impl Pages {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("temporary directory");
            let path = directory.path().join(frame::PAGE_FILE);
            let limits = Limits { fence_tick_ns: 1, open_global_durable_min_len: DURABLE_LEN as u32 };
            let writer = PageWriter::open(&path, limits).expect("page");
            let path = CString::new(path.as_os_str().as_bytes()).expect("path");
            let reader = PageReader::open(&path).expect("page");
            Self { writer, reader, _directory: directory }
        }

        fn asks(&self, database: Database, key: &[u8], change: Change) -> bool {
            must_ask(Some(&self.reader), database, key, change)
        }
    }

    #[test]
    fn an_open_concerns_the_cluster_when_it_may_be_durable_or_is_tracked() {
        let mut pages = Pages::new();
        let key = 77_u32.to_be_bytes();
        let cases = [(0, false), (256, false), (DURABLE_LEN - 1, false), (DURABLE_LEN, true), (648, true)];
        for (value_len, expected) in cases {
            assert_eq!(
                pages.asks(Database::OpenGlobal, &key, Change::Store { value_len }),
                expected,
                "{value_len}"
            );
        }
        assert!(!pages.asks(Database::OpenGlobal, &key, Change::Delete));
        pages.writer.set_id(77);
        assert!(pages.asks(Database::OpenGlobal, &key, STORE));
        assert!(pages.asks(Database::OpenGlobal, &key, Change::Delete));
    }

    #[test]
    fn a_replay_cache_entry_is_not_an_open() {
        let pages = Pages::new();
        assert!(!pages.asks(Database::OpenGlobal, &[0; 32], Change::Store { value_len: 5000 }));
    }

    #[test]
    fn share_modes_locks_and_leases_concern_the_cluster_when_tracked() {
        let mut pages = Pages::new();
        let (file, lease) = ([3; 24], [4; 32]);
        for change in [STORE, Change::Delete] {
            assert!(!pages.asks(Database::Locking, &file, change));
            assert!(!pages.asks(Database::Brlock, &file, change));
            assert!(!pages.asks(Database::Leases, &lease, change));
        }
        pages.writer.set_file(&file);
        pages.writer.set_lease(&lease);
        for change in [STORE, Change::Delete] {
            assert!(pages.asks(Database::Locking, &file, change));
            assert!(pages.asks(Database::Brlock, &file, change));
            assert!(pages.asks(Database::Leases, &lease, change));
            assert!(!pages.asks(Database::Leases, &file, change));
        }
    }

    #[test]
    fn a_break_concerns_the_cluster_when_its_file_is_tracked() {
        let mut pages = Pages::new();
        let message = [[3; 24].as_slice(), &[9; 9]].concat();
        assert!(!must_tell_of_break(Some(&pages.reader), &message));
        pages.writer.set_file(&[3; 24]);
        assert!(must_tell_of_break(Some(&pages.reader), &message));
        assert!(!must_tell_of_break(Some(&pages.reader), &message[..23]), "no break at all");
        assert!(!must_tell_of_break(None, &message), "nobody was admitted yet");
    }

    #[test]
    fn a_tree_connect_always_concerns_the_cluster() {
        let pages = Pages::new();
        assert!(pages.asks(Database::TconGlobal, &[0; 4], STORE));
        assert!(pages.asks(Database::TconGlobal, &[0; 4], Change::Delete));
    }

    #[test]
    fn only_opens_of_a_ctdb_cluster_that_others_may_have_are_asked_about_before_a_look() {
        let mut pages = Pages::new();
        let file = |database, is_clustered| DatabaseFile { database, is_clustered };
        let clustered = file(Database::OpenGlobal, true);
        let key = 77_u32.to_be_bytes();
        let looks = |pages: &Pages, file, key: &[u8]| must_look(Some(&pages.reader), file, key, |_| false);
        assert!(!looks(&pages, clustered, &key));
        pages.writer.set_id(77);
        assert!(!looks(&pages, clustered, &key), "this node's own");
        pages.writer.set_elsewhere(77);
        assert!(looks(&pages, clustered, &key));
        assert!(!looks(&pages, clustered, &78_u32.to_be_bytes()));

        pages.writer.set_look_at_all(true);
        assert!(looks(&pages, clustered, &78_u32.to_be_bytes()));
        assert!(!looks(&pages, clustered, &[0; 32]), "a replay cache entry");
        assert!(!looks(&pages, file(Database::Locking, true), &key), "not an open");
        assert!(looks(&pages, file(Database::TconGlobal, true), &key), "a tree connect");
        assert!(!looks(&pages, file(Database::TconGlobal, false), &key), "it waits when it is stored");
        assert!(!must_look(None, clustered, &key, |_| false), "nobody was admitted yet");
    }

    #[test]
    fn of_separate_nodes_only_opens_of_other_processes_are_asked_about_before_a_look() {
        let mut pages = Pages::new();
        let file = |database| DatabaseFile { database, is_clustered: false };
        let looks = |pages: &Pages, database, key: &[u8]| {
            must_look(Some(&pages.reader), file(database), key, |id| id == 78)
        };
        let [others, own] = [77_u32, 78].map(u32::to_be_bytes);
        assert!(!looks(&pages, Database::OpenGlobal, &others), "not tracked");
        pages.writer.set_id(77);
        pages.writer.set_id(78);
        assert!(looks(&pages, Database::OpenGlobal, &others));
        assert!(!looks(&pages, Database::OpenGlobal, &own));
        assert!(!looks(&pages, Database::OpenGlobal, &[0; 32]), "a replay cache entry");
        assert!(!looks(&pages, Database::TconGlobal, &others), "not an open");
    }

    #[test]
    fn without_a_page_everything_waits_for_the_sidecar() {
        for database in Database::ALL {
            assert!(must_ask(None, database, &[0; 4], STORE));
        }
    }

    #[test]
    fn only_what_comes_after_the_prelude_of_share_modes_says_something() {
        let prelude = Prelude { fixed_len: 6, item_len: 2 };
        let watched = |items: &[[u8; 2]], lock: [u8; 2], rest: &[u8]| {
            let count = u32::try_from(items.len()).expect("few").to_le_bytes();
            [&count[..], items.as_flattened(), &lock, rest].concat()
        };
        let stored = watched(&[], [1, 1], b"open");
        assert!(says_the_same(prelude, &stored, &watched(&[[7, 7]], [2, 2], b"open")));
        assert!(!says_the_same(prelude, &stored, &watched(&[], [1, 1], b"opem")));
        assert!(!says_the_same(prelude, &stored, &watched(&[], [1, 1], &[0; 4])));
        assert!(!says_the_same(prelude, &stored, &[]));
        assert!(says_the_same(prelude, &[], &watched(&[[7, 7]], [2, 2], &[0; 4])));
        // More items than there are bytes: nothing can be said of it, so it says nothing.
        assert!(!says_the_same(prelude, &stored, &[0xff; 9]));
    }

    #[test]
    fn only_free_ids_of_the_own_slot_are_drawn() {
        let mut pages = Pages::new();
        let mut copy = [0; IN_USE_RECORD_MAX];
        let mut shown = |pages: &Pages, id: u32| {
            in_use_record(Some(&pages.reader), &id.to_be_bytes(), &mut copy).map(<[u8]>::to_vec)
        };
        assert_eq!(shown(&pages, 5), None, "nothing is known yet");
        pages.writer.set_allocator(NodeSlot::new(2).expect("slot"), b"in use").expect("fits");
        for id in 0..800 {
            let expected = (id % 8 != 2).then(|| b"in use".to_vec());
            assert_eq!(shown(&pages, id), expected, "{id}");
        }
        pages.writer.set_id(10);
        assert_eq!(shown(&pages, 10), Some(b"in use".to_vec()));
        let mut copy = [0; IN_USE_RECORD_MAX];
        assert_eq!(in_use_record(Some(&pages.reader), &[0; 32], &mut copy), None, "not an open");
        assert_eq!(in_use_record(None, &[0; 4], &mut copy), None);
    }
}
