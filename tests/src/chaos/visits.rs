//! Whether anybody may have come to a file between two moments.

use std::sync::Mutex;

/// Counts the requests for a file that would be in the way of whoever has it.
#[derive(Debug, Default)]
pub(super) struct Visits(Mutex<Visited>);

/// The visits to a file at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Visited {
    /// Counts each beginning and each end.
    changes: u64,
    under_way: u64,
}

impl Visits {
    /// Somebody asks for the file, from before the request is sent until the answer is there or will never be.
    pub(super) fn begin(&self) -> Visit<'_> {
        self.change(|visited| {
            visited.under_way += 1;
            visited.changes += 1;
        });
        Visit(self)
    }

    /// The visits until now.
    pub(super) fn now(&self) -> Visited {
        self.change(|visited| *visited)
    }

    /// Whether it is certain that nobody has come since then.
    pub(super) fn none_since(&self, then: Visited) -> bool {
        let now = self.now();
        now.changes == then.changes && now.under_way == 0
    }

    fn change<T>(&self, change: impl FnOnce(&mut Visited) -> T) -> T {
        change(&mut self.0.lock().expect("nobody panics while holding it"))
    }
}

/// A visit that is under way.
pub(super) struct Visit<'a>(&'a Visits);

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.0.change(|visited| {
            visited.under_way -= 1;
            visited.changes += 1;
        });
    }
}
