//! Cluster time at the leader.
//!
//! A leader counts on from the newest applied time with its monotonic clock, from the moment on at which it applied that
//! itself, as a follower perhaps. So cluster time runs at most as fast as real time, through any number of leaders: each
//! begins with a time that was proposed before it began to count. What passes between the proposal and that moment is
//! lost, and so is an outage of the whole cluster; both only lengthen deadlines.
//!
//! A stamp belongs to the term in which it was made. In a later term of the same leader it could be ahead of
//! what another leader's entries made of the time meanwhile; so proposals are bound to their term.

use std::time::Instant;

use statedb::Timestamp;

use super::Leading;

/// The clock of the newest term in which this node leads.
#[derive(Debug, Default)]
pub(super) struct LeaderClock {
    term: Option<Term>,
}

#[derive(Debug)]
struct Term {
    term: u64,
    since: Instant,
    /// Cluster time at an instant, once everything that was committed earlier is applied.
    base: Option<(Timestamp, Instant)>,
}

impl LeaderClock {
    /// This node leads in `term`. Returns since when that is known.
    pub(super) fn leads_in(&mut self, term: u64, now: Instant) -> Instant {
        self.term(term, now).since
    }

    /// Cluster time now. `newest_applied` is what it was at `since` or earlier.
    pub(super) fn stamp(
        &mut self,
        leading: Leading,
        (newest_applied, since): (Timestamp, Instant),
        now: Instant,
    ) -> Timestamp {
        let term = self.term(leading.term, leading.since);
        if !leading.caught_up {
            return newest_applied;
        }
        let (base, since) = *term.base.get_or_insert((newest_applied, since));
        let elapsed = now.saturating_duration_since(since).as_millis();
        base.after(statedb::Millis(u64::try_from(elapsed).unwrap_or(u64::MAX)))
    }

    fn term(&mut self, term: u64, now: Instant) -> &mut Term {
        if self.term.as_ref().is_none_or(|known| known.term != term) {
            self.term = Some(Term { term, since: now, base: None });
        }
        self.term.as_mut().expect("it was just put there")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_counts_on_from_what_was_applied_and_afresh_in_every_term() {
        let begun = Instant::now();
        let after = |millis| begun + Duration::from_millis(millis);
        let mut clock = LeaderClock::default();
        let since = clock.leads_in(3, begun);
        let new = Leading { term: 3, since, caught_up: false };
        assert_eq!(
            clock.stamp(new, (Timestamp(1000), after(10)), after(40)),
            Timestamp(1000),
            "not before it is caught up"
        );

        let leading = Leading { caught_up: true, ..new };
        assert_eq!(
            clock.stamp(leading, (Timestamp(2000), after(70)), after(100)),
            Timestamp(2030),
            "nobody led from 70 to 100"
        );
        assert_eq!(clock.stamp(leading, (Timestamp(2030), after(300)), after(350)), Timestamp(2280));
        assert_eq!(clock.leads_in(3, after(400)), begun, "the same term");

        let since = clock.leads_in(5, after(900));
        assert_eq!(since, after(900));
        let leading = Leading { term: 5, since, caught_up: true };
        assert_eq!(
            clock.stamp(leading, (Timestamp(2300), after(900)), after(900)),
            Timestamp(2300),
            "another led meanwhile"
        );
    }
}
