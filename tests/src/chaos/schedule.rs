//! A seed becomes a schedule: who dies how in each round, and when.
//!
//! The same seed gives the same schedule and the same choices of each client. How they interleave is up to the
//! machine, so a failure may need several runs of its seed to show again.

use std::{fmt, ops::Range, time::Duration};

use clap::ValueEnum;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

/// How a node, or a part of it, is hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Death {
    /// SIGKILL of everything on a node that serves clients.
    Node,
    /// The same of the node that leads the cluster, whomever it serves.
    Leader,
    /// SIGKILL of a serving node, and of the node that its clients went to as soon as the first is back: in the
    /// midst of their reclaims.
    Aftershock,
    /// SIGKILL of two of the nodes, one right after the other. Without a quorum nobody gets anything, until one of them is
    /// back.
    TwoNodes,
    /// SIGKILL of `smbd` with all its children; the sidecar lives.
    Smbd,
    /// SIGKILL of the one `smbd` child that serves a client.
    Child,
    /// SIGTERM of `smbd`, which is started again, as its administrator does it.
    Restart,
    /// SIGKILL of the sidecar for longer than its `smbd` may live without it.
    Sidecar,
    /// SIGKILL of the sidecar, which is started again at once.
    SidecarForAMoment,
    /// SIGSTOP of everything on a node, for longer than the others wait.
    Pause,
}

impl Death {
    /// How often each comes in a deck of rounds.
    const DECK: [(Self, usize); 10] = [
        (Self::Node, 3),
        (Self::Leader, 2),
        (Self::Aftershock, 1),
        (Self::TwoNodes, 1),
        (Self::Smbd, 1),
        (Self::Child, 1),
        (Self::Restart, 1),
        (Self::Sidecar, 1),
        (Self::SidecarForAMoment, 1),
        (Self::Pause, 1),
    ];

    /// Whether it takes a sidecar alone.
    pub(super) fn is_of_a_sidecar(self) -> bool {
        matches!(self, Self::Sidecar | Self::SidecarForAMoment)
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Node => "node",
            Self::Leader => "leader",
            Self::Aftershock => "node, then its successor",
            Self::TwoNodes => "two nodes",
            Self::Smbd => "smbd alone",
            Self::Child => "one smbd child",
            Self::Restart => "smbd restarted (SIGTERM)",
            Self::Sidecar => "sidecar alone",
            Self::SidecarForAMoment => "sidecar, back at once",
            Self::Pause => "node paused",
        })
    }
}

/// One round of the schedule.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// What happens.
    pub death: Death,
    /// What it is aimed at, modulo what there is of it.
    pub aim: usize,
    /// Whether the clients that lose their node go each to another one, and not all to the same as they do when an
    /// address moves.
    pub scattered: bool,
    /// How long the clients work after they hold all that they are to hold.
    pub after: Duration,
    /// How long after the first blow the dead come back, or the second blow falls.
    pub meanwhile: Duration,
}

/// How long clients work before the blow falls.
const AFTER: Range<u64> = 100..1500;

/// How long the dead stay dead, or the second blow is held back. From "before anybody has noticed" to "after the
/// last reclaim".
const MEANWHILE: Range<u64> = 0..4000;

/// Divisible by every number of shares, nodes and clients that is in use.
const AIMS: usize = 27_720;

/// The rounds of a seed. The first is the death of a node, unless there are to be others `only`; none is all.
pub(super) fn schedule(seed: u64, rounds: usize, only: &[Death]) -> Vec<Round> {
    let is_wanted = |death| only.is_empty() || only.contains(&death);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut deck = Vec::new();
    let mut schedule = Vec::new();
    for number in 0..rounds {
        if deck.is_empty() {
            let wanted = Death::DECK.iter().filter(|(death, _)| is_wanted(*death));
            deck = wanted.flat_map(|&(death, times)| [death].repeat(times)).collect();
            deck.shuffle(&mut rng);
        }
        let drawn = deck.pop().expect("it was just filled");
        schedule.push(Round {
            death: if number == 0 && is_wanted(Death::Node) { Death::Node } else { drawn },
            aim: rng.random_range(0..AIMS),
            scattered: rng.random_ratio(1, 4),
            after: Duration::from_millis(rng.random_range(AFTER)),
            meanwhile: Duration::from_millis(rng.random_range(MEANWHILE)),
        });
    }
    schedule
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_schedule_and_a_long_one_has_every_death() {
        let (first, again) = (schedule(7, 60, &[]), schedule(7, 60, &[]));
        assert_eq!(format!("{first:?}"), format!("{again:?}"));
        assert_ne!(format!("{first:?}"), format!("{:?}", schedule(8, 60, &[])));
        assert_eq!(first[0].death, Death::Node);
        for (death, _) in Death::DECK {
            assert!(first.iter().any(|round| round.death == death), "{death}");
        }
    }

    #[test]
    fn a_schedule_of_some_deaths_has_no_others() {
        let only = [Death::Pause, Death::Restart];
        let rounds = schedule(7, 20, &only);
        assert_eq!(rounds.len(), 20);
        assert!(rounds.iter().all(|round| only.contains(&round.death)), "{rounds:?}");
    }
}
