//! Logging: where it goes, and how errors are told.
//!
//! Fields have one name everywhere: `node_id`, `term`, `log_index`, `incarnation`, and for opens
//! `durable_file_id`, `create_guid`, `client_guid`, `lease_key`, `share`.

use std::error::Error;
use std::fmt;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::raft::SAID_TOO_OFTEN;

/// Writes log lines to standard error, as systemd and containers expect them. `filter` is of `tracing`'s form.
///
/// # Errors
///
/// If the filter cannot be understood.
pub fn init(filter: &str) -> Result<(), ParseError> {
    let filter = self::filter(filter)?;
    // A second call, in a test, keeps the first subscriber.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
    Ok(())
}

/// Understands a filter of `tracing`'s form: `info`, `node=debug`. What it does not name itself and is said too often is
/// left out.
///
/// # Errors
///
/// If it cannot be understood.
pub fn filter(text: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(format!("{SAID_TOO_OFTEN},{text}"))
}

/// Shows an error and what caused it, the outermost first.
pub fn chain(error: &dyn Error) -> impl fmt::Display {
    struct Chain<'a>(&'a dyn Error);
    impl fmt::Display for Chain<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}", self.0)?;
            let mut source = self.0.source();
            while let Some(cause) = source {
                write!(f, ": {cause}")?;
                source = cause.source();
            }
            Ok(())
        }
    }
    Chain(error)
}
