//! The newest entries of the log as Raft has them, so that those who read them again need not decode them.
//!
//! Only a copy: whatever is in it is in the log. It has no holes, and ends where the log ends, or is empty.

use std::collections::VecDeque;
use std::ops::Range;

use super::convert::encode_payload;
use super::types::Entry;

/// How many entries are kept. Followers that keep up and the state machine are behind by less; who is further behind
/// reads from the log.
const ENTRIES_MAX: usize = 1024;

/// How many bytes their payloads may have together, and so how much memory this may take: a commit has about 1 KiB.
const LEN_MAX: usize = 4 * 1024 * 1024;

/// The newest entries.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// With the lengths of their payloads.
    entries: VecDeque<(Entry, usize)>,
    len: usize,
}

impl Recent {
    /// Entries were appended to the log.
    pub(super) fn append(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            if self.end().is_some_and(|end| end != entry.log_id.index) {
                self.clear();
            }
            let len = encode_payload(&entry.payload).len();
            self.len += len;
            self.entries.push_back((entry, len));
            while self.entries.len() > ENTRIES_MAX || self.len > LEN_MAX {
                self.forget_first();
            }
        }
    }

    /// Every entry after the one at `keep` was removed from the log; all of them if it is `None`.
    pub(super) fn truncate_after(&mut self, keep: Option<u64>) {
        while let Some((last, len)) = self.entries.back()
            && keep.is_none_or(|keep| last.log_id.index > keep)
        {
            self.len -= len;
            self.entries.pop_back();
        }
    }

    /// Every entry up to the one at `upto` was removed from the log.
    pub(super) fn purge(&mut self, upto: u64) {
        while self.begin().is_some_and(|begin| begin <= upto) {
            self.forget_first();
        }
    }

    /// The entries of `range` that the log has, if the first of them is here. Stops early when the payloads exceed
    /// `len_max` together; the first entry is always there.
    pub(super) fn read(&self, range: Range<u64>, len_max: usize) -> Option<Vec<Entry>> {
        let skipped = usize::try_from(range.start.checked_sub(self.begin()?)?).ok()?;
        if skipped >= self.entries.len() {
            return None;
        }
        let mut read = Vec::new();
        let mut read_len = 0;
        for (entry, len) in self.entries.range(skipped..) {
            read_len += len;
            if entry.log_id.index >= range.end || (read_len > len_max && !read.is_empty()) {
                break;
            }
            read.push(entry.clone());
        }
        Some(read)
    }

    fn begin(&self) -> Option<u64> {
        self.entries.front().map(|(entry, _)| entry.log_id.index)
    }

    /// The index after the last one.
    fn end(&self) -> Option<u64> {
        self.entries.back().map(|(entry, _)| entry.log_id.index + 1)
    }

    fn forget_first(&mut self) {
        if let Some((_, len)) = self.entries.pop_front() {
            self.len -= len;
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use statedb::{Command, Timestamp};

    use super::super::convert::{log_id, proposed};
    use super::super::types::Payload;
    use super::*;

    fn entry(index: u64) -> Entry {
        let proposed = proposed(Timestamp(index), Command::ExpireOpens);
        Entry {
            log_id: log_id(statedb::LogId { term: 1, index }),
            payload: Payload::Normal(std::sync::Arc::new(proposed)),
        }
    }

    fn indexes(entries: Option<Vec<Entry>>) -> Option<Vec<u64>> {
        entries.map(|entries| entries.iter().map(|entry| entry.log_id.index).collect())
    }

    #[test]
    fn what_the_log_has_not_any_more_is_not_here_either() {
        let mut recent = Recent::default();
        assert_eq!(recent.read(0..10, usize::MAX), None);
        recent.append((5..10).map(entry).collect());
        assert_eq!(indexes(recent.read(5..100, usize::MAX)), Some(vec![5, 6, 7, 8, 9]));
        assert_eq!(indexes(recent.read(6..8, usize::MAX)), Some(vec![6, 7]));
        assert_eq!(recent.read(4..8, usize::MAX), None, "it begins before");
        assert_eq!(recent.read(10..11, usize::MAX), None, "it begins after");

        recent.truncate_after(Some(7));
        assert_eq!(indexes(recent.read(5..100, usize::MAX)), Some(vec![5, 6, 7]));
        recent.append(vec![entry(8)]);
        recent.purge(6);
        assert_eq!(indexes(recent.read(7..100, usize::MAX)), Some(vec![7, 8]));
        // The log goes on after what it was given as a snapshot.
        recent.append(vec![entry(50)]);
        assert_eq!(indexes(recent.read(50..100, usize::MAX)), Some(vec![50]));
        assert_eq!(recent.read(8..100, usize::MAX), None);
        recent.truncate_after(None);
        assert_eq!(recent.read(50..100, usize::MAX), None);
        assert_eq!(recent.len, 0);
    }

    #[test]
    fn no_more_is_read_or_kept_than_is_allowed() {
        let mut recent = Recent::default();
        let end = ENTRIES_MAX as u64 + 10;
        recent.append((0..end).map(entry).collect());
        assert_eq!(recent.entries.len(), ENTRIES_MAX);
        assert_eq!(recent.begin(), Some(10));
        assert_eq!(indexes(recent.read(20..30, 0)), Some(vec![20]), "the first one always");
        let two = recent.entries[10].1 + recent.entries[11].1;
        assert_eq!(indexes(recent.read(20..30, two)), Some(vec![20, 21]));
    }
}
