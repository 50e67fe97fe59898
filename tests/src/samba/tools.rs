//! The programs of Samba: the machine's own, or those of another version in a root of its own.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use nix::unistd::Uid;
use tempfile::TempDir;

use super::{SambaError, prepare};

/// Set to 1 where Samba has to be there, as in continuous integration: then a missing Samba fails the test.
pub const REQUIRE_SAMBA: &str = "HOLDFAST_REQUIRE_SAMBA";

/// Set to 1 where the versions that `tests/roots/make` makes have to be there too.
pub const REQUIRE_SAMBA_ROOTS: &str = "HOLDFAST_REQUIRE_SAMBA_ROOTS";

/// Where Debian and others keep servers, which is not in an ordinary user's PATH.
const SERVER_DIRS: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/usr/local/samba/sbin"];

/// The folder with roots of other versions of Samba, one for each, as `tests/roots/make` makes them.
pub const SAMBA_ROOTS: &str = "HOLDFAST_SAMBA_ROOTS";

const DEFAULT_ROOTS: &str = "/var/cache/holdfast/samba-roots";

/// The versions that `tests/roots/make` has a recipe for.
pub const ROOT_VERSIONS: [&str; 2] = ["4.22", "4.25"];

/// What tests run of a Samba that is in a root.
const ROOT_PROGRAMS: [&str; 7] = ["smbd", "ctdbd", "ctdb", "net", "pdbedit", "smbtorture", "testparm"];

/// The programs of one version of Samba.
#[derive(Clone, Debug)]
pub struct SambaTools {
    smbd: PathBuf,
    testparm: PathBuf,
    pdbedit: PathBuf,
    smbtorture: Option<PathBuf>,
    home: Home,
}

/// Where a Samba's programs are.
#[derive(Clone, Debug)]
enum Home {
    /// Installed on this machine.
    Machine,
    /// In a root of their own. The directory has a command for each that enters the root, and is removed with the
    /// last user.
    Root(Arc<TempDir>),
}

impl SambaTools {
    /// Looks for Samba in PATH and in the usual directories.
    pub fn find() -> Result<Self, SambaError> {
        Self::at(Home::Machine)
    }

    /// The Samba of a version such as `4.22`, which `tests/roots/make` has made. Its processes see the temporary
    /// directory and the built shim at the paths that these have for everybody else. To enter a root takes
    /// root's rights.
    pub fn in_root(version: &str) -> Result<Self, SambaError> {
        let root = roots().join(version);
        if !root.is_dir() {
            return Err(SambaError::NoRoot { version: version.to_owned(), root });
        }
        if !Uid::effective().is_root() {
            return Err(SambaError::RootEntry { version: version.to_owned() });
        }
        Self::at(Home::Root(Arc::new(commands_of(&root, version)?)))
    }

    /// Every version that can be used here, the machine's own first; and a line for each that is missing.
    ///
    /// # Panics
    /// As [`samba_or_skip`] and [`samba_in_root_or_skip`].
    pub fn all_there() -> Vec<Self> {
        let in_roots = ROOT_VERSIONS.into_iter().filter_map(samba_in_root_or_skip);
        samba_or_skip().into_iter().chain(in_roots).collect()
    }

    fn at(home: Home) -> Result<Self, SambaError> {
        Ok(Self {
            smbd: home.program("smbd")?,
            testparm: home.program("testparm")?,
            pdbedit: home.program("pdbedit")?,
            smbtorture: home.program("smbtorture").ok(),
            home,
        })
    }

    /// The server.
    pub fn smbd(&self) -> &Path {
        &self.smbd
    }

    /// What says how a configuration is understood.
    pub fn testparm(&self) -> &Path {
        &self.testparm
    }

    /// What makes users.
    pub fn pdbedit(&self) -> &Path {
        &self.pdbedit
    }

    /// `smbtorture`, which is a package of its own in Debian.
    pub fn smbtorture(&self) -> Option<&Path> {
        self.smbtorture.as_deref()
    }

