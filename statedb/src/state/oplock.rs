//! What an open may cache: oplocks and leases. Who may have which of them beside whom is decided in `caching`.

use std::fmt;

use super::ids::LeaseKey;

/// What a lease allows its holder to cache (MS-SMB2 2.2.13.2.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseState(pub u32);

impl LeaseState {
    /// READ caching.
    pub const READ: u32 = 0x1;
    /// HANDLE caching: the holder may keep the handle open although the application closed it.
    pub const HANDLE: u32 = 0x2;
    /// WRITE caching.
    pub const WRITE: u32 = 0x4;

    /// Nothing may be cached.
    pub const NONE: Self = Self(0);

    /// Whether the lease has handle caching, without which an open with a lease is not durable.
    #[must_use]
    pub fn has_handle_caching(self) -> bool {
        self.0 & Self::HANDLE != 0
    }

    /// Whether it has read caching.
    #[must_use]
    pub fn has_read_caching(self) -> bool {
        self.0 & Self::READ != 0
    }

    /// Whether it has write caching: what others would read may be at its holder alone.
    #[must_use]
    pub fn has_write_caching(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    /// Whether it allows nothing that `other` does not allow.
    #[must_use]
    pub fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// What both allow.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is left of it without some kinds of caching.
    #[must_use]
    pub fn without(self, caching: u32) -> Self {
        Self(self.0 & !caching)
    }
}

/// Counts the changes of a lease's state (MS-SMB2 3.3.1.12). Zero for a v1 lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseEpoch(pub u16);

/// The form of the lease context that the client used (MS-SMB2 3.3.1.12, `Lease.Version`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseVersion {
    /// SMB2_CREATE_REQUEST_LEASE (MS-SMB2 2.2.13.2.8).
    V1,
    /// SMB2_CREATE_REQUEST_LEASE_V2 (MS-SMB2 2.2.13.2.10).
    V2,
}

/// The lease that an open belongs to. All opens of a lease say the same of it, but for the parent key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its key; unique within the ClientGuid.
    pub key: LeaseKey,
    /// What it allows.
    pub state: LeaseState,
    /// How often it has changed.
    pub epoch: LeaseEpoch,
    /// The form in which its breaks are announced.
    pub version: LeaseVersion,
    /// The key of the lease on the directory of the file, if the client named one (`Lease.ParentLeaseKey`): what
    /// this open does there does not break that lease.
    pub parent: Option<LeaseKey>,
}

impl Lease {
    /// The epoch after the next change: one more, for a v2 lease (MS-SMB2 3.3.1.12). A lease that is granted counts
    /// on from what its client knows, and so does one that is broken or upgraded.
    #[must_use]
    pub fn next_epoch(self) -> LeaseEpoch {
        match self.version {
            LeaseVersion::V1 => LeaseEpoch(0),
            LeaseVersion::V2 => LeaseEpoch(self.epoch.0.wrapping_add(1)),
        }
    }
}

/// The OplockLevel of a CREATE or of an acknowledgement (MS-SMB2 2.2.13, 2.2.24.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OplockLevel {
    /// SMB2_OPLOCK_LEVEL_NONE.
    None,
    /// SMB2_OPLOCK_LEVEL_II.
    LevelII,
    /// SMB2_OPLOCK_LEVEL_EXCLUSIVE.
    Exclusive,
    /// SMB2_OPLOCK_LEVEL_BATCH.
    Batch,
    /// SMB2_OPLOCK_LEVEL_LEASE.
    Lease,
}

/// What the open may cache: `Open.OplockLevel` (MS-SMB2 3.3.1.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oplock {
    /// Nothing.
    None,
    /// Read caching, shared.
    LevelII,
    /// Read and write caching.
    Exclusive,
    /// Read, write and handle caching.
    Batch,
    /// As the lease says.
    Lease(Lease),
}

impl Oplock {
    /// Its level.
    #[must_use]
    pub fn level(self) -> OplockLevel {
        match self {
            Self::None => OplockLevel::None,
            Self::LevelII => OplockLevel::LevelII,
            Self::Exclusive => OplockLevel::Exclusive,
            Self::Batch => OplockLevel::Batch,
            Self::Lease(_) => OplockLevel::Lease,
        }
    }

    /// What it allows its holder to cache, in the terms of leases.
    #[must_use]
    pub fn caching(self) -> LeaseState {
        LeaseState(match self {
            Self::None => 0,
            Self::LevelII => LeaseState::READ,
            Self::Exclusive => LeaseState::READ | LeaseState::WRITE,
            Self::Batch => LeaseState::READ | LeaseState::WRITE | LeaseState::HANDLE,
            Self::Lease(lease) => lease.state.0,
        })
    }

    /// The lease, if it is one.
    #[must_use]
    pub fn lease(self) -> Option<Lease> {
        match self {
            Self::Lease(lease) => Some(lease),
            _ => None,
        }
    }

    /// Whether its holder may keep the handle open although the application closed it. Without that a
    /// durable open does not outlive its connection.
    #[must_use]
    pub fn has_handle_caching(self) -> bool {
        match self {
            Self::Batch => true,
            Self::Lease(lease) => lease.state.has_handle_caching(),
            Self::None | Self::LevelII | Self::Exclusive => false,
        }
    }
}

/// `Open.OplockState` (MS-SMB2 3.3.1.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OplockState {
    /// No break is under way.
    Held,
    /// A break was sent and not acknowledged yet. An open in this state does not outlive its connection.
    Breaking,
}

impl fmt::Display for LeaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("-");
        }
        for (bit, letter) in [(Self::READ, "R"), (Self::WRITE, "W"), (Self::HANDLE, "H")] {
            if self.0 & bit != 0 {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Oplock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lease(lease) => lease.state.fmt(f),
            oplock => oplock.level().fmt(f),
        }
    }
}

impl fmt::Display for OplockLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::LevelII => "level2",
            Self::Exclusive => "exclusive",
            Self::Batch => "batch",
            Self::Lease => "lease",
        })
    }
}

impl fmt::Display for OplockState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Held => "held",
            Self::Breaking => "breaking",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_states_read_as_the_specification_writes_them() {
        let expected = ["-", "R", "H", "RH", "W", "RW", "WH", "RWH"];
        for (bits, display) in (0..).zip(expected) {
            assert_eq!(LeaseState(bits).to_string(), display);
            assert_eq!(LeaseState(bits).has_handle_caching(), display.contains('H'), "{display}");
        }
        assert!(!LeaseState(!LeaseState::HANDLE).has_handle_caching(), "unknown bits grant nothing");
    }

    #[test]
    fn oplocks_display_their_level_or_lease_state() {
        let lease = Lease {
            key: LeaseKey([0; 16]),
            state: LeaseState(3),
            epoch: LeaseEpoch(1),
            version: LeaseVersion::V1,
            parent: None,
        };
        for (oplock, display) in [
            (Oplock::None, "none"),
            (Oplock::LevelII, "level2"),
            (Oplock::Exclusive, "exclusive"),
            (Oplock::Batch, "batch"),
            (Oplock::Lease(lease), "RH"),
        ] {
            assert_eq!(oplock.to_string(), display);
        }
    }
}
