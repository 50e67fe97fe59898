//! Cluster time: instants and lengths, kept apart by type.

use std::fmt;

/// An instant of cluster time, in milliseconds since the cluster began.
///
/// Cluster time is carried in the log and never goes back. It says nothing about the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

/// A length of time in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Timestamp {
    /// The instant `length` later. Saturates, so that a hostile timeout cannot wrap into the past.
    #[must_use]
    pub fn after(self, length: Millis) -> Self {
        Self(self.0.saturating_add(length.0))
    }

    /// How long after `earlier` this instant is; zero if it is not later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Millis(self.0).fmt(f)
    }
}

impl fmt::Display for Millis {
    /// `70s` where it is whole seconds, `1500ms` where it is not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) { write!(f, "{}s", self.0 / 1000) } else { write!(f, "{}ms", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_saturate_instead_of_wrapping() {
        assert_eq!(Timestamp(10).after(Millis(5)), Timestamp(15));
        assert_eq!(Timestamp(10).after(Millis(u64::MAX)), Timestamp(u64::MAX));
        assert_eq!(Timestamp(10).since(Timestamp(4)), Millis(6));
        assert_eq!(Timestamp(4).since(Timestamp(10)), Millis(0));
    }

    #[test]
    fn times_display_whole_seconds_as_seconds() {
        for (millis, display) in [(0, "0s"), (70_000, "70s"), (1_500, "1500ms"), (999, "999ms")] {
            assert_eq!(Millis(millis).to_string(), display);
            assert_eq!(Timestamp(millis).to_string(), display);
        }
    }
}
