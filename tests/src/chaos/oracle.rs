//! The account of what clients were promised, and of what became of it.
//!
//! An open is *acknowledged* when its client has the response. From then on every loss of its connection has exactly
//! one result: it is reclaimed; it is refused for a reason that this account knows ([`Excuse`]); or it is lost. What was
//! under way when a connection was lost is in nobody's account: then either answer is right.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::schedule::Death;
use crate::smb_client::{NtStatus, SmbError};

/// Events remembered of each open: enough for the last rounds of its life.
const HISTORY_MAX: usize = 40;

/// Lines of the journal that are kept.
const JOURNAL_MAX: usize = 20_000;

/// Violations remembered in full. There are none, or soon too many to read.
const VIOLATIONS_MAX: usize = 200;

/// What happened to one open, in order.
#[derive(Clone, Debug)]
pub(super) struct History {
    started: Instant,
    events: VecDeque<(Duration, String)>,
}

impl History {
    /// Adds an event; the oldest is forgotten if there are too many.
    pub(super) fn note(&mut self, event: impl Into<String>) {
        if self.events.len() == HISTORY_MAX {
            self.events.pop_front();
        }
        self.events.push_back((self.started.elapsed(), event.into()));
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (after, event) in &self.events {
            writeln!(f, "  {:>9.3} s  {event}", after.as_secs_f64())?;
        }
        Ok(())
    }
}

/// Why an open may be refused although it was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Excuse {
    /// It was not durable: the lease had no handle caching.
    NeverDurable,
    /// Its close was under way.
    CloseUnderWay,
    /// Its time was over.
    Expired,
    /// Its file was to be deleted at the close. Samba closes such an open when the connection is lost.
    DeletedOnClose,
    /// Other clients had the file open as well, and this Samba gives back no open of such a file, crash or not.
    OthersHadItOpen,
    /// A conflicting open came while it had no connection, or may have come.
    Intruder,
}

impl fmt::Display for Excuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NeverDurable => "never durable",
            Self::CloseUnderWay => "close under way",
            Self::Expired => "expired",
            Self::DeletedOnClose => "deleted on close",
            Self::OthersHadItOpen => "others had it open",
            Self::Intruder => "intruder",
        })
    }
}

/// Which promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breach {
    /// An acknowledged open is gone, or is not what it was.
    Lost,
    /// Two owners at the same time, or an owner again after somebody else was.
    OwnedTwice,
    /// A file or its contents are gone.
    WronglyDeleted,
    /// A file that should have been deleted is there.
    LeftBehind,
    /// A lease was given back although somebody had written meanwhile.
    StaleCache,
    /// An open outlived its time.
    OutlivedItsTime,
    /// A request was refused, or nobody answered, without a reason.
    Unavailable,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lost => "lost",
            Self::OwnedTwice => "owned twice",
            Self::WronglyDeleted => "wrongly deleted",
            Self::LeftBehind => "left behind",
            Self::StaleCache => "stale cache",
            Self::OutlivedItsTime => "outlived its time",
            Self::Unavailable => "unavailable",
        })
    }
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    /// In which round, counted from 1.
    pub round: usize,
    /// Which promise.
    pub breach: Breach,
    /// What happened, in words.
    pub what: String,
    /// The history of the open concerned, if it is about one.
    pub history: String,
}

/// What became of opens whose connection was lost.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Rounds that did this.
    pub rounds: usize,
    /// Came back as they were.
    pub reclaimed: u64,
    /// Did not.
    pub lost: u64,
    /// Were refused for a good reason.
    pub excused: BTreeMap<Excuse, u64>,
    /// From the signal to the answer, of those that came back.
    pub times: Vec<Duration>,
}

/// What this round's blow was, for whoever asks what his loss was due to.
#[derive(Clone, Debug)]
pub(super) struct Blow {
    pub(super) death: Death,
    pub(super) at: Instant,
    pub(super) victims: Vec<usize>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Oracle {
    started: Instant,
    next_id: AtomicU64,
    account: Mutex<Account>,
}

/// All that is counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    pub(super) round: usize,
    pub(super) blow: Option<Blow>,
    pub(super) acknowledged: u64,
    pub(super) closed: u64,
    pub(super) claimed_again: u64,
    pub(super) files_checked: u64,
    pub(super) lease_checks: u64,
    pub(super) exclusive_grants: u64,
    pub(super) expiries: u64,
    /// By death; `None` is the loss of a connection that no death explains.
    pub(super) tallies: BTreeMap<Option<Death>, Tally>,
    pub(super) breaches: BTreeMap<Breach, u64>,
    pub(super) violations: Vec<Violation>,
    /// What happened to everybody, in order.
    pub(super) journal: Vec<String>,
}

