//! What the create contexts about durability ask for together (MS-SMB2 3.3.5.9.6, .7, .10 and .12).
//!
//! A request that contradicts itself is refused before anything is looked up, so that the refusal says nothing of
//! what is open. Contexts that the connection's dialect does not know never get here: only an SMB server knows them.

use super::create::{CreateContexts, DurableReconnectV2};
use super::ids::DurableFileId;
use super::outcome::Rejection;

/// What a CREATE wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A new open, durable or not.
    NewOpen,
    /// An open that the client had before.
    Reconnect(Reconnect),
}

/// Which open a client wants back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reconnect {
    /// By `DHnC`, which names its id alone.
    V1(DurableFileId),
    /// By `DH2C`.
    V2(DurableReconnectV2),
}

impl CreateContexts {
    /// What the contexts want together; a refusal if they exclude each other.
    pub(super) fn wanted(&self) -> Result<Wanted, Rejection> {
        let Self { durable_request, durable_reconnect, durable_request_v2, durable_reconnect_v2 } = *self;
        match (durable_request, durable_reconnect, durable_request_v2, durable_reconnect_v2) {
            (_, None, None, None) | (false, None, Some(_), None) => Ok(Wanted::NewOpen),
            // Some clients send DHnQ along, which has nothing to add.
            (_, Some(open), None, None) => Ok(Wanted::Reconnect(Reconnect::V1(open))),
            (false, None, None, Some(reconnect)) => Ok(Wanted::Reconnect(Reconnect::V2(reconnect))),
            _ => Err(Rejection::ContextsExcludeEachOther),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::create::DurableRequestV2;
    use crate::state::ids::CreateGuid;
    use crate::state::time::Millis;

    const ID: DurableFileId = DurableFileId(7);
    const CREATE_GUID: CreateGuid = CreateGuid([7; 16]);

    /// All sixteen combinations.
    ///
    /// row 2.1.1: DHnQ beside DHnC is ignored.
    /// row 2.1.2: DHnQ excludes DH2Q and DH2C.
    /// row 2.1.3: DHnC excludes DH2Q and DH2C.
    /// row 2.1.4: DH2Q excludes the other three.
    /// row 2.1.5: DH2C excludes the other three.
    /// row 4.2.1: the same as 2.1.1.
    /// row 4.2.2: the same as 2.1.3.
    /// row 4.3.1: the same as 2.1.5.
    #[test]
    fn contexts_want_one_thing_or_exclude_each_other() {
        let request_v2 = DurableRequestV2 { timeout: Millis(0), persistent: false, create_guid: CREATE_GUID };
        let reconnect_v2 =
            DurableReconnectV2 { durable_file_id: ID, create_guid: CREATE_GUID, persistent: false };
        let new_open = Ok(Wanted::NewOpen);
        let by_v1 = Ok(Wanted::Reconnect(Reconnect::V1(ID)));
        let by_v2 = Ok(Wanted::Reconnect(Reconnect::V2(reconnect_v2)));
        let refused = Err(Rejection::ContextsExcludeEachOther);
        for (dhnq, dhnc, dh2q, dh2c, expected) in [
            (false, false, false, false, &new_open),
            (true, false, false, false, &new_open),
            (false, true, false, false, &by_v1),
            (true, true, false, false, &by_v1),
            (false, false, true, false, &new_open),
            (true, false, true, false, &refused),
            (false, true, true, false, &refused),
            (true, true, true, false, &refused),
            (false, false, false, true, &by_v2),
            (true, false, false, true, &refused),
            (false, true, false, true, &refused),
            (true, true, false, true, &refused),
            (false, false, true, true, &refused),
            (true, false, true, true, &refused),
            (false, true, true, true, &refused),
            (true, true, true, true, &refused),
        ] {
            let contexts = CreateContexts {
                durable_request: dhnq,
                durable_reconnect: dhnc.then_some(ID),
                durable_request_v2: dh2q.then_some(request_v2),
                durable_reconnect_v2: dh2c.then_some(reconnect_v2),
            };
            assert_eq!(contexts.wanted(), *expected, "{contexts:?}");
        }
    }
}
