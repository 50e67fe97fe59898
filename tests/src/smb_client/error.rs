//! How a request can fail.

use std::{fmt, io, net::SocketAddr, time::Duration};

use super::types::Command;

/// Why a request got no (usable) answer.
///
/// [`SmbError::status`] tells a server's refusal from everything else; most tests need nothing more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SmbError {
    /// No TCP connection could be made.
    #[error("cannot connect to {server}")]
    Connect {
        /// Where to.
        server: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The connection ended before the answer came. Whether the server carried the request out is unknown.
    #[error("the connection to {server} was lost before {command} was answered: {reason}")]
    Disconnected {
        /// The other end.
        server: SocketAddr,
        /// What was being asked.
        command: Command,
        /// Who ended it and why.
        reason: String,
    },
    /// The server said no.
    #[error("{command} was refused with {status}")]
    Refused {
        /// What was asked.
        command: Command,
        /// The server's reason.
        status: NtStatus,
    },
    /// No final answer came in time. Whether the server carried the request out is unknown.
    #[error("{command} was not answered within {timeout:?}")]
    TimedOut {
        /// What was asked.
        command: Command,
        /// How long the client waited.
        timeout: Duration,
    },
    /// The answer cannot be decoded.
    #[error("the answer to {command} makes no sense")]
    Malformed {
        /// What was asked.
        command: Command,
        /// Which structure and field is wrong.
        source: WireError,
    },
    /// The server chose something that this client did not offer.
    #[error("{server} negotiated dialect {dialect:#06x}; this client speaks 0x0302 (SMB 3.0.2) only")]
    Dialect {
        /// The server.
        server: SocketAddr,
        /// Its DialectRevision.
        dialect: u16,
    },
    /// The server wants every request signed.
    #[error("{server} requires signing, which this client does not do: set `server signing = auto` there")]
    SigningRequired {
        /// The server.
        server: SocketAddr,
    },
    /// NTLM could not make its next token of what the server sent.
    #[error("NTLM authentication failed on the client's side")]
    Authentication(#[source] Box<sspi::Error>),
}

impl SmbError {
    /// The NTSTATUS of a refusal; `None` when the failure is anything but a refusal.
    pub fn status(&self) -> Option<NtStatus> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// A structure that does not decode: which, and where it is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{structure}: {problem}")]
pub struct WireError {
    /// The structure's name in MS-SMB2.
    pub structure: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// An NTSTATUS (MS-ERREF 2.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NtStatus(pub u32);

/// The statuses that tests meet by name. Every other one is shown as a number.
macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl NtStatus {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The name in MS-ERREF without its `STATUS_`, if it is one of the constants here.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    /// Done.
    SUCCESS = 0x0000_0000;
    /// An interim answer: the final one will follow (MS-SMB2 3.3.4.2).
    PENDING = 0x0000_0103;
    /// More of the data exists than fits.
    BUFFER_OVERFLOW = 0x8000_0005;
    /// Broken down on the server's side.
    UNSUCCESSFUL = 0xC000_0001;
    /// A parameter, or a combination of them, is not allowed.
    INVALID_PARAMETER = 0xC000_000D;
    /// Nothing left to read.
    END_OF_FILE = 0xC000_0011;
    /// The next token, please (SESSION_SETUP).
    MORE_PROCESSING_REQUIRED = 0xC000_0016;
    /// Not allowed.
    ACCESS_DENIED = 0xC000_0022;
    /// No such file; for a reconnect: no such open.
    OBJECT_NAME_NOT_FOUND = 0xC000_0034;
    /// The name is taken.
    OBJECT_NAME_COLLISION = 0xC000_0035;
    /// Somebody else has the file open in a way that excludes this one.
    SHARING_VIOLATION = 0xC000_0043;
    /// A byte-range lock stands in the way of a read or write.
    FILE_LOCK_CONFLICT = 0xC000_0054;
    /// A byte-range lock stands in the way of another.
    LOCK_NOT_GRANTED = 0xC000_0055;
    /// The file waits for its last close.
    DELETE_PENDING = 0xC000_0056;
    /// Wrong user or password.
    LOGON_FAILURE = 0xC000_006D;
    /// That range is not locked by this open.
    RANGE_NOT_LOCKED = 0xC000_007E;
    /// The server cannot just now.
    INSUFFICIENT_RESOURCES = 0xC000_009A;
    /// The server's storage failed in a way it did not expect.
    UNEXPECTED_IO_ERROR = 0xC000_00E9;
    /// No such share.
    BAD_NETWORK_NAME = 0xC000_00CC;
    /// The open, its session or its tree connect was ended by the server.
    FILE_CLOSED = 0xC000_0128;
    /// What was asked for is not there.
    NOT_FOUND = 0xC000_0225;
    /// The session is not, or no longer, known.
    USER_SESSION_DELETED = 0xC000_0203;
    /// The file exists and cannot be had now; for a persistent handle: its owner may still come back.
    FILE_NOT_AVAILABLE = 0xC000_0467;
}

impl NtStatus {
    /// Whether the severity bits say "error" (MS-ERREF 2.3).
    pub fn is_error(self) -> bool {
        self.0 >> 30 == 0b11
    }
}

impl fmt::Display for NtStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "NTSTATUS {:#010x}", self.0),
        }
    }
}

impl fmt::Debug for NtStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