    /// One of this version's other programs.
    pub fn program(&self, name: &'static str) -> Result<PathBuf, SambaError> {
        self.home.program(name)
    }

    /// The version that `smbd` reports, such as `4.17.12-Debian`.
    pub fn version(&self) -> Option<String> {
        let output = Command::new(&self.smbd).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.trim().strip_prefix("Version ").map(str::to_owned)
    }
}

impl Home {
    fn program(&self, program: &'static str) -> Result<PathBuf, SambaError> {
        let path = env::var_os("PATH").unwrap_or_default();
        let dirs: Vec<PathBuf> = match self {
            Self::Machine => env::split_paths(&path).chain(SERVER_DIRS.map(PathBuf::from)).collect(),
            Self::Root(commands) => vec![commands.path().to_owned()],
        };
        dirs.into_iter()
            .map(|dir| dir.join(program))
            .find(|file| file.is_file())
            .ok_or(SambaError::Missing { program })
    }
}

/// Where other versions of Samba are.
fn roots() -> PathBuf {
    env::var_os(SAMBA_ROOTS).map_or_else(|| PathBuf::from(DEFAULT_ROOTS), PathBuf::from)
}

/// Makes a directory with a command for each of a root's programs.
fn commands_of(root: &Path, version: &str) -> Result<TempDir, SambaError> {
    let temporary = env::temp_dir();
    let commands = tempfile::Builder::new()
        .prefix(&format!("holdfast-samba-{version}-"))
        .tempdir()
        .map_err(prepare(&temporary))?;
    let mut seen_inside = vec![root.to_owned(), temporary];
    // Without a shim there can be no cluster, but there can be an unprotected smbd.
    let shim = holdfast_tdb::built_library_path().ok();
    seen_inside.extend(shim.as_deref().and_then(Path::parent).and_then(|dir| dir.canonicalize().ok()));
    let list: String = seen_inside.iter().map(|dir| format!("{}\n", dir.display())).collect();
    let file = commands.path().join("root");
    fs::write(&file, list).map_err(prepare(&file))?;

    // Links to one script, and not scripts written here: the kernel does not run a file that is open for writing,
    // and a process that another thread has just forked may have it open a little longer.
    let enter = Path::new(env!("CARGO_MANIFEST_DIR")).join("roots/enter");
    for program in ROOT_PROGRAMS {
        if ["usr/sbin", "usr/bin"].iter().any(|dir| root.join(dir).join(program).is_file()) {
            let command = commands.path().join(program);
            symlink(&enter, &command).map_err(prepare(&command))?;
        }
    }
    Ok(commands)
}

/// Samba's programs; or `None` where they are missing, after a line that says so: the test then has nothing
/// to do.
///
/// # Panics
/// When Samba is missing although [`REQUIRE_SAMBA`] is set.
pub fn samba_or_skip() -> Option<SambaTools> {
    or_skip(SambaTools::find(), REQUIRE_SAMBA)
}

/// The same where CTDB is needed too, which is a package of its own in Debian.
///
/// # Panics
/// As [`samba_or_skip`].
pub fn samba_with_ctdb_or_skip() -> Option<SambaTools> {
    let found = SambaTools::find().and_then(|tools| tools.program("ctdbd").map(|_| tools));
    or_skip(found, REQUIRE_SAMBA)
}

/// The same for a version that is in a root, CTDB included.
///
/// # Panics
/// When it is missing although [`REQUIRE_SAMBA_ROOTS`] is set.
pub fn samba_in_root_or_skip(version: &str) -> Option<SambaTools> {
    or_skip(SambaTools::in_root(version), REQUIRE_SAMBA_ROOTS)
}

fn or_skip(found: Result<SambaTools, SambaError>, required: &str) -> Option<SambaTools> {
    match found {
        Ok(tools) => Some(tools),
        Err(err) if env::var(required).is_ok_and(|value| value == "1") => {
            panic!("{required}=1 is set, but {err}")
        }
        Err(err) => {
            eprintln!("skipped: {err}");
            None
        }
    }
}
