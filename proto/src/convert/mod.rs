//! Between `pb` and `statedb`, one file per type.

mod command;
mod create;
mod enumerations;
mod event;
mod handles;
mod ids;
mod lock;
mod open;
mod oplock;
mod outcome;
mod record;
mod rejection;
mod request;

#[cfg(test)]
mod tests;

use prost::Message;

use crate::WireError;

pub use handles::{Asked, Attach, answer};

/// Decodes bytes into a checked type by way of its message.
///
/// # Errors
///
/// If the bytes are no such message, or the message makes no sense.
pub fn decode<M, T>(message: &'static str, bytes: &[u8]) -> Result<T, WireError>
where
    M: Message + Default,
    T: TryFrom<M, Error = WireError>,
{
    let decoded = M::decode(bytes).map_err(|error| WireError::undecodable(message, &error))?;
    T::try_from(decoded)
}

/// The value of a field that must be there.
///
/// # Errors
///
/// If it is not.
pub fn required<T>(message: &'static str, field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or_else(|| WireError::missing(message, field))
}

/// The sixteen bytes of a GUID, lease key or instance.
fn sixteen(message: &'static str, field: &'static str, bytes: &[u8]) -> Result<[u8; 16], WireError> {
    bytes.try_into().map_err(|_| WireError::invalid(message, field, format!("{} bytes, not 16", bytes.len())))
}
