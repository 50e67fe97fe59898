//! A file's metadata, as smbd compares them at a reclaim.
//!
//! The cookie of a durable open carries the metadata from the moment it was stored. Its client may have
//! written since, and smbd refuses a reclaim when they differ, so they are read afresh when the open is
//! materialised. That is safe because the share's gate lets nobody else at the file in between.
//!
//! # Where the file is
//!
//! smbd renames a file first and stores its new name then. If its node dies in between, all records say a name that the
//! file does not have any more. So a file that is not under its name is looked for by its inode
//! (`moved_files`). In doubt it is not found: a handle to another file is worse than none.

use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use statedb::FileKey;
use thiserror::Error;

use crate::dos_attributes;
use crate::image::OpenImage;
use crate::moved_files::MovedFiles;
use crate::records::{CookieStat, DurableCookie, NtTime, UnixNanos};
use crate::version::Layout;

/// The metadata of a file at one moment.
#[derive(Clone, Debug)]
pub struct FileStat {
    metadata: std::fs::Metadata,
    /// As smbd has written it down: not always when it makes a file, and for one that others have made when it first
    /// changes it.
    creation_time: Option<NtTime>,
}

impl FileStat {
    /// Reads the metadata of the file of a durable open and checks that it is still the same file.
    ///
    /// A symbolic link is not followed, because smbd does not follow it either.
    /// `path` is the file's path below the share's, which may be newer than the cookie's.
    pub fn read(cookie: &DurableCookie, path: &str) -> Result<Self, StatError> {
        let path = Path::new(&cookie.service_path).join(path);
        let stat = match std::fs::symlink_metadata(&path) {
            Ok(metadata) => Self { metadata, creation_time: dos_attributes::creation_time(&path) },
            Err(source) => return Err(StatError::Io { path, source }),
        };
        // A VFS module such as fileid may number devices in its own way; then only the inode can be held
        // against the file id.
        let devices_are_mapped = cookie.file.device != cookie.stat.device;
        let metadata = &stat.metadata;
        let same_device = devices_are_mapped || metadata.dev() == cookie.file.device;
        if !metadata.is_file() || metadata.ino() != cookie.file.inode || !same_device {
            let found = FileKey { device: metadata.dev(), inode: metadata.ino(), extid: 0 };
            return Err(StatError::Replaced { path, expected: cookie.file, found });
        }
        Ok(stat)
    }

    /// Reads the metadata of the file of a durable open, and says where the file is: under the path by which it is known, or
    /// where it was moved to since.
    pub(crate) fn find(image: &OpenImage, moved: &mut MovedFiles) -> Result<(String, Self), StatError> {
        let cookie = image.cookie();
        let error = match Self::read(cookie, image.path()) {
            Ok(stat) => return Ok((image.path().to_owned(), stat)),
            Err(error) if error.is_about_the_name() => error,
            Err(error) => return Err(error),
        };
        let names = moved.names_of(&cookie.service_path, cookie.file.inode).iter();
        let mut found = names.filter_map(|name| Some((name.clone(), Self::read(cookie, name).ok()?)));
        let is_its_file =
            |stat: &Self| stat.metadata.created().is_ok_and(|made_at| image.can_be_of_file_made_at(made_at));
        found.find(|(_, stat)| is_its_file(stat)).ok_or(error)
    }

    /// The metadata as smbd keeps them in a cookie; `before` is what the cookie had.
    #[must_use]
    pub fn to_cookie(&self, layout: Layout, before: &CookieStat) -> CookieStat {
        let metadata = &self.metadata;
        let atime = unix_nanos(metadata.atime(), metadata.atime_nsec());
        let mtime = unix_nanos(metadata.mtime(), metadata.mtime_nsec());
        let ctime = match layout {
            // This Samba takes the seconds of ctime from mtime. It compares what it took itself, so the
            // mistake has to be made here too.
            Layout::V4_17 => unix_nanos(metadata.mtime(), metadata.ctime_nsec()),
            Layout::V4_22 | Layout::V4_25 => unix_nanos(metadata.ctime(), metadata.ctime_nsec()),
        };
        let was_calculated = before.internal_flags & CookieStat::CALCULATED_BTIME != 0;
        let (btime, internal_flags) = match self.creation_time {
            Some(written_down) => {
                (written_down.into(), before.internal_flags & !CookieStat::CALCULATED_BTIME)
            }
            None if was_calculated => {
                ([ctime, mtime, atime].into_iter().min().expect("there are three"), before.internal_flags)
            }
            None => (before.btime, before.internal_flags),
        };
        CookieStat {
            device: metadata.dev(),
            inode: metadata.ino(),
            mode: u64::from(metadata.mode()),
            nlink: metadata.nlink(),
            uid: u64::from(metadata.uid()),
            gid: u64::from(metadata.gid()),
            rdev: metadata.rdev(),
            size: metadata.size(),
            atime,
            mtime,
            ctime,
            btime,
            block_size: metadata.blksize(),
            blocks: metadata.blocks(),
            flags: before.flags,
            internal_flags,
        }
    }
}

fn unix_nanos(seconds: i64, nanos: i64) -> UnixNanos {
    UnixNanos { seconds, nanos: u32::try_from(nanos).expect("the kernel keeps it below a second") }
}

/// The file of an open cannot be vouched for.
#[derive(Debug, Error)]
pub enum StatError {
    /// Its metadata cannot be read.
    #[error("cannot read the metadata of {}; is the share's storage mounted here?", path.display())]
    Io {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another file has its name.
    #[error("{} is file {found} and not {expected} any more", path.display())]
    Replaced {
        /// Where it should be.
        path: PathBuf,
        /// The file of the open.
        expected: FileKey,
        /// The file that is there.
        found: FileKey,
    },
}

impl StatError {
    /// Whether the file may be there under another name.
    fn is_about_the_name(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == ErrorKind::NotFound,
            Self::Replaced { .. } => true,
        }
    }
}
