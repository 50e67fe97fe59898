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
    /// Samba 4.22. Checked on 4.22.11.
    V4_22,
    /// Samba 4.25. Checked on 4.25.1.
    V4_25,
}

impl Layout {
    /// The versions that have a layout, for messages.
    const KNOWN: &str = "4.17.x, 4.22.x and 4.25.x";

    /// All of them, in the order of their versions.
    pub const ALL: [Self; 3] = [Self::V4_17, Self::V4_22, Self::V4_25];

    /// The layout of a version.
    pub fn for_version(version: &SambaVersion) -> Result<Self, VersionError> {
        match (version.major, version.minor) {
            (4, 17) => Ok(Self::V4_17),
            (4, 22) => Ok(Self::V4_22),
            (4, 25) => Ok(Self::V4_25),
            _ => Err(VersionError::Unknown { version: version.clone() }),
        }
    }

    /// Whether it has the structures that Samba numbers 1: these say which opens are persistent handles, and what became
    /// of the file at their CREATE.
    pub(crate) fn has_version_1(self) -> bool {
        match self {
            Self::V4_17 | Self::V4_22 => false,
            Self::V4_25 => true,
        }
    }

    /// The number that stands for the layout in stored images; never reused.
    pub(crate) fn number(self) -> u16 {
        match self {
            Self::V4_17 => 417,
            Self::V4_22 => 422,
            Self::V4_25 => 425,
        }
    }

    /// The layout with that number.
    pub(crate) fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|layout| layout.number() == number)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4_17 => "4.17",
            Self::V4_22 => "4.22",
            Self::V4_25 => "4.25",
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
    fn debians_versions_are_parsed() {
        for (printed, shown, layout) in [
            ("Version 4.17.12-Debian\n", "4.17.12-Debian", Layout::V4_17),
            (
                "Version 4.22.11-Debian-4.22.11+dfsg-0+deb13u1\n",
                "4.22.11-Debian-4.22.11+dfsg-0+deb13u1",
                Layout::V4_22,
            ),
            ("Version 4.25.1-Debian-4.25.1+dfsg-1\n", "4.25.1-Debian-4.25.1+dfsg-1", Layout::V4_25),
        ] {
            let version = SambaVersion::parse(printed).unwrap();
            assert_eq!(version.to_string(), shown);
            assert_eq!(Layout::for_version(&version).unwrap(), layout);
        }
    }

    #[test]
    fn unknown_version_is_refused_by_name() {
        for unknown in
            ["4.16.4", "4.18.0", "4.21.10", "4.23.0-Debian", "4.24.5", "4.26.0", "3.17.0", "5.17.0"]
        {
            let version = SambaVersion::parse(&format!("Version {unknown}")).unwrap();
            let message = Layout::for_version(&version).unwrap_err().to_string();
            assert!(message.contains(unknown) && message.contains("4.17.x, 4.22.x and 4.25.x"), "{message}");
        }
    }

    #[test]
    fn every_layout_has_its_own_number() {
        for layout in Layout::ALL {
            assert_eq!(Layout::from_number(layout.number()), Some(layout));
            assert_eq!(layout.number().to_string(), layout.to_string().replace('.', ""));
        }
        assert_eq!(Layout::from_number(418), None);
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
