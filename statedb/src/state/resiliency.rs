//! FSCTL_LMR_REQUEST_RESILIENCY: a client of SMB 2.1 wants an open to outlive its connection, whatever it may cache
//! (MS-SMB2 3.3.5.15.9).

use super::create::Dialect;
use super::ids::{DurableFileId, Owner};
use super::limits::Limits;
use super::open::Durability;
use super::outcome::{Outcome, Rejection};
use super::state::State;
use super::time::Millis;

/// What a client gets that leaves it to the server. That of Windows (MS-SMB2 appendix A, note on 3.3.5.15.9).
const RESILIENCY_TIMEOUT_DEFAULT: Millis = Millis(120_000);

impl State {
    pub(super) fn request_resiliency(
        &mut self,
        owner: Owner,
        id: DurableFileId,
        timeout: Millis,
        dialect: Dialect,
    ) -> Result<Outcome, Rejection> {
        self.connected_open(owner, id)?;
        let timeout = granted_timeout(timeout, dialect, &self.limits)?;
        self.edit_open(id, |open| {
            // A persistent open is more than that: it keeps others out while its client is away.
            if open.durability != Durability::Persistent {
                open.durability = Durability::Resilient;
                open.durable_open_timeout = timeout;
            }
        });
        Ok(Outcome::Resilient { timeout })
    }
}

/// `Open.ResiliencyTimeout`, if there is to be any. One that is too long is refused and not cut.
fn granted_timeout(requested: Millis, dialect: Dialect, limits: &Limits) -> Result<Millis, Rejection> {
    if dialect == Dialect::Smb202 {
        return Err(Rejection::ResiliencyNotInDialect);
    }
    let limit = limits.resiliency_timeout_max.min(limits.durable_open_timeout_max);
    match requested {
        Millis(0) => Ok(RESILIENCY_TIMEOUT_DEFAULT.min(limit)),
        requested if requested > limit => Err(Rejection::ResiliencyTooLong { limit }),
        requested => Ok(requested),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// row 2.5.1: SMB 2.0.2 has no resiliency, whatever is asked for.
    /// row 2.5.2: a timeout above the limit is refused.
    /// row 2.5.3: an accepted one is granted, and 120 s in the place of none.
    #[test]
    fn resiliency_is_granted_up_to_its_limit_from_smb_2_1_on() {
        let too_long = Err(Rejection::ResiliencyTooLong { limit: Millis(300_000) });
        for (requested, expected) in [
            (Millis(0), Ok(Millis(120_000))),
            (Millis(1), Ok(Millis(1))),
            (Millis(120_000), Ok(Millis(120_000))),
            (Millis(300_000), Ok(Millis(300_000))),
            (Millis(300_001), too_long.clone()),
            (Millis(u64::from(u32::MAX)), too_long),
        ] {
            for dialect in [Dialect::Smb210, Dialect::Smb300, Dialect::Smb302, Dialect::Smb311] {
                assert_eq!(granted_timeout(requested, dialect, &Limits::DEFAULT), expected, "{requested}");
            }
            assert_eq!(
                granted_timeout(requested, Dialect::Smb202, &Limits::DEFAULT),
                Err(Rejection::ResiliencyNotInDialect),
                "{requested}"
            );
        }
    }

    #[test]
    fn resiliency_is_not_granted_beyond_what_any_open_may_outlive_its_connection_by() {
        let limits = Limits { durable_open_timeout_max: Millis(60_000), ..Limits::DEFAULT };
        for (requested, expected) in [
            (Millis(0), Ok(Millis(60_000))),
            (Millis(60_000), Ok(Millis(60_000))),
            (Millis(60_001), Err(Rejection::ResiliencyTooLong { limit: Millis(60_000) })),
        ] {
            assert_eq!(granted_timeout(requested, Dialect::Smb210, &limits), expected, "{requested}");
        }
    }
}
