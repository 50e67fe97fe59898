//! A private smbd.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use samba::tdb::{ChangeCount, Tdb, TdbFile};
use samba::{Layout, LocalDatabases, Location, SambaVersion};
use tempfile::TempDir;

use super::private_smbd::PrivateSmbd;

/// How long smbd may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(20);

const POLL: Duration = Duration::from_millis(20);

/// The folder with roots of other versions of Samba, and where it is if nobody says.
const ROOTS_ENV: &str = "HOLDFAST_SAMBA_ROOTS";
const ROOTS: &str = "/var/cache/holdfast/samba-roots";

/// The versions that `tests/roots/make` makes roots of.
const ROOT_VERSIONS: [&str; 2] = ["4.22", "4.25"];

/// The programs of one version of Samba.
pub(crate) struct Samba {
    pub(crate) layout: Layout,
    smbd: PathBuf,
    smbclient: PathBuf,
    pub(crate) testparm: PathBuf,
    /// The commands that enter the root, if it is in one.
    _commands: Option<TempDir>,
}

impl Samba {
    /// The machine's own. `None` where there is none, after a line that says so; panics where Samba is required.
    pub(crate) fn of_the_machine() -> Option<Self> {
        const SBIN: &str = "/usr/sbin/smbd";
        // smbd is not in every user's path.
        let smbd = PathBuf::from(if Path::new(SBIN).exists() { SBIN } else { "smbd" });
        let programs = [smbd, PathBuf::from("smbclient"), PathBuf::from("testparm")];
        Self::or_skip(programs, None, "HOLDFAST_REQUIRE_SAMBA")
    }

    /// Every version that is there: the machine's own, and those in roots.
    pub(crate) fn all() -> Vec<Self> {
        let in_roots = ROOT_VERSIONS.into_iter().filter_map(Self::in_root);
        Self::of_the_machine().into_iter().chain(in_roots).collect()
    }

    /// The one in a root, which takes root's rights.
    fn in_root(version: &str) -> Option<Self> {
        let roots = std::env::var_os(ROOTS_ENV).map_or_else(|| PathBuf::from(ROOTS), PathBuf::from);
        let enter = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/roots/enter");
        let commands = TempDir::with_prefix("holdfast-samba-").expect("a temporary directory");
        let seen_inside = [roots.join(version), std::env::temp_dir()];
        let list: String = seen_inside.iter().map(|path| format!("{}\n", path.display())).collect();
        fs::write(commands.path().join("root"), list).expect("it is new");
        let programs = ["smbd", "smbclient", "testparm"].map(|program| commands.path().join(program));
        for program in &programs {
            symlink(&enter, program).expect("it is new");
        }
        Self::or_skip(programs, Some(commands), "HOLDFAST_REQUIRE_SAMBA_ROOTS")
    }

    fn or_skip(programs: [PathBuf; 3], commands: Option<TempDir>, required: &str) -> Option<Self> {
        let [smbd, smbclient, testparm] = programs;
        let version = SambaVersion::of_smbd(&smbd);
        let layout = version.as_ref().ok().and_then(|version| Layout::for_version(version).ok());
        if layout.is_none() {
            let found = version.map_or_else(|error| error.to_string(), |version| version.to_string());
            assert_ne!(std::env::var(required).as_deref(), Ok("1"), "{required}: {found}");
            eprintln!("skipped: no Samba whose layout is known behind {} ({found})", smbd.display());
        }
        Some(Self { layout: layout?, smbd, smbclient, testparm, _commands: commands })
    }
}

/// A private smbd of a version.
pub(crate) struct Smbd {
    smbd: PrivateSmbd,
    pub(crate) layout: Layout,
    smbclient: PathBuf,
}

impl Smbd {
    /// Starts one that listens on `address`, which no other test may use.
    pub(crate) fn start(samba: &Samba, address: &str) -> Self {
        let smbd = PrivateSmbd::start(&samba.smbd, address, None, "");
        let smbd = Self { smbd, layout: samba.layout, smbclient: samba.smbclient.clone() };
        let started = Instant::now();
        while smbd.try_databases().is_err() {
            assert!(started.elapsed() < PATIENCE, "smbd does not start: {}", smbd.smbd.log());
            thread::sleep(POLL);
        }
        smbd
    }

    pub(crate) fn conf(&self) -> PathBuf {
        self.smbd.directory().join("smb.conf")
    }

    pub(crate) fn share(&self) -> PathBuf {
        self.smbd.directory().join("share")
    }

    pub(crate) fn lock_directory(&self) -> PathBuf {
        self.smbd.directory().join("lock")
    }

    fn try_databases(&self) -> Result<LocalDatabases, samba::StoreError> {
        let libtdb = Tdb::load().expect("libtdb comes with Samba");
        let location = Location::Plain { lock_directory: self.lock_directory() };
        LocalDatabases::open(&libtdb, &location, self.layout, Duration::from_secs(2))
    }

    pub(crate) fn databases(&self) -> LocalDatabases {
        self.try_databases().expect("smbd runs")
    }

    /// A record of one of its databases.
    pub(crate) fn record(&self, database: frame::Database, key: &[u8]) -> Option<Vec<u8>> {
        self.database(database).fetch(key).expect("it can be read")
    }

    /// Stores a record in one of its databases, whatever it is.
    pub(crate) fn store(&self, database: frame::Database, key: &[u8], value: &[u8]) {
        let mut file = self.database(database);
        let mut record = file.lock_chain(key, Duration::from_secs(2)).expect("nobody has it for long");
        record.store(value).expect("it can be stored");
    }

    fn database(&self, database: frame::Database) -> TdbFile {
        let libtdb = Tdb::load().expect("libtdb comes with Samba");
        let path = self.lock_directory().join(database.file_name());
        TdbFile::open(&libtdb, &path, ChangeCount::None).expect("smbd runs")
    }

    /// Runs a command of smbclient on the share, and returns whether it went well.
    pub(crate) fn smbclient(&self, command: &str) -> bool {
        let output = self
            .smbd
            .smbclient(&self.smbclient)
            .args(["-c", command])
            .output()
            .expect("smbclient comes with Samba");
        if !output.status.success() {
            eprintln!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        output.status.success()
    }

    /// Ends it, and waits until it has ended. Its files stay.
    pub(crate) fn end(&mut self) {
        // It may have ended by itself.
        let _ = signal::kill(self.smbd.pid(), Signal::SIGTERM);
        let started = Instant::now();
        while self.smbd.process.try_wait().expect("it is our child").is_none() {
            if started.elapsed() > PATIENCE {
                let _ = self.smbd.process.kill();
            }
            thread::sleep(POLL);
        }
    }
}
