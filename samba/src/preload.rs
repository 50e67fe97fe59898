//! Whether the dynamic loader can put the shim into `smbd`, asked of the loader itself.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use crate::process::{self, CommandError};

/// How long the loader may take, which looks at a hundred libraries.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What the loader makes of an `smbd` with the shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preload {
    /// It loads the shim, and libtdb after it.
    Works,
    /// The shim is not loaded.
    ShimMissing {
        /// The loader's own words, if it said any.
        why: String,
    },
    /// This smbd has libtdb built in, so that nothing can stand before it.
    NoLibtdb,
    /// smbd is a script, which the loader does not show what it starts.
    Script,
}

impl Preload {
    /// Asks. Nothing of `smbd` is run.
    pub fn ask(smbd: &Path, shim: &Path) -> Result<Self, CommandError> {
        if is_script(smbd).unwrap_or(false) {
            return Ok(Self::Script);
        }
        // The loader lists what it would load and ends: what `ldd` does.
        let environment = [("LD_TRACE_LOADED_OBJECTS", OsStr::new("1")), ("LD_PRELOAD", shim.as_os_str())];
        let printed = process::printed(smbd.as_os_str(), &[], &environment, TIMEOUT)?;
        let shim = shim.to_string_lossy();
        let is_shim = |line: &str| line.trim_start().starts_with(shim.as_ref());
        let is_libtdb = |line: &str| line.trim_start().starts_with("libtdb.so");
        let lines = || printed.stdout.lines();
        // It may be listed and yet need a symbol that is not there, which the loader then complains of.
        Ok(if !lines().any(is_shim) || printed.stderr.contains(shim.as_ref()) {
            Self::ShimMissing { why: printed.stderr.trim().to_owned() }
        } else if lines().any(is_libtdb) {
            Self::Works
        } else {
            Self::NoLibtdb
        })
    }
}

fn is_script(path: &Path) -> io::Result<bool> {
    let mut beginning = [0; 2];
    File::open(path)?.read_exact(&mut beginning)?;
    Ok(&beginning == b"#!")
}
