//! How many chain locks this process holds, whichever database they are of.
//!
//! A question that may wait for other processes ([`frame::Request::Look`]) must not be asked under a lock that one of them
//! may want. Samba takes chain locks by `tdb_chainlock` alone, and libtdb's own locks do not outlast its calls.

use std::sync::atomic::{AtomicU32, Ordering};

// Samba works on its databases in one thread, so the count needs no order with anything.
static HELD: AtomicU32 = AtomicU32::new(0);

/// One was taken.
pub(crate) fn taken() {
    HELD.fetch_add(1, Ordering::Relaxed);
}

/// One was released.
pub(crate) fn released() {
    let held = HELD.load(Ordering::Relaxed);
    HELD.store(held.saturating_sub(1), Ordering::Relaxed);
}

/// Whether there is any.
pub(crate) fn any() -> bool {
    HELD.load(Ordering::Relaxed) > 0
}

/// A forked process has none of its parent's.
pub(crate) fn begin() {
    HELD.store(0, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_nest() {
        begin();
        assert!(!any());
        taken();
        taken();
        released();
        assert!(any());
        released();
        assert!(!any());
        released();
        taken();
        assert!(any(), "one unlock too many is no debt");
        begin();
        assert!(!any());
    }
}
