//! One newtype per identity, so that two of them cannot be mixed up.

use std::fmt;
use std::sync::Arc;

/// The position of an entry in the Raft log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The term of the leader that proposed the entry.
    pub term: u64,
    /// Where the entry stands in the log. The first entry has index 0.
    pub index: u64,
}

/// A Holdfast node: one sidecar and the SMB service beside it. Chosen by the operator, stable for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

/// One start of the SMB service of a node; it only grows. This is the fencing token: a command from an
/// incarnation that was superseded or declared down is refused, whatever it asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// A random name that one start of an SMB service gives itself. It tells a service that went on while
/// its sidecar was restarted (same instance, same incarnation) from a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance(pub [u8; 16]);

/// Who owns a connected open: a node, in one of its incarnations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The node.
    pub node: NodeId,
    /// The start of its SMB service that holds the open.
    pub incarnation: Incarnation,
}

/// The persistent half of an SMB2 FileId (MS-SMB2 3.3.1.10, `Open.DurableFileId`): unique in the
/// cluster, and the same before and after a reconnect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DurableFileId(pub u64);

/// The CreateGuid of a durable v2 request (MS-SMB2 2.2.13.2.11). All zero for a v1 handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CreateGuid(pub [u8; 16]);

/// The ClientGuid of the NEGOTIATE request of the client that made the open (MS-SMB2 2.2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientGuid(pub [u8; 16]);

/// A lease key (MS-SMB2 2.2.13.2.8). It identifies a lease only together with the ClientGuid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseKey(pub [u8; 16]);

/// A file, by what the file system calls it. It must be the same on every node that can serve the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey {
    /// The device the file is on.
    pub device: u64,
    /// Its inode number.
    pub inode: u64,
    /// Samba's extension id: 0 but for streams and the like.
    pub extid: u64,
}

/// The name of a share, in lower case: SMB compares share names without regard to case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShareName(Arc<str>);

impl ShareName {
    /// The name as the cluster knows it.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.to_lowercase().into())
    }

    /// The name, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A security identifier in its string form, `S-1-5-21-…`: the `DurableOwner` of an open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sid(pub Arc<str>);

/// `Session.SessionId` (MS-SMB2 3.3.1.8). Sessions die with their node; the cluster knows the id alone, to find
/// the opens of a session that its client has replaced by another one on whichever node. So SMB servers have to
/// draw them from ranges of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What a clustered application calls itself, so that its next instance can take its files over from the one
/// before (MS-SMB2 2.2.13.2.13 and 2.2.13.2.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppInstance {
    /// `Open.AppInstanceId`.
    pub id: [u8; 16],
    /// `Open.ApplicationInstanceVersionHigh` and `Low`, if the client gave a version.
    pub version: Option<AppInstanceVersion>,
}

/// Which of two instances of an application is the later one: compared by `high` first, then by `low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppInstanceVersion {
    /// The more significant half.
    pub high: u64,
    /// The less significant half.
    pub low: u64,
}

/// A lease as the server knows it: a key means something only together with the client (MS-SMB2 3.3.1.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId {
    /// Whose lease table.
    pub client_guid: ClientGuid,
    /// The lease in it.
    pub key: LeaseKey,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.term, self.index)
    }
}

impl fmt::Display for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{}:{}", self.device, self.inode, self.extid)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.incarnation)
    }
}

macro_rules! display_number {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}
display_number!(NodeId, Incarnation, DurableFileId, SessionId, ShareName, Sid);

macro_rules! display_hex {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    )+};
}
display_hex!(Instance, CreateGuid, ClientGuid, LeaseKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_names_are_compared_without_regard_to_case() {
        assert_eq!(ShareName::new("Data"), ShareName::new("DATA"));
        assert_eq!(ShareName::new("Ärzte").as_str(), "ärzte");
    }

    #[test]
    fn identities_display_as_logs_and_scripts_write_them() {
        let owner = Owner { node: NodeId(1), incarnation: Incarnation(2) };
        let guid = CreateGuid([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        for (displayed, expected) in [
            (LogId { term: 3, index: 12 }.to_string(), "3/12"),
            (owner.to_string(), "1.2"),
            (FileKey { device: 0xFD01, inode: 42, extid: 0 }.to_string(), "fd01:42:0"),
            (DurableFileId(7).to_string(), "7"),
            (guid.to_string(), "000102030405060708090a0b0c0d0eff"),
        ] {
            assert_eq!(displayed, expected);
        }
    }
}
