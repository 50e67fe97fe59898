//! Enumerations: one table each, of what stands for what.

use prost::UnknownEnumValue;
use statedb::{
    Arbiter, CloseReason, CreateAction, Dialect, Durability, LeaseVersion, LockKind, OpenedHow, OplockLevel,
    OplockState,
};

use crate::WireError;
use crate::pb::events::v1 as events;
use crate::pb::smb::v1 as pb;

/// A checked enumeration that has a message's.
pub(super) trait Enumeration: Sized {
    /// The message's, with a value for "not set".
    type Pb: TryFrom<i32, Error = UnknownEnumValue>;

    /// The checked value; `None` for "not set".
    fn checked(value: Self::Pb) -> Option<Self>;
}

macro_rules! enumerations {
    ($($checked:ident = $pb:path { $($variant:ident = $pb_variant:ident),+ $(,)? })+) => {$(
        impl From<$checked> for $pb {
            fn from(value: $checked) -> Self {
                match value {
                    $($checked::$variant => Self::$pb_variant),+
                }
            }
        }

        impl Enumeration for $checked {
            type Pb = $pb;

            fn checked(value: $pb) -> Option<Self> {
                match value {
                    <$pb>::Unspecified => None,
                    $(<$pb>::$pb_variant => Some(Self::$variant)),+
                }
            }
        }
    )+};
}

enumerations! {
    Arbiter = pb::Arbiter { Cluster = Cluster, SmbServer = SmbServer, SmbCluster = SmbCluster }
    CloseReason = events::CloseReason {
        Expired = Expired,
        Purged = Purged,
        AppInstanceReplaced = AppInstanceReplaced,
        Reclaimed = Reclaimed,
    }
    CreateAction = pb::CreateAction {
        Superseded = Superseded,
        Opened = Opened,
        Created = Created,
        Overwritten = Overwritten,
    }
    Dialect = pb::Dialect { Smb202 = Smb202, Smb210 = Smb21, Smb300 = Smb30, Smb302 = Smb302, Smb311 = Smb311 }
    Durability = pb::Durability {
        NotDurable = NotDurable,
        DurableV1 = V1,
        DurableV2 = V2,
        Resilient = Resilient,
        Persistent = Persistent,
    }
    LeaseVersion = pb::LeaseVersion { V1 = V1, V2 = V2 }
    LockKind = pb::LockKind { Shared = Shared, Exclusive = Exclusive, Unlock = Unlock }
    OpenedHow = pb::OpenedHow { Created = Created, Replayed = Replayed, Reconnected = Reconnected }
    OplockLevel = pb::OplockLevel {
        None = None,
        LevelII = Ii,
        Exclusive = Exclusive,
        Batch = Batch,
        Lease = Lease,
    }
    OplockState = pb::OplockState { Held = Held, Breaking = Breaking }
}

/// The value of an enumeration; `None` if it is not set.
pub(super) fn optional<T: Enumeration>(
    message: &'static str,
    field: &'static str,
    value: i32,
) -> Result<Option<T>, WireError> {
    let value =
        T::Pb::try_from(value).map_err(|error| WireError::invalid(message, field, error.to_string()))?;
    Ok(T::checked(value))
}

/// The value of an enumeration that must be set.
pub(super) fn specified<T: Enumeration>(
    message: &'static str,
    field: &'static str,
    value: i32,
) -> Result<T, WireError> {
    optional(message, field, value)?.ok_or_else(|| WireError::invalid(message, field, "is not specified"))
}
