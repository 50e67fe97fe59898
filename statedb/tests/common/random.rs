//! What the tests share that try random cases.

use proptest::test_runner::Config;
use statedb::Outcome;

/// How many a run tries that is not told otherwise.
const DEFAULT_CASES: u32 = 256;

/// As many cases as `HOLDFAST_PROPTEST_CASES` says. A failure prints what caused it; one that is fixed becomes a script,
/// not a file of seeds.
pub(crate) fn proptest_config() -> Config {
    let cases = std::env::var("HOLDFAST_PROPTEST_CASES").map_or(DEFAULT_CASES, |cases| {
        cases.parse().expect("HOLDFAST_PROPTEST_CASES is a number of cases to try")
    });
    Config { cases, failure_persistence: None, ..Config::default() }
}

/// The name of an outcome's variant, or of the rejection's.
pub(crate) fn kind(outcome: &Outcome) -> String {
    let debug = match outcome {
        Outcome::Rejected(rejection) => format!("{rejection:?}"),
        outcome => format!("{outcome:?}"),
    };
    debug.chars().take_while(|letter| letter.is_alphanumeric()).collect()
}
