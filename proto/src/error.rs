//! A message that made no sense.

/// A received or stored message cannot be what it claims to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}.{field}: {what}")]
pub struct WireError {
    /// The message.
    pub message: &'static str,
    /// Its field.
    pub field: &'static str,
    /// What was wrong with that.
    pub what: String,
}

impl WireError {
    /// A field that must be there is not.
    #[must_use]
    pub fn missing(message: &'static str, field: &'static str) -> Self {
        Self { message, field, what: "is missing".to_owned() }
    }

    /// A field has a value that means nothing.
    #[must_use]
    pub fn invalid(message: &'static str, field: &'static str, what: impl Into<String>) -> Self {
        Self { message, field, what: what.into() }
    }

    /// Bytes that are no encoded message of this type at all.
    #[must_use]
    pub fn undecodable(message: &'static str, error: &prost::DecodeError) -> Self {
        Self { message, field: "*", what: error.to_string() }
    }
}
