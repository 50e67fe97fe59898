//! How Samba draws the ids of opens, and how it is kept from ids that it must not draw.
//!
//! smbd draws 32 random bits, looks whether there is a record under that key, and draws again if that record says that
//! the id is in use. The shim answers such a look-up with [`in_use_record`] where an id belongs to another node, or is
//! alive anywhere in the cluster.

use statedb::{AppInstanceVersion, ClientGuid, CreateGuid, DurableFileId, FileKey, Millis};

use crate::records::{NtTime, OpenGlobal, SecurityId, ServerId};
use crate::version::Layout;

/// By how many bytes a SID of fifteen sub-authorities, the most that it can have, is longer than one of five.
const LONGEST_SID_ADDS: u32 = 4 * 10;

/// The length from which on an `open_global` value may be that of a durable open: one byte more than the longest of an
/// open that is not durable. The cookie of a durable open adds at least 270, which is more than a shorter SID takes away.
#[must_use]
pub fn open_global_durable_min_len(layout: Layout) -> u32 {
    let not_durable_len = match layout {
        Layout::V4_17 => 256,
        Layout::V4_22 => 248,
        Layout::V4_25 => 304,
    };
    not_durable_len + LONGEST_SID_ADDS + 1
}

/// The value of an `open_global` record that smbd takes for an open in use, and that no client can reconnect to: it is
/// disconnected, so that no process is looked for, and it is not durable, so that a reconnect that meets it is refused.
#[must_use]
pub fn in_use_record(layout: Layout) -> Vec<u8> {
    let nobody = SecurityId { revision: 1, authority: [0; 6], sub_authorities: vec![0] };
    let open = OpenGlobal {
        seqnum: 1,
        server_id: ServerId::DISCONNECTED,
        session_global_id: 0,
        tcon_global_id: 0,
        open_global_id: 0,
        open_persistent_id: DurableFileId(0),
        open_volatile_id: 0,
        file: FileKey { device: 0, inode: 0, extid: 0 },
        name_hash: 0,
        open_owner: nobody,
        open_time: NtTime::default(),
        create_guid: CreateGuid::default(),
        client_guid: ClientGuid::default(),
        app_instance_id: [0; 16],
        app_instance_version: AppInstanceVersion { high: 0, low: 0 },
        create_action: 0,
        disconnect_time: NtTime::default(),
        durable_timeout: Millis::default(),
        durable: false,
        persistent: false,
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
        for layout in Layout::ALL {
            let record = OpenGlobal::decode(layout, &in_use_record(layout)).expect("it was just encoded");
            assert_eq!(record.holder(), Holder::Disconnected, "{layout}");
            assert!(!record.durable, "{layout}");
        }
    }

    #[test]
    fn a_record_that_is_not_durable_is_short_whatever_its_owner() {
        for layout in Layout::ALL {
            let mut open = OpenGlobal::decode(layout, &in_use_record(layout)).expect("it was just encoded");
            open.open_owner.sub_authorities = vec![u32::MAX; SecurityId::SUB_AUTHORITIES_MAX];
            let longest = u32::try_from(open.encode(layout).len()).expect("a few hundred bytes");
            assert_eq!(longest + 1, open_global_durable_min_len(layout), "{layout}");
        }
    }
}
