//! Which Samba this is, and so which layout its records have.

use std::ffi::OsStr;
use std::fmt;
use std::time::Duration;

use thiserror::Error;

use crate::process::{self, CommandError};

/// How long `smbd -V` may take; it answers in milliseconds.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// A version of Samba.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SambaVersion {
    /// 4.
    pub major: u32,
    /// Decides the layout.
    pub minor: u32,
    /// Does not change a layout.
    pub patch: u32,
    /// What the distribution has added, with its hyphen: `-Debian`. Often empty.
    pub vendor: String,
}

impl SambaVersion {
    /// Asks an `smbd` binary. Blocks for at most ten seconds.
    pub fn of_smbd(smbd: impl AsRef<OsStr>) -> Result<Self, VersionError> {
        let output = process::output(smbd.as_ref(), &[OsStr::new("-V")], VERSION_TIMEOUT)?;
        Self::parse(&output)
    }

    /// Parses what `smbd -V` prints: `Version 4.17.12-Debian`.
    pub fn parse(printed: &str) -> Result<Self, VersionError> {
        let malformed = || VersionError::Malformed { printed: printed.trim().to_owned() };
        let version = printed.trim().strip_prefix("Version ").ok_or_else(malformed)?;
        let numbers_end = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
        let (numbers, vendor) = version.split_at(numbers_end);
        let mut numbers = numbers.split('.').map(str::parse);
        match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => {
                Ok(Self { major, minor, patch, vendor: vendor.to_owned() })
            }
            _ => Err(malformed()),
        }
    }
}

impl fmt::Display for SambaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, patch, vendor } = self;
        write!(f, "{major}.{minor}.{patch}{vendor}")
    }
}

/// How a version of Samba lays out its records.
///
/// A layout is bound to minor versions and never guessed: a record that is rewritten wrongly loses a handle
/// at best, and confuses smbd at worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Samba 4.17. Checked on 4.17.12; patch releases of a stable series do not change stored structures.
    V4_17,
}

impl Layout {
    /// The versions that have a layout, for messages.
    const KNOWN: &str = "4.17.x";

    /// The layout of a version.
    pub fn for_version(version: &SambaVersion) -> Result<Self, VersionError> {
        match (version.major, version.minor) {
            (4, 17) => Ok(Self::V4_17),
            _ => Err(VersionError::Unknown { version: version.clone() }),
        }
    }

    /// The number that stands for the layout in stored images; never reused.
    pub(crate) fn number(self) -> u16 {
        match self {
            Self::V4_17 => 417,
        }
    }

    /// The layout with that number.
    pub(crate) fn from_number(number: u16) -> Option<Self> {
        match number {
            417 => Some(Self::V4_17),
            _ => None,
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4_17 => "4.17",
        })
    }
}

/// The version of Samba is not known, or not one that Holdfast can work with.
#[derive(Debug, Error)]
pub enum VersionError {
    /// smbd could not be asked.
    #[error("smbd does not tell its version; check that it is installed and where")]
    Command(#[from] CommandError),
    /// smbd has said something else.
    #[error("{printed:?} is not what smbd -V prints, such as \"Version 4.17.12-Debian\"")]
    Malformed {
        /// What it has said.
        printed: String,
    },
    /// The records of this version may have any layout.
    #[error(
        "the record layouts of Samba {version} are not known, those of {known} are; \
         install one of these, or a Holdfast that knows this one",
        known = Layout::KNOWN
    )]
    Unknown {
        /// The version.
        version: SambaVersion,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_version_is_parsed() {
        let version = SambaVersion::parse("Version 4.17.12-Debian\n").unwrap();
        assert_eq!(version.to_string(), "4.17.12-Debian");
        assert_eq!(Layout::for_version(&version).unwrap(), Layout::V4_17);
    }

    #[test]
    fn unknown_version_is_refused_by_name() {
        let version = SambaVersion::parse("Version 4.22.11-Debian-4.22.11+dfsg-0+deb13u1").unwrap();
        let message = Layout::for_version(&version).unwrap_err().to_string();
        assert!(message.contains("4.22.11-Debian") && message.contains("4.17.x"), "{message}");
    }

    #[test]
    fn anything_else_is_no_version() {
        for printed in
            ["", "4.17.12", "Version", "Version 4.17", "Version 4.17.12.1", "Version 4.x.1", "Version 4..1"]
        {
            assert!(
                matches!(SambaVersion::parse(printed), Err(VersionError::Malformed { .. })),
                "{printed:?}"
            );
        }
    }
}
