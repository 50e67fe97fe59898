//! Files that a dead smbd should have deleted.
//!
//! Samba does not keep an open for its client that deletes its file: when it loses the client it closes the open, and
//! deletes the file if nobody else has it open. An smbd that dies does neither. The cluster closes the open for it and
//! remembers the file ([`statedb::DeletePending`]); the node that serves the share next deletes that, before it lets
//! anybody in, and says so. If it dies in between, the next one does.
//!
//! # What must stay true
//!
//! - Only the file is deleted that was meant: the same device and inode, below the share, and not made after the open.
//! - None is deleted that somebody has open here.
//! - It is deleted again by nobody once the cluster knows that it is gone.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, fstat, openat, openat2, statx, unlinkat,
};
use rustix::io::Errno;
use samba::OpenImage;
use samba::databases::LocalDatabases;
use statedb::{DeletePending, FileKey};
use tracing::{debug, error, info};

use crate::telemetry::chain;

/// What came of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deletion {
    /// There is nothing to delete any more, or never was.
    Settled,
    /// Somebody has the file open. It is deleted when he has closed it.
    Open,
    /// It cannot be said whether there is such a file: its file system is not mounted, or a database is locked.
    Unknown,
}

/// Deletes a file, if it is the one that was meant and nobody has it open.
pub(super) fn delete(databases: &mut LocalDatabases, file: FileKey, pending: &DeletePending) -> Deletion {
    let image = match OpenImage::decode(&pending.image) {
        Ok(image) => image,
        Err(error) => {
            error!(%file, path = %pending.path, error = %chain(&error), "a file that a dead node should have deleted is left: it is not known which one it was");
            return Deletion::Settled;
        }
    };
    match databases.is_open(file) {
        Ok(false) => {}
        Ok(true) => {
            debug!(%file, path = %pending.path, "a file that is to be deleted is open");
            return Deletion::Open;
        }
        Err(error) => {
            debug!(%file, path = %pending.path, error = %chain(&error), "it cannot be said whether a file that is to be deleted is open");
            return Deletion::Unknown;
        }
    }
    // The next file that gets the inode gets its records too, and smbd grants no oplock beside a lock, whosever it was.
    if let Err(error) = databases.lay_ghosts(file) {
        debug!(%file, path = %pending.path, error = %chain(&error), "the records of a file that is to be deleted cannot be changed");
        return Deletion::Unknown;
    }
    match unlink(&image, &pending.path) {
        Ok(Unlinked::Deleted) => {
            info!(%file, path = %pending.path, share = %pending.share, "a file is deleted that a dead smbd should have deleted");
            Deletion::Settled
        }
        Ok(Unlinked::NotThere) => {
            debug!(%file, path = %pending.path, share = %pending.share, "a file that is to be deleted is not there");
            Deletion::Settled
        }
        Ok(Unlinked::NotMounted) => {
            debug!(%file, path = %pending.path, share = %pending.share, "the file system of a file that is to be deleted is not there");
            Deletion::Unknown
        }
        Err(errno) => {
            error!(%file, path = %pending.path, share = %pending.share, %errno, "a file that a dead smbd should have deleted cannot be deleted, and is left");
            Deletion::Settled
        }
    }
}

enum Unlinked {
    Deleted,
    /// The file is gone already; another one may have its name.
    NotThere,
    NotMounted,
}

fn unlink(image: &OpenImage, path: &str) -> rustix::io::Result<Unlinked> {
    let cookie = image.cookie();
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let share = match openat(CWD, cookie.service_path.as_str(), directory, Mode::empty()) {
        Ok(share) => share,
        Err(Errno::NOENT) => return Ok(Unlinked::NotMounted),
        Err(errno) => return Err(errno),
    };
    // A VFS module such as fileid may number devices in its own way; what smbd has seen of the file is the kernel's number.
    let (device, inode) = (cookie.stat.device, cookie.stat.inode);
    if fstat(&share)?.st_dev != device {
        return Ok(Unlinked::NotMounted);
    }
    let path = Path::new(path);
    let (parent, Some(name)) = (path.parent().unwrap_or(Path::new("")), path.file_name()) else {
        return Ok(Unlinked::NotThere);
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let parent: OwnedFd = match openat2(&share, parent, directory, Mode::empty(), ResolveFlags::BENEATH) {
        Ok(parent) => parent,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Unlinked::NotThere),
        Err(errno) => return Err(errno),
    };
    // Between this look and the deletion nobody can come through this node: its gate is closed, or nobody has the file.
    let looked = statx(&parent, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS | StatxFlags::BTIME);
    let found = match looked {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(Unlinked::NotThere),
        Err(errno) => return Err(errno),
    };
    let is_file = FileType::from_raw_mode(found.stx_mode.into()) == FileType::RegularFile;
    let is_same =
        rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor) == device && found.stx_ino == inode;
    let made_at = Duration::from_secs(u64::try_from(found.stx_btime.tv_sec).unwrap_or_default());
    let is_younger = found.stx_mask & StatxFlags::BTIME.bits() != 0
        && !image.can_be_of_file_made_at(SystemTime::UNIX_EPOCH + made_at);
    if !is_file || !is_same || is_younger {
        return Ok(Unlinked::NotThere);
    }
    unlinkat(&parent, name, AtFlags::empty())?;
    Ok(Unlinked::Deleted)
}
