//! The identities and times that several records have in common.

use std::fmt;
use std::time::{Duration, SystemTime};

/// A process that holds something: Samba's `server_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServerId {
    /// Its process id.
    pub pid: u64,
    /// A task in that process; 0 in smbd.
    pub task_id: u32,
    /// The CTDB node it runs on; all ones outside a cluster.
    pub vnn: u32,
    /// Random, so that a process id that was used again does not fool anyone.
    pub unique_id: u64,
}

impl ServerId {
    /// Nobody: what a lock without a holder says.
    pub const NONE: Self = Self { pid: 0, task_id: 0, vnn: 0, unique_id: 0 };

    /// The holder of an open whose client is away.
    pub const DISCONNECTED: Self =
        Self { pid: u64::MAX, task_id: u32::MAX, vnn: u32::MAX, unique_id: u64::MAX };

    /// The length of a stored server id.
    pub const LEN: usize = 24;

    /// The server id whose fields follow each other in these bytes, little endian.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let four = |at: usize| std::array::from_fn(|byte| bytes[at + byte]);
        let eight = |at: usize| std::array::from_fn(|byte| bytes[at + byte]);
        Self {
            pid: u64::from_le_bytes(eight(0)),
            task_id: u32::from_le_bytes(four(8)),
            vnn: u32::from_le_bytes(four(12)),
            unique_id: u64::from_le_bytes(eight(16)),
        }
    }

    /// The order in which smbd sorts server ids.
    pub(crate) fn sort_key(&self) -> (u32, u64, u32, u64) {
        (self.vnn, self.pid, self.task_id, self.unique_id)
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::DISCONNECTED { f.write_str("disconnected") } else { write!(f, "{}", self.pid) }
    }
}

/// Who holds an open now, by its own record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This smbd process; it may be dead meanwhile.
    Process(ServerId),
    /// Nobody: the connection was lost cleanly, or the record was materialised.
    Disconnected,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(server_id) => write!(f, "process {server_id}"),
            Self::Disconnected => f.write_str("nobody"),
        }
    }
}

/// A security identifier (MS-DTYP 2.4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecurityId {
    /// Always 1.
    pub revision: u8,
    /// The identifier authority, big endian.
    pub authority: [u8; 6],
    /// At most [`SecurityId::SUB_AUTHORITIES_MAX`].
    pub sub_authorities: Vec<u32>,
}

impl SecurityId {
    /// How many sub-authorities a security identifier can have.
    pub const SUB_AUTHORITIES_MAX: usize = 15;
}

impl fmt::Display for SecurityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self.authority.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        write!(f, "S-{}-{authority}", self.revision)?;
        self.sub_authorities.iter().try_for_each(|sub_authority| write!(f, "-{sub_authority}"))
    }
}

/// A FILETIME (MS-DTYP 2.3.3): 100 ns ticks since 1601. Zero means never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NtTime(pub u64);

impl NtTime {
    /// The ticks from 1601 to 1970.
    const UNIX_EPOCH: u64 = 116_444_736_000_000_000;

    const TICKS_PER_SECOND: u64 = 10_000_000;

    /// The same instant in whole microseconds since 1970, which is how share-mode entries say it.
    pub(crate) fn to_unix_micros(self) -> UnixMicros {
        let ticks = self.0.saturating_sub(Self::UNIX_EPOCH);
        UnixMicros {
            seconds: ticks / Self::TICKS_PER_SECOND,
            micros: u32::try_from(ticks % Self::TICKS_PER_SECOND / 10).expect("less than a second"),
        }
    }
}

impl From<NtTime> for UnixNanos {
    /// Instants before 1970 become 1970.
    fn from(time: NtTime) -> Self {
        let ticks = time.0.saturating_sub(NtTime::UNIX_EPOCH);
        let nanos = ticks % NtTime::TICKS_PER_SECOND * 100;
        Self {
            seconds: i64::try_from(ticks / NtTime::TICKS_PER_SECOND).unwrap_or(i64::MAX),
            nanos: u32::try_from(nanos).expect("less than a second"),
        }
    }
}

impl From<SystemTime> for NtTime {
    /// Instants before 1970 become 1970.
    fn from(time: SystemTime) -> Self {
        let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let ticks = u64::try_from(since_epoch.as_nanos() / 100).unwrap_or(u64::MAX);
        Self(ticks.saturating_add(Self::UNIX_EPOCH))
    }
}

impl From<UnixNanos> for NtTime {
    /// Instants before 1970 become 1970.
    fn from(time: UnixNanos) -> Self {
        let seconds = u64::try_from(time.seconds).unwrap_or(0);
        let ticks =
            seconds.saturating_mul(Self::TICKS_PER_SECOND).saturating_add(u64::from(time.nanos / 100));
        Self(ticks.saturating_add(Self::UNIX_EPOCH))
    }
}

/// A `struct timeval`: seconds and microseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixMicros {
    /// Whole seconds.
    pub seconds: u64,
    /// What is left, in microseconds.
    pub micros: u32,
}

/// A `struct timespec`: seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixNanos {
    /// Whole seconds.
    pub seconds: i64,
    /// What is left, in nanoseconds.
    pub nanos: u32,
}
