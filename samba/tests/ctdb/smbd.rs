//! An smbd of a cluster.

use std::path::Path;
use std::process::Command;

use super::private_smbd::PrivateSmbd;

/// smbd, which is not in every user's path.
const SMBD: &str = "/usr/sbin/smbd";

/// The loopback address that smbds listen on; their ports differ.
const ADDRESS: &str = "127.0.43.1";

/// A private smbd beside a ctdbd.
pub(crate) struct Smbd(PrivateSmbd);

impl Smbd {
    /// Starts one that serves a folder.
    pub(crate) fn start(ctdbd_socket: &Path, share: &Path) -> Self {
        let globals = format!("clustering = yes\nctdbd socket = {}\n", ctdbd_socket.display());
        Self(PrivateSmbd::start(Path::new(SMBD), ADDRESS, Some(share), &globals))
    }

    /// smbclient, connected to the share.
    pub(crate) fn smbclient(&self) -> Command {
        self.0.smbclient(Path::new("smbclient"))
    }

    pub(crate) fn log(&self) -> String {
        self.0.log()
    }
}