impl Oracle {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), next_id: AtomicU64::new(1), account: Mutex::default() }
    }

    /// A number for an open, and its empty history.
    pub(super) fn register(&self) -> (u64, History) {
        let history = History { started: self.started, events: VecDeque::new() };
        (self.next_id.fetch_add(1, Ordering::Relaxed), history)
    }

    /// Changes the account.
    pub(super) fn count<T>(&self, change: impl FnOnce(&mut Account) -> T) -> T {
        change(&mut self.account.lock().expect("nobody panics while counting"))
    }

    /// What the account says now.
    pub(super) fn account(&self) -> Account {
        self.count(|account| account.clone())
    }

    /// Takes down what happened to everybody.
    pub(super) fn note(&self, what: impl fmt::Display) {
        let line = format!("{:9.3} s  {what}", self.started.elapsed().as_secs_f64());
        self.count(|account| {
            if account.journal.len() < JOURNAL_MAX {
                account.journal.push(line);
            }
        });
    }

    /// Takes down a broken promise, and says so at once: the report comes later, if at all.
    pub(super) fn violation(&self, breach: Breach, what: impl Into<String>, history: Option<&History>) {
        let what = what.into();
        eprintln!("             broken: {breach}: {what}");
        self.count(|account| {
            *account.breaches.entry(breach).or_default() += 1;
            if account.violations.len() < VIOLATIONS_MAX {
                let history = history.map(History::to_string).unwrap_or_default();
                account.violations.push(Violation { round: account.round, breach, what, history });
            }
        });
    }

    /// An open that was held at `node` until then has come back. Returns which death it had survived.
    pub(super) fn reclaimed(&self, node: usize, held_until: Instant) {
        let now = Instant::now();
        self.count(|account| {
            let blow = account.blow_to(node, held_until).cloned();
            let tally = account.tallies.entry(blow.as_ref().map(|blow| blow.death)).or_default();
            tally.reclaimed += 1;
            tally.times.extend(blow.map(|blow| now - blow.at));
        });
    }

    /// It was refused, for a good reason.
    pub(super) fn excused(&self, node: usize, held_until: Instant, excuse: Excuse) {
        self.count(|account| {
            let death = account.blow_to(node, held_until).map(|blow| blow.death);
            *account.tallies.entry(death).or_default().excused.entry(excuse).or_default() += 1;
        });
    }

    /// An open of a file that others want too was refused, which is right if one of them may have come. Who held it, is the
    /// node and the moment in which that was confirmed last.
    pub(super) fn refused_after_visits(
        &self,
        visited: bool,
        refusal: &SmbError,
        held: (usize, Instant),
        path: &str,
        history: &History,
    ) {
        let (node, held_until) = held;
        if visited && is_gone(refusal) {
            self.excused(node, held_until, Excuse::Intruder);
        } else {
            self.lost(node, held_until, format!("{path}: {refusal}"), history);
        }
    }

    /// It did not come back, or not as it was.
    pub(super) fn lost(&self, node: usize, held_until: Instant, what: String, history: &History) {
        self.count(|account| {
            let death = account.blow_to(node, held_until).map(|blow| blow.death);
            account.tallies.entry(death).or_default().lost += 1;
        });
        self.violation(Breach::Lost, what, Some(history));
    }
}

/// Whether a refusal says that there is no such open.
pub(super) fn is_gone(refusal: &SmbError) -> bool {
    refusal.status() == Some(NtStatus::OBJECT_NAME_NOT_FOUND)
}

impl Account {
    /// The blow that took an open away which `node` had confirmed at `held_until`.
    pub(super) fn blow_to(&self, node: usize, held_until: Instant) -> Option<&Blow> {
        self.blow.as_ref().filter(|blow| blow.victims.contains(&node) && held_until <= blow.at)
    }

    /// How often a promise was broken.
    pub(super) fn breached(&self, breach: Breach) -> u64 {
        self.breaches.get(&breach).copied().unwrap_or_default()
    }
}
