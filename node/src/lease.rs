//! The service lease: until when this node's SMB service may serve.
//!
//! The lease is what keeps two nodes from serving one open. A node extends its own by what it hears from a
//! quorum, and stops its SMB service when it runs off; the leader declares a node down only when every lease
//! that the node can have is over. Both count from the moment the node *asked*, which is no later than the
//! moment the leader took the question, so a slow answer shortens a lease and never lengthens it.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use statedb::Owner;
use tokio::sync::watch;

/// Which incarnation of this node's SMB service may serve, and until when.
#[derive(Debug)]
pub struct ServiceLease {
    self_fence_after: Duration,
    owner: watch::Sender<Option<Owner>>,
    until: watch::Sender<Option<Instant>>,
}

impl ServiceLease {
    /// Nobody may serve yet.
    #[must_use]
    pub fn new(self_fence_after: Duration) -> Self {
        Self { self_fence_after, owner: watch::Sender::new(None), until: watch::Sender::new(None) }
    }

    /// An incarnation has begun. It may serve when the first answer has come.
    pub fn begin(&self, owner: Owner) {
        self.until.send_replace(None);
        self.owner.send_replace(Some(owner));
    }

    /// An incarnation is over. Without effect if another one has begun.
    pub fn end(&self, owner: Owner) {
        let ended =
            self.owner.send_if_modified(|current| current.take_if(|current| *current == owner).is_some());
        if ended {
            self.until.send_replace(None);
        }
    }

    /// Extends the lease of `owner` by an answer that a quorum stands behind.
    ///
    /// `asked_at` is when this node asked; `quorum_age` is how long before the answer a quorum had last confirmed
    /// the leader. An older answer that arrives late changes nothing, nor does one for an incarnation that is over.
    pub fn extend(&self, owner: Owner, asked_at: Instant, quorum_age: Duration) {
        let Some(confirmed_at) = asked_at.checked_sub(quorum_age) else { return };
        // Held while the end is moved, so that an incarnation that ends meanwhile takes its lease with it.
        let current = self.owner.borrow();
        if *current == Some(owner) {
            let offered = Some(confirmed_at + self.self_fence_after);
            self.until.send_if_modified(|until| {
                let later = offered > *until;
                if later {
                    *until = offered;
                }
                later
            });
        }
    }

    /// Which incarnation lives, and every change of that.
    #[must_use]
    pub fn owner(&self) -> watch::Receiver<Option<Owner>> {
        self.owner.subscribe()
    }

    /// Until when it may serve, and every extension.
    #[must_use]
    pub fn until(&self) -> watch::Receiver<Option<Instant>> {
        self.until.subscribe()
    }
}

/// An instant as another process of this machine reads it: on `CLOCK_MONOTONIC`, in nanoseconds, which is what
/// [`Instant`] counts on too.
///
/// # Panics
///
/// Never: the kernel has such a clock.
#[must_use]
pub fn monotonic_ns(instant: Instant) -> u64 {
    let clock = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the kernel has a monotonic clock");
    let left = instant.saturating_duration_since(Instant::now());
    u64::try_from((Duration::from(clock) + left).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use statedb::{Incarnation, NodeId};

    const FENCE: Duration = Duration::from_millis(400);
    const OWNER: Owner = Owner { node: NodeId(1), incarnation: Incarnation(1) };

    fn leased() -> ServiceLease {
        let lease = ServiceLease::new(FENCE);
        lease.begin(OWNER);
        lease
    }

    fn until(lease: &ServiceLease) -> Option<Instant> {
        *lease.until().borrow()
    }

    #[test]
    fn a_slow_answer_does_not_lengthen_the_lease() {
        let lease = leased();
        let asked_at = Instant::now();
        // However late this is called, the lease counts from the question.
        lease.extend(OWNER, asked_at, Duration::ZERO);
        assert_eq!(until(&lease), Some(asked_at + FENCE));
    }

    #[test]
    fn the_age_of_the_quorum_shortens_the_lease() {
        let lease = leased();
        let asked_at = Instant::now() + Duration::from_secs(10);
        let age = Duration::from_millis(150);
        lease.extend(OWNER, asked_at, age);
        assert_eq!(until(&lease), Some(asked_at - age + FENCE));
    }

    #[test]
    fn an_older_answer_changes_nothing() {
        let lease = leased();
        let asked_at = Instant::now();
        lease.extend(OWNER, asked_at + Duration::from_millis(40), Duration::ZERO);
        let newer = until(&lease);
        lease.extend(OWNER, asked_at, Duration::ZERO);
        assert_eq!(until(&lease), newer);
    }

    #[test]
    fn an_answer_for_an_incarnation_that_is_over_extends_nothing() {
        let lease = leased();
        lease.end(OWNER);
        lease.extend(OWNER, Instant::now(), Duration::ZERO);
        assert_eq!(until(&lease), None);

        let successor = Owner { incarnation: Incarnation(2), ..OWNER };
        lease.begin(successor);
        lease.extend(OWNER, Instant::now(), Duration::ZERO);
        assert_eq!(until(&lease), None);
    }
}
