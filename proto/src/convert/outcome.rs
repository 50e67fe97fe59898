//! `Outcome`, and `Opened` inside it.

use statedb::{DurableAnswer, DurableFileId, Incarnation, Millis, Opened, Outcome, Timestamp};

use super::enumerations::{optional, specified};
use super::ids::{durable_file_ids, numbers};
use super::required;
use crate::WireError;
use crate::pb::smb::v1 as pb;
use pb::durable_answer::Context;
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
            Outcome::Expired { closed, breaks_ended } => {
                PbOutcome::Expired(pb::Expired { closed: numbers(closed), breaks_ended: *breaks_ended })
            }
            Outcome::Opened(opened) => PbOutcome::Opened((*opened).into()),
            Outcome::BreakPending => PbOutcome::BreakPending(pb::Nothing {}),
            Outcome::DeleteFirst { file } => PbOutcome::DeleteFirst((*file).into()),
            Outcome::Cancelled => PbOutcome::Cancelled(pb::Nothing {}),
            Outcome::BreakAcknowledged => PbOutcome::BreakAcknowledged(pb::Nothing {}),
            Outcome::Locked { is_replay } => PbOutcome::Locked(pb::Locked { is_replay: *is_replay }),
            Outcome::Proceed => PbOutcome::Proceed(pb::Nothing {}),
            Outcome::Resilient { timeout } => PbOutcome::Resilient(pb::Resilient { timeout_ms: timeout.0 }),
            Outcome::SessionEnded { disconnected, closed } => PbOutcome::SessionEnded(pb::SessionEnded {
                disconnected: numbers(disconnected),
                closed: numbers(closed),
            }),
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
            PbOutcome::Expired(expired) => {
                Self::Expired { closed: durable_file_ids(expired.closed), breaks_ended: expired.breaks_ended }
            }
            PbOutcome::Opened(opened) => Self::Opened(opened.try_into()?),
            PbOutcome::BreakPending(pb::Nothing {}) => Self::BreakPending,
            PbOutcome::DeleteFirst(file) => Self::DeleteFirst { file: file.into() },
            PbOutcome::Cancelled(pb::Nothing {}) => Self::Cancelled,
            PbOutcome::BreakAcknowledged(pb::Nothing {}) => Self::BreakAcknowledged,
            PbOutcome::Locked(locked) => Self::Locked { is_replay: locked.is_replay },
            PbOutcome::Proceed(pb::Nothing {}) => Self::Proceed,
            PbOutcome::Resilient(resilient) => Self::Resilient { timeout: Millis(resilient.timeout_ms) },
            PbOutcome::SessionEnded(ended) => Self::SessionEnded {
                disconnected: durable_file_ids(ended.disconnected),
                closed: durable_file_ids(ended.closed),
            },
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

impl From<Opened> for pb::Opened {
    fn from(opened: Opened) -> Self {
        Self {
            durable_file_id: opened.durable_file_id.0,
            how: pb::OpenedHow::from(opened.how).into(),
            create_action: pb::CreateAction::from(opened.create_action).into(),
            oplock: Some(opened.oplock.into()),
            is_lease_breaking: opened.is_lease_breaking,
            durable: opened.durable.map(Into::into),
        }
    }
}

impl TryFrom<pb::Opened> for Opened {
    type Error = WireError;

    fn try_from(opened: pb::Opened) -> Result<Self, WireError> {
        const MESSAGE: &str = "Opened";
        Ok(Self {
            durable_file_id: DurableFileId(opened.durable_file_id),
            how: specified(MESSAGE, "how", opened.how)?,
            create_action: optional(MESSAGE, "create_action", opened.create_action)?.unwrap_or_default(),
            oplock: required(MESSAGE, "oplock", opened.oplock)?.try_into()?,
            is_lease_breaking: opened.is_lease_breaking,
            durable: opened.durable.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<DurableAnswer> for pb::DurableAnswer {
    fn from(answer: DurableAnswer) -> Self {
        let context = match answer {
            DurableAnswer::V1 => Context::V1(pb::Nothing {}),
            DurableAnswer::V2 { timeout, persistent } => {
                Context::V2(pb::DurableAnswerV2 { timeout_ms: timeout.0, persistent })
            }
        };
        Self { context: Some(context) }
    }
}

impl TryFrom<pb::DurableAnswer> for DurableAnswer {
    type Error = WireError;

    fn try_from(answer: pb::DurableAnswer) -> Result<Self, WireError> {
        Ok(match required("DurableAnswer", "context", answer.context)? {
            Context::V1(pb::Nothing {}) => Self::V1,
            Context::V2(v2) => Self::V2 { timeout: Millis(v2.timeout_ms), persistent: v2.persistent },
        })
    }
}
