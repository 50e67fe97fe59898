//! `Outcome`.

use statedb::{Incarnation, Outcome, Timestamp};

use super::ids::{durable_file_ids, numbers};
use super::required;
use crate::WireError;
use crate::pb::storage::v1 as pb;
use pb::outcome::Outcome as PbOutcome;

impl From<&Outcome> for pb::Outcome {
    fn from(outcome: &Outcome) -> Self {
        let outcome = match outcome {
            Outcome::Registered { incarnation, first_sequence } => PbOutcome::Registered(pb::Registered {
                incarnation: incarnation.0,
                first_sequence: *first_sequence,
            }),
            Outcome::NodeDown { disconnected, closed } => PbOutcome::NodeDown(pb::NodeDownOutcome {
                disconnected: numbers(disconnected),
                closed: numbers(closed),
            }),
            Outcome::Expired { closed } => PbOutcome::Expired(pb::DurableFileIds { ids: numbers(closed) }),
            Outcome::Granted => PbOutcome::Granted(pb::Granted {}),
            Outcome::Updated => PbOutcome::Updated(pb::Updated {}),
            Outcome::Disconnected { until } => PbOutcome::DisconnectedUntilMs(until.0),
            Outcome::Reclaimed => PbOutcome::Reclaimed(pb::Reclaimed {}),
            Outcome::Closed => PbOutcome::Closed(pb::Closed {}),
            Outcome::ShareServed => PbOutcome::ShareServed(pb::ShareServed {}),
            Outcome::ShareReleased => PbOutcome::ShareReleased(pb::ShareReleased {}),
            Outcome::Rejected(rejection) => PbOutcome::Rejected(rejection.into()),
        };
        Self { outcome: Some(outcome) }
    }
}

impl TryFrom<pb::Outcome> for Outcome {
    type Error = WireError;

    fn try_from(outcome: pb::Outcome) -> Result<Self, WireError> {
        Ok(match required("Outcome", "outcome", outcome.outcome)? {
            PbOutcome::Registered(registered) => Self::Registered {
                incarnation: Incarnation(registered.incarnation),
                first_sequence: registered.first_sequence,
            },
            PbOutcome::NodeDown(down) => Self::NodeDown {
                disconnected: durable_file_ids(down.disconnected),
                closed: durable_file_ids(down.closed),
            },
            PbOutcome::Expired(expired) => Self::Expired { closed: durable_file_ids(expired.ids) },
            PbOutcome::Granted(pb::Granted {}) => Self::Granted,
            PbOutcome::Updated(pb::Updated {}) => Self::Updated,
            PbOutcome::DisconnectedUntilMs(until) => Self::Disconnected { until: Timestamp(until) },
            PbOutcome::Reclaimed(pb::Reclaimed {}) => Self::Reclaimed,
            PbOutcome::Closed(pb::Closed {}) => Self::Closed,
            PbOutcome::ShareServed(pb::ShareServed {}) => Self::ShareServed,
            PbOutcome::ShareReleased(pb::ShareReleased {}) => Self::ShareReleased,
            PbOutcome::Rejected(rejection) => Self::Rejected(rejection.try_into()?),
        })
    }
}
