//! What a run has shown, for people and for machines.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use super::{
    Options,
    oracle::{Account, Breach, Tally, Violation},
};

/// See the module.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where the schedule came from.
    pub seed: u64,
    /// Version of `smbd`.
    pub samba: Option<String>,
    /// Promises that were broken. Empty if all were kept.
    pub violations: Vec<Violation>,
    options: Options,
    account: Account,
    elapsed: Duration,
}

/// What is called a promise here, in the order of the table.
const BREACHES: [Breach; 7] = [
    Breach::Lost,
    Breach::OwnedTwice,
    Breach::WronglyDeleted,
    Breach::LeftBehind,
    Breach::StaleCache,
    Breach::OutlivedItsTime,
    Breach::Unavailable,
];

impl Report {
    pub(super) fn new(options: &Options, samba: Option<String>, account: Account, elapsed: Duration) -> Self {
        let violations = account.violations.clone();
        Self { seed: options.seed, samba, violations, options: options.clone(), account, elapsed }
    }

    /// Whether every promise was kept.
    pub fn all_kept(&self) -> bool {
        self.account.breaches.is_empty()
    }

    /// Durable opens that clients were granted.
    pub fn acknowledged(&self) -> u64 {
        self.account.acknowledged
    }

    /// Opens that were claimed after a loss, and came back.
    pub fn reclaimed(&self) -> u64 {
        self.account.tallies.values().map(|tally| tally.reclaimed).sum()
    }

    /// The same for machines.
    pub fn json(&self) -> Value {
        let account = &self.account;
        let mut deaths = serde_json::Map::new();
        for (death, tally) in &account.tallies {
            let name = death.map_or("no death".to_owned(), |death| death.to_string());
            let excused: serde_json::Map<_, _> =
                tally.excused.iter().map(|(excuse, count)| (excuse.to_string(), json!(count))).collect();
            let times = quantiles(tally).map(|[p50, p99, max]| json!({ "p50": p50, "p99": p99, "max": max }));
            deaths.insert(
                name,
                json!({
                    "rounds": tally.rounds,
                    "reclaimed": tally.reclaimed,
                    "lost": tally.lost,
                    "refused_rightly": excused,
                    "ms_from_signal_to_reclaimed": times,
                }),
            );
        }
        let breaches: serde_json::Map<_, _> = BREACHES
            .iter()
            .map(|breach| (breach.to_string().replace(' ', "_"), json!(account.breached(*breach))))
            .collect();
        json!({
            "seed": self.seed,
            "smbd": self.samba,
            "rounds": self.options.rounds,
            "clients": self.options.clients,
            "opens_held": self.options.opens,
            "seconds": self.elapsed.as_secs(),
            "acknowledged": account.acknowledged,
            "closed": account.closed,
            "claimed_again_while_held": account.claimed_again,
            "files_compared": account.files_checked,
            "exclusive_grants": account.exclusive_grants,
            "regranted_leases_checked": account.lease_checks,
            "left_to_expire": account.expiries,
            "broken": breaches,
            "deaths": deaths,
            "violations": self.violations.iter().map(|violation| json!({
                "round": violation.round,
                "broken": violation.breach.to_string(),
                "what": violation.what,
            })).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account = &self.account;
        writeln!(
            f,
            "Seed {}, smbd {}: {} rounds in {} s; {} clients holding {} opens.\n",
            self.seed,
            self.samba.as_deref().unwrap_or("of unknown version"),
            self.options.rounds,
            self.elapsed.as_secs(),
            self.options.clients,
            self.options.opens,
        )?;
        writeln!(
            f,
            "    {:<26} {:>6} {:>10} {:>6}   {:>8} {:>8} {:>8}   refused for a reason",
            "SIGKILL or SIGSTOP of", "rounds", "reclaimed", "lost", "p50", "p99", "max ms"
        )?;
        for (death, tally) in &account.tallies {
            let name = death.map_or("(connection lost)".to_owned(), |death| death.to_string());
            let times = quantiles(tally).map_or([String::new(), String::new(), String::new()], |times| {
                times.map(|time| format!("{time:.0}"))
            });
            let [p50, p99, max] = times;
            let excused: Vec<_> =
                tally.excused.iter().map(|(excuse, count)| format!("{excuse} {count}")).collect();
            writeln!(
                f,
                "    {name:<26} {:>6} {:>10} {:>6}   {p50:>8} {p99:>8} {max:>8}   {}",
                tally.rounds,
                tally.reclaimed,
                tally.lost,
                excused.join(", ")
            )?;
        }
        writeln!(f)?;
        for (what, count) in [
            ("durable opens acknowledged", account.acknowledged),
            ("closed by their clients", account.closed),
            ("claimed again while held", account.claimed_again),
            ("files compared", account.files_checked),
            ("exclusive opens granted", account.exclusive_grants),
            ("re-granted leases checked", account.lease_checks),
            ("opens left to expire", account.expiries),
        ] {
            writeln!(f, "    {what:<26} {count:>10}")?;
        }
        writeln!(f)?;
        for breach in BREACHES {
            writeln!(f, "    {breach:<26} {:>10}", account.breached(breach))?;
        }
        if !self.violations.is_empty() {
            writeln!(f, "\nBroken promises, with logs in {}:", self.options.evidence.display())?;
        }
        for Violation { round, breach, what, .. } in self.violations.iter().take(20) {
            writeln!(f, "    round {round}: {breach}: {what}")?;
        }
        Ok(())
    }
}

/// Median, 99th percentile and maximum, in ms.
fn quantiles(tally: &Tally) -> Option<[f64; 3]> {
    let mut times = tally.times.clone();
    times.sort_unstable();
    let last = times.len().checked_sub(1)?;
    Some([50, 99, 100].map(|percent| times[last * percent / 100].as_secs_f64() * 1000.0))
}
