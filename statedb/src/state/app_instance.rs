//! A clustered application starts again, and its new instance takes its files over from the one before
//! (MS-SMB2 3.3.5.9.13).
//!
//! The one before may be cut off and not know that it is dead: its client is not asked to give anything up, it finds
//! its opens closed. Versions keep the one that is older from doing so to the one that is newer.

use super::create::{Create, Dialect};
use super::event::CloseReason;
use super::ids::{AppInstance, CreateGuid};
use super::open::{Open, OpenDescription};
use super::outcome::Rejection;
use super::state::State;

impl State {
    /// Closes the opens that an earlier instance of the application has of the file, wherever they are, connected or
    /// not. Not to be called for a reconnect, which says nothing of instances.
    pub(super) fn close_earlier_app_instances(&mut self, create: &Create) -> Result<(), Rejection> {
        let Some(instance) = create.app_instance else { return Ok(()) };
        let mut to_close = Vec::new();
        for open in self.opens.of_app_instance(instance.id).filter(|open| is_meant(open, create)) {
            check_is_later(&open.description, create, instance)?;
            if may_close(&open.description, create) {
                to_close.push(open.description.durable_file_id);
            }
        }
        for id in to_close {
            self.close_open(id, Some(CloseReason::AppInstanceReplaced));
        }
        Ok(())
    }
}

/// Whether the open is of the same file by the same way, and another client's: the application has moved.
fn is_meant(open: &Open, create: &Create) -> bool {
    let open = &open.description;
    open.share == create.share.name
        && open.path == create.path
        && open.client_guid != create.client.client_guid
}

/// Refuses an instance that is not later than the one that has the open. Equal ones are not.
fn check_is_later(open: &OpenDescription, create: &Create, instance: AppInstance) -> Result<(), Rejection> {
    let version_there = open.app_instance.and_then(|there| there.version);
    if create.client.dialect < Dialect::Smb311 || version_there.is_none() {
        return Ok(());
    }
    // No version is less than any.
    if instance.version > version_there {
        return Ok(());
    }
    Err(Rejection::AppInstanceNotLater(open.durable_file_id))
}

/// Who may not even read the file has no business to close it for others; but for an open that was made without
/// CreateGuid on a share that promises nothing.
fn may_close(open: &OpenDescription, create: &Create) -> bool {
    create.client.may_read
        || (open.create_guid == CreateGuid::default() && !create.share.continuously_available)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::create::CreateContexts;
    use crate::state::fixtures::{CREATE_GUID, ID, SESSION, connected, create, dh2q, disconnected};
    use crate::state::ids::{AppInstanceVersion, ClientGuid, ShareName};
    use crate::state::open::Durability;
    use crate::state::oplock::Oplock;

    const OTHER_CLIENT: ClientGuid = ClientGuid([2; 16]);

    fn instance(version: Option<(u64, u64)>) -> AppInstance {
        let version = version.map(|(high, low)| AppInstanceVersion { high, low });
        AppInstance { id: [9; 16], version }
    }

    /// row 8.2: same share and path, other client.
    /// row 8.5: whether the open is connected or not.
    #[test]
    fn the_same_path_of_another_client_is_meant() {
        let lost = disconnected(Oplock::Batch, Durability::DurableV2);
        let live = connected(Oplock::Batch, Durability::DurableV2, SESSION);
        for open in [lost, live] {
            let mut create = create(Oplock::Batch, dh2q(0, false));
            assert!(!is_meant(&open, &create), "the client's own");
            create.client.client_guid = OTHER_CLIENT;
            assert!(is_meant(&open, &create));
            let elsewhere = Create { path: "other.txt".into(), ..create.clone() };
            assert!(!is_meant(&open, &elsewhere), "another path");
            create.share.name = ShareName::new("scratch");
            assert!(!is_meant(&open, &create), "another share");
        }
    }

    /// Every dialect, with versions on both sides.
    ///
    /// row 8.3: with 3.1.1 and a version in the open, only a greater one may take over.
    #[test]
    fn a_version_is_followed_by_greater_ones_alone() {
        let (not_later, later) = (false, true);
        for (there, comes, expected) in [
            (None, None, later),
            (None, Some((0, 0)), later),
            (Some((0, 0)), None, not_later),
            (Some((0, 0)), Some((0, 0)), not_later),
            (Some((1, 5)), Some((1, 4)), not_later),
            (Some((1, 5)), Some((1, 5)), not_later),
            (Some((1, 5)), Some((1, 6)), later),
            (Some((1, 5)), Some((2, 0)), later),
            (Some((1, 5)), Some((0, 9)), not_later),
        ] {
            let mut open = disconnected(Oplock::Batch, Durability::DurableV2).description;
            open.app_instance = Some(instance(there));
            for dialect in [Dialect::Smb300, Dialect::Smb302, Dialect::Smb311] {
                let mut create = create(Oplock::Batch, CreateContexts::default());
                create.client.dialect = dialect;
                let expected = if expected || dialect != Dialect::Smb311 {
                    Ok(())
                } else {
                    Err(Rejection::AppInstanceNotLater(ID))
                };
                let checked = check_is_later(&open, &create, instance(comes));
                assert_eq!(checked, expected, "{dialect}: {there:?}, then {comes:?}");
            }
        }
    }

    /// row 8.4: who may read the file may take it over.
    /// row 8.6: who may not, may not.
    /// row 8.8: but where neither the open nor the share promises anything.
    #[test]
    fn who_may_not_read_the_file_takes_over_unprotected_opens_alone() {
        for (may_read, create_guid, continuously_available, expected) in [
            (true, CREATE_GUID, true, true),
            (true, CREATE_GUID, false, true),
            (true, CreateGuid::default(), true, true),
            (true, CreateGuid::default(), false, true),
            (false, CREATE_GUID, true, false),
            (false, CREATE_GUID, false, false),
            (false, CreateGuid::default(), true, false),
            (false, CreateGuid::default(), false, true),
        ] {
            let mut open = disconnected(Oplock::Batch, Durability::DurableV2).description;
            open.create_guid = create_guid;
            let mut create = create(Oplock::Batch, CreateContexts::default());
            create.client.may_read = may_read;
            create.share.continuously_available = continuously_available;
            assert_eq!(
                may_close(&open, &create),
                expected,
                "may_read={may_read} create_guid={create_guid} continuously_available={continuously_available}"
            );
        }
    }
}
