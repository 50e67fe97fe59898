//! What an open may cache: oplocks and leases, as its SMB server reported them last.
//!
//! Who may have which of them at the same time is not decided here: a share has one serving node, and
//! its SMB server sees all opens.

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

    /// Whether the lease has handle caching, without which an open with a lease is not durable.
    #[must_use]
    pub fn has_handle_caching(self) -> bool {
        self.0 & Self::HANDLE != 0
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

/// The lease that an open belongs to, as of the open's last report.
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
            Self::None => f.write_str("none"),
            Self::LevelII => f.write_str("level2"),
            Self::Exclusive => f.write_str("exclusive"),
            Self::Batch => f.write_str("batch"),
            Self::Lease(lease) => lease.state.fmt(f),
        }
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
