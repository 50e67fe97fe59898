//! What can be wrong with a stored value.

use frame::Database;
use thiserror::Error;

/// A record's value does not have the layout it should have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{record}: {field} at offset {offset}: {problem}")]
pub struct RecordError {
    /// The database whose record it is.
    pub record: Database,
    /// The field, by the name it has in Samba's interface definition.
    pub field: &'static str,
    /// Where the field, or the padding before it, stands in the value.
    pub offset: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// The value ends too soon.
    #[error("{wanted} bytes are wanted, {left} are left")]
    Truncated {
        /// How many bytes the field has.
        wanted: usize,
        /// How many there are.
        left: usize,
    },
    /// The value goes on where it should end.
    #[error("{left} bytes follow the end")]
    Trailing {
        /// How many.
        left: usize,
    },
    /// Samba pads with zeros.
    #[error("the padding is not zero")]
    Padding,
    /// The field has a value that it cannot have.
    #[error("{found:#x} is not {expected}")]
    Unexpected {
        /// The value.
        found: u64,
        /// What would be right.
        expected: &'static str,
    },
    /// The second pass over a time stamp differs from the first; Samba marshals each time stamp twice.
    #[error("it differs from what its first pass says")]
    SecondPass,
    /// A string without a terminator at its end, or with one before.
    #[error("the string is not terminated at its end")]
    Unterminated,
    /// Samba stores these strings in UTF-8.
    #[error("the string is not UTF-8")]
    NotUtf8,
    /// The cookie of a durable handle was made by a VFS module that Holdfast does not know.
    #[error("it is not the cookie of Samba's default VFS")]
    ForeignCookie,
}

impl Problem {
    pub(crate) fn unexpected(found: impl Into<u64>, expected: &'static str) -> Self {
        Self::Unexpected { found: found.into(), expected }
    }
}
