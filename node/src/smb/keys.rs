//! How the records of an open are keyed in Samba's databases.

use samba::records;
use statedb::{ClientGuid, DurableFileId, FileKey, LeaseId, LeaseKey, OpenDescription, Oplock};

/// The persistent id as Samba's databases know it; `None` for one that no Samba can have drawn.
#[must_use]
pub(super) fn samba_id(id: DurableFileId) -> Option<u32> {
    u32::try_from(id.0).ok()
}

/// The open whose record in `smbXsrv_open_global.tdb` has this key.
#[must_use]
pub(super) fn open_of(key: &[u8]) -> Option<DurableFileId> {
    let id = u32::from_be_bytes(key.try_into().ok()?);
    Some(DurableFileId(u64::from(id)))
}

/// The file whose records in `locking.tdb` and `brlock.tdb` have this key.
#[must_use]
pub(super) fn file_of(key: &[u8]) -> Option<FileKey> {
    let key: [u8; 24] = key.try_into().ok()?;
    let number = |part: usize| u64::from_le_bytes(std::array::from_fn(|byte| key[8 * part + byte]));
    Some(FileKey { device: number(0), inode: number(1), extid: number(2) })
}

/// The lease whose record in `leases.tdb` has this key.
#[must_use]
pub(super) fn lease_id_of(key: &[u8]) -> Option<LeaseId> {
    let (client_guid, rest) = key.split_first_chunk::<16>()?;
    Some(LeaseId { client_guid: ClientGuid(*client_guid), key: LeaseKey(rest.try_into().ok()?) })
}

/// The key in `leases.tdb` of the lease that an open belongs to.
#[must_use]
pub(super) fn lease_of(description: &OpenDescription) -> Option<[u8; 32]> {
    match description.oplock {
        Oplock::Lease(lease) => Some(records::lease_record_key(description.client_guid, lease.key)),
        Oplock::None | Oplock::LevelII | Oplock::Exclusive | Oplock::Batch => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_key_leads_back_to_the_file() {
        let file = FileKey { device: 0xfe01, inode: u64::MAX - 1, extid: 7 };
        assert_eq!(file_of(&records::file_key(file)), Some(file));
        assert_eq!(file_of(&[0; 23]), None);
    }

    #[test]
    fn a_leases_key_leads_back_to_the_lease() {
        let lease = LeaseId { client_guid: ClientGuid([3; 16]), key: LeaseKey([4; 16]) };
        assert_eq!(lease_id_of(&records::lease_record_key(lease.client_guid, lease.key)), Some(lease));
        assert_eq!(lease_id_of(&[0; 31]), None);
        assert_eq!(lease_id_of(&[0; 33]), None);
    }

    #[test]
    fn an_opens_key_leads_back_to_the_open() {
        let id = DurableFileId(0x1234_5678);
        assert_eq!(open_of(&records::open_global_key(id)), Some(id));
        assert_eq!(open_of(b"a longer key"), None);
    }
}
