//! A file's metadata, as smbd compares them at a reclaim.
//!
//! The cookie of a durable open carries the metadata from the moment it was stored. Its client may have
//! written since, and smbd refuses a reclaim when they differ, so they are read afresh when the open is
//! materialised. That is safe because the share's gate lets nobody else at the file in between.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use statedb::FileKey;
use thiserror::Error;

use crate::records::{CookieStat, DurableCookie, UnixNanos};
use crate::version::Layout;

/// The metadata of a file at one moment.
#[derive(Clone, Debug)]
pub struct FileStat(std::fs::Metadata);

impl FileStat {
    /// Reads the metadata of the file of a durable open and checks that it is still the same file.
    ///
    /// A symbolic link is not followed, because smbd does not follow it either.
    /// `path` is the file's path below the share's, which may be newer than the cookie's.
    pub fn read(cookie: &DurableCookie, path: &str) -> Result<Self, StatError> {
        let path = Path::new(&cookie.service_path).join(path);
        let stat = match std::fs::symlink_metadata(&path) {
            Ok(metadata) => Self(metadata),
            Err(source) => return Err(StatError::Io { path, source }),
        };
        // A VFS module such as fileid may number devices in its own way; then only the inode can be held
        // against the file id.
        let devices_are_mapped = cookie.file.device != cookie.stat.device;
        let same_device = devices_are_mapped || stat.0.dev() == cookie.file.device;
        if !stat.0.is_file() || stat.0.ino() != cookie.file.inode || !same_device {
            let found = FileKey { device: stat.0.dev(), inode: stat.0.ino(), extid: 0 };
            return Err(StatError::Replaced { path, expected: cookie.file, found });
        }
        Ok(stat)
    }

    /// The metadata as smbd keeps them in a cookie; `before` is what the cookie had.
    #[must_use]
    pub fn to_cookie(&self, layout: Layout, before: &CookieStat) -> CookieStat {
        let metadata = &self.0;
        let atime = unix_nanos(metadata.atime(), metadata.atime_nsec());
        let mtime = unix_nanos(metadata.mtime(), metadata.mtime_nsec());
        let ctime = match layout {
            // This Samba takes the seconds of ctime from mtime. It compares what it took itself, so the
            // mistake has to be made here too.
            Layout::V4_17 => unix_nanos(metadata.mtime(), metadata.ctime_nsec()),
            Layout::V4_22 | Layout::V4_25 => unix_nanos(metadata.ctime(), metadata.ctime_nsec()),
        };
        let btime = if before.internal_flags & CookieStat::CALCULATED_BTIME != 0 {
            [ctime, mtime, atime].into_iter().min().expect("there are three")
        } else {
            // It comes from the file's DOS attributes, which no write changes.
            before.btime
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
            internal_flags: before.internal_flags,
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
