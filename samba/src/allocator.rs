//! How Samba draws the ids of opens, and how it is kept from ids that it must not draw.
//!
//! smbd draws 32 random bits, looks whether there is a record under that key, and draws again if that record says that
//! the id is in use. The shim answers such a look-up with [`in_use_record`] where an id belongs to another node, or is
//! alive anywhere in the cluster.

use statedb::{ClientGuid, CreateGuid, DurableFileId, Millis};

use crate::records::{NtTime, OpenGlobal, SecurityId, ServerId};
use crate::version::Layout;

/// Bytes of the longest `open_global` value of an open that is not durable: 256 with a SID of five sub-authorities,
/// and four more for each of the ten that a SID can have beyond that. A durable open's cookie adds at least 340, so
/// that every value shorter than this is surely not durable.
const NOT_DURABLE_LEN_MAX: u32 = 256 + 4 * 10;

/// The length from which on an `open_global` value may be that of a durable open.
#[must_use]
pub fn open_global_durable_min_len(layout: Layout) -> u32 {
    match layout {
        Layout::V4_17 => NOT_DURABLE_LEN_MAX + 1,
    }
}

/// The value of an `open_global` record that smbd takes for an open in use, and that no client can reconnect to: it is
/// disconnected, so that no process is looked for, and it is not durable, so that a reconnect that meets it is refused.
#[must_use]
pub fn in_use_record(layout: Layout) -> Vec<u8> {
    let nobody = SecurityId { revision: 1, authority: [0; 6], sub_authorities: vec![0] };
    let open = OpenGlobal {
        seqnum: 1,
        server_id: ServerId::DISCONNECTED,
        open_global_id: 0,
        open_persistent_id: DurableFileId(0),
        open_volatile_id: 0,
        open_owner: nobody,
        open_time: NtTime::default(),
        create_guid: CreateGuid::default(),
        client_guid: ClientGuid::default(),
        app_instance_id: [0; 16],
        disconnect_time: NtTime::default(),
        durable_timeout: Millis::default(),
        durable: false,
        backend_cookie: None,
        channel_sequence: 0,
        channel_generation: 0,
        lock_sequence_array: [0xFF; 64],
    };
    open.encode(layout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Holder;

    #[test]
    fn the_record_in_use_decodes_and_is_nobodys() {
        let record =
            OpenGlobal::decode(Layout::V4_17, &in_use_record(Layout::V4_17)).expect("it was just encoded");
        assert_eq!(record.holder(), Holder::Disconnected);
        assert!(!record.durable);
    }

    #[test]
    fn a_record_that_is_not_durable_is_short_whatever_its_owner() {
        let mut open =
            OpenGlobal::decode(Layout::V4_17, &in_use_record(Layout::V4_17)).expect("it was just encoded");
        open.open_owner.sub_authorities = vec![u32::MAX; SecurityId::SUB_AUTHORITIES_MAX];
        let longest = u32::try_from(open.encode(Layout::V4_17).len()).expect("a few hundred bytes");
        assert!(longest < open_global_durable_min_len(Layout::V4_17), "{longest}");
    }
}
