//! Writes the golden records of a version of Samba into `samba/testdata`: what a real smbd of that version has in its
//! databases in the situations that `samba/testdata/README.md` lists.
//!
//! ```text
//! cargo run -p holdfast-tests --example golden_records -- 4.25
//! ```
//!
//! needs root's rights, and the root that `tests/roots/make 4.25` has made.

#![expect(clippy::print_stdout, reason = "which files it has written is to be read on a terminal")]

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use clap::Parser;
use frame::{Database, FrameBuffer, Limits, PageWriter, Reply, Request};
use harness::samba::{SambaSite, SambaTools, Smbd, SmbdOptions};
use harness::smb_client::{
    AccessMask, Client, ClientGuid, CreateDisposition, CreateGuid, CreateOptions, CreateRequest, Durability,
    Lease, LeaseKey, LeaseState, LeaseVersion, LockElement, LockSequence, Opened, OplockLevel, Session,
    ShareAccess, Tree,
};
use samba::tdb::{ChangeCount, RawRecord, Tdb, TdbFile};
use tokio::time;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The machine's SID in the records, so that they can be told from anybody's.
const MACHINE_SID: &str = "S-1-5-21-1-2-3";

/// How long smbd may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// What a Windows client asks for when it wants to read and write.
const READ_AND_WRITE: AccessMask = AccessMask(0x0012_019F);
/// FILE_DIRECTORY_FILE.
const DIRECTORY_FILE: CreateOptions = CreateOptions(0x1);

/// Writes the golden records of a version of Samba into `samba/testdata`.
#[derive(Parser)]
struct Arguments {
    /// Which version, such as 4.25.
    version: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let version = Arguments::parse().version;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../samba/testdata")
        .join(format!("v{}", version.replace('.', "_")));
    fs::create_dir_all(&directory)?;
    Scene::open(&version)?.play(&directory).await
}

/// One smbd with the shim, and a sidecar that writes down what it is asked.
struct Scene {
    smbd: Smbd,
    site: SambaSite,
    recorder: Recorder,
    libtdb: Tdb,
}

impl Scene {
    fn open(version: &str) -> Result<Self> {
        let tools = SambaTools::in_root(version)?;
        let net = tools.program("net")?;
        let site = SambaSite::new(tools)?;
        let run_directory = site.dir().join("run");
        fs::create_dir(&run_directory)?;
        let recorder = Recorder::start(&run_directory)?;
        // Without detours, because not every directory on them can be seen in the root.
        let shim = holdfast_tdb::built_library_path()?.canonicalize()?;
        let env = vec![
            ("LD_PRELOAD".to_owned(), shim.display().to_string()),
            (frame::RUN_DIR_ENV.to_owned(), run_directory.display().to_string()),
        ];
        let smbd = site.smbd("node", SmbdOptions { env, ..SmbdOptions::default() })?;
        let status = Command::new(net)
            .args(["setlocalsid", MACHINE_SID, "--configfile"])
            .arg(smbd.config_file())
            .status()?;
        if !status.success() {
            return Err(format!("net setlocalsid: {status}").into());
        }
        Ok(Self { smbd, site, recorder, libtdb: Tdb::load()? })
    }

    async fn play(mut self, directory: &Path) -> Result<()> {
        self.smbd.start().await?;
        let out = Output { directory: directory.to_owned() };

        // One client loses its connection and comes back.
        let lease = rwh_lease(b"lease-key-report", LeaseVersion::V2 { epoch: 0 });
        let request = durable_v2("report.docx", 1, 60).with_lease(lease);
        self.watch(&request, 1)?;
        let client = self.client(1);
        let session = client.connect(self.smbd.address()).await?;
        let open = self.share(&session).await?.create(request).await?;
        open.write(0, &[b'x'; 5000]).await?;
        open.lock(&[LockElement::exclusive(10, 20)]).await?;
        open.lock(&[LockElement::shared(100, 5)]).await?;
        out.write(
            "stores_of_a_create",
            "every store of one durable CREATE, a WRITE and two LOCKs on a new connection, in their order: what the \
             records look like in between",
            self.recorder.take(),
        )?;
        out.write(
            "rwh_v2_locks",
            "durable v2, RWH lease (v2), two byte-range locks (exclusive 10+20, shared 100+5), 5000 bytes written",
            self.records()?,
        )?;
        let (session, open) = self.lose_and_reclaim(&out, "rwh_v2_locks", &client, session, open).await?;
        self.end(session, &[open]).await?;

        let request = CreateRequest { share_access: ShareAccess::READ, ..durable_v2("plan.xlsx", 2, 30) };
        let (session, opens) = self.opened(2, vec![request.with_oplock(OplockLevel::Batch)]).await?;
        out.write("batch_v2", "durable v2 (30 s), batch oplock, share read only", self.records()?)?;
        self.end(session, &opens).await?;

        let request = plain("notes.txt").with_oplock(OplockLevel::Batch).durable_v1();
        let client = self.client(3);
        let session = client.connect(self.smbd.address()).await?;
        let open = self.share(&session).await?.create(request).await?;
        let sequence = LockSequence { index: 3, number: 5 };
        open.lock_with_sequence(&[LockElement::exclusive(0, 8)], sequence).await?;
        out.write(
            "batch_v1_lock",
            "durable v1, batch oplock, one exclusive byte-range lock with a lock sequence",
            self.records()?,
        )?;
        let (session, open) = self.lose_and_reclaim(&out, "batch_v1_lock", &client, session, open).await?;
        self.end(session, &[open]).await?;

        let lease = rwh_lease(b"lease-key-old-v1", LeaseVersion::V1);
        let (session, opens) = self.opened(4, vec![plain("old.doc").with_lease(lease).durable_v1()]).await?;
        out.write("rwh_v1", "durable v1, RWH lease (v1)", self.records()?)?;
        self.end(session, &opens).await?;

        fs::create_dir(self.site.share_dir().join("folder"))?;
        let folder = CreateRequest {
            desired_access: AccessMask::READ_DATA | AccessMask::READ_ATTRIBUTES,
            options: DIRECTORY_FILE,
            ..plain("folder")
        };
        let requests = vec![plain("plain.txt").with_oplock(OplockLevel::Batch), folder];
        let (session, opens) = self.opened(5, requests).await?;
        out.write(
            "not_durable",
            "a file opened with a batch oplock and a directory, neither durable",
            self.records()?,
        )?;
        self.end(session, &opens).await?;

        let lease = rwh_lease(b"lease-key-shared", LeaseVersion::V2 { epoch: 0 });
        let requests = vec![
            durable_v2("shared.txt", 6, 60).with_lease(lease),
            durable_v2("shared.txt", 7, 60).with_lease(lease),
            plain("shared.txt").with_lease(lease),
        ];
        let (session, opens) = self.opened(6, requests).await?;
        opens[0].lock(&[LockElement::exclusive(0, 8)]).await?;
        opens[1].lock(&[LockElement::exclusive(8, 8)]).await?;
        out.write(
            "two_opens_one_lease",
            "one client, two durable v2 opens and one that is not durable, all on one lease; one lock each on the \
             durable ones",
            self.records()?,
        )?;
        self.end(session, &opens).await?;

        let lease = rwh_lease(b"lease-key-doomed", LeaseVersion::V2 { epoch: 0 });
        let doomed = durable_v2("doomed.txt", 8, 60).with_lease(lease);
        let doomed = CreateRequest { desired_access: READ_AND_WRITE | AccessMask::DELETE, ..doomed };
        let (session, opens) = self.opened(8, vec![doomed]).await?;
        opens[0].set_delete_pending(true).await?;
        out.write("delete_on_close", "durable v2, RWH lease, then marked for deletion", self.records()?)?;
        self.end(session, &opens).await?;

        self.lease_break(&out).await
    }

    /// Another client opens a file that is leased, and waits.
    async fn lease_break(&self, out: &Output) -> Result<()> {
        let lease = rwh_lease(b"lease-key-wanted", LeaseVersion::V2 { epoch: 0 });
        let wanted = durable_v2("wanted.txt", 9, 60).with_lease(lease);
        self.watch(&wanted, 9)?;
        let (session, opens) = self.opened(9, vec![wanted]).await?;
        let mut breaks = session.breaks();
        self.recorder.take();
        let other = self.client(10).connect(self.smbd.address()).await?;
        let share = self.share(&other).await?;
        let waiting = tokio::spawn(async move { share.create(plain("wanted.txt")).await });
        breaks.next(PATIENCE).await.ok_or("the lease is not broken")?;
        // The one who waits stores a last time after he has sent the break.
        time::sleep(Duration::from_secs(1)).await;
        out.write(
            "stores_of_a_lease_break",
            "every store while another client waits for the file and the lease is broken: records with a watcher, and \
             held locks",
            self.recorder.take(),
        )?;
        out.write(
            "lease_break_in_flight",
            "durable v2, RWH lease being broken: another client waits for the file",
            self.records()?,
        )?;
        let to = LeaseState::READ_HANDLE;
        self.share(&session).await?.acknowledge_lease_break(lease.key, to).await?;
        waiting.await??;
        other.drop_connection().await;
        self.end(session, &opens).await
    }

    fn client(&self, number: u8) -> Client {
        let client_guid = ClientGuid([0xC0, 0, 0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, number]);
        Client { client_guid, ..Client::new(self.site.credentials()) }
    }

    async fn share(&self, session: &Session) -> Result<Tree> {
        Ok(session.tree_connect(&self.smbd.share()).await?)
    }

    async fn opened(&self, client: u8, requests: Vec<CreateRequest>) -> Result<(Session, Vec<Opened>)> {
        let session = self.client(client).connect(self.smbd.address()).await?;
        let share = self.share(&session).await?;
        let mut opens = Vec::new();
        for request in requests {
            let wants_durable = request.durability != Durability::None;
            let open = share.create(request).await?;
            assert_eq!(open.is_durable(), wants_durable, "{:?}", open.response());
            opens.push(open);
        }
        Ok((session, opens))
    }

    /// The same after the connection was lost, and after the client has reconnected.
    async fn lose_and_reclaim(
        &self,
        out: &Output,
        name: &str,
        client: &Client,
        session: Session,
        open: Opened,
    ) -> Result<(Session, Opened)> {
        session.drop_connection().await;
        self.settled(Database::TconGlobal).await?;
        let about = "the same after its client's connection was lost";
        out.write(&format!("{name}_disconnected"), about, self.records()?)?;
        let session = client.connect(self.smbd.address()).await?;
        let open = self.share(&session).await?.create(open.reconnect_request()).await?;
        let about = "the same after the client has reconnected";
        out.write(&format!("{name}_reclaimed"), about, self.records()?)?;
        Ok((session, open))
    }

    /// Leaves nothing behind.
    async fn end(&self, session: Session, opens: &[Opened]) -> Result<()> {
        for open in opens {
            open.close().await?;
        }
        session.drop_connection().await;
        for database in [Database::TconGlobal, Database::OpenGlobal, Database::Locking] {
            self.settled(database).await?;
        }
        self.recorder.take();
        Ok(())
    }

    /// Waits until a database is empty.
    async fn settled(&self, database: Database) -> Result<()> {
        let is_empty = async {
            while !self.records_of(database)?.is_empty() {
                time::sleep(POLL).await;
            }
            Ok(())
        };
        time::timeout(PATIENCE, is_empty).await.map_err(|_| format!("{database} still has records"))?
    }

    /// Creates the file of a request, so that the shim can be told to ask about its records.
    fn watch(&self, request: &CreateRequest, client: u8) -> Result<()> {
        let path = self.site.share_dir().join(&request.path);
        fs::write(&path, "")?;
        // Everybody may write into it: the user of the share is not the one who runs this.
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        let metadata = fs::metadata(&path)?;
        let file = [metadata.dev(), metadata.ino(), 0].map(u64::to_le_bytes).concat();
        let lease = request.lease.map(|lease| [self.client(client).client_guid.0, lease.key.0].concat());
        self.recorder.watch(&file, lease.as_deref());
        Ok(())
    }

    fn records(&self) -> Result<Vec<Stored>> {
        let mut records = Vec::new();
        for database in Database::ALL {
            records.extend(self.records_of(database)?);
        }
        Ok(records)
    }

    fn records_of(&self, database: Database) -> Result<Vec<Stored>> {
        let path = self.smbd.lock_dir().join(database.file_name());
        let change_count = match database {
            Database::OpenGlobal | Database::TconGlobal => ChangeCount::None,
            Database::Locking | Database::Leases | Database::Brlock => ChangeCount::SequenceNumber,
        };
        let records = TdbFile::open(&self.libtdb, &path, change_count)?.records()?;
        Ok(records.into_iter().map(|RawRecord { key, value }| Stored { database, key, value }).collect())
    }
}

fn plain(path: &str) -> CreateRequest {
    CreateRequest {
        desired_access: READ_AND_WRITE,
        disposition: CreateDisposition::OpenIf,
        options: CreateOptions::NONE,
        ..CreateRequest::new(path)
    }
}

fn durable_v2(path: &str, number: u8, timeout_s: u64) -> CreateRequest {
    let create_guid = CreateGuid([0, 0, 0, 0xA0, 0, 0, 0, 0x40, 0x80, 0, 0, 0, 0, 0, 0, number]);
    let timeout = Duration::from_secs(timeout_s);
    CreateRequest {
        durability: Durability::RequestV2 { create_guid, timeout, persistent: false },
        ..plain(path)
    }
}

fn rwh_lease(key: &[u8; 16], version: LeaseVersion) -> Lease {
    Lease { key: LeaseKey(*key), state: LeaseState::READ_WRITE_HANDLE, version }
}

/// A record, or the store of one.
struct Stored {
    database: Database,
    key: Vec<u8>,
    value: Vec<u8>,
}

/// Where the situations are written.
struct Output {
    directory: PathBuf,
}

impl Output {
    fn write(&self, name: &str, about: &str, records: Vec<Stored>) -> Result<()> {
        let mut text = format!("# {about}\n");
        for Stored { database, key, value } in records {
            text += &format!("{database} {} {}\n", hex(&key), hex(&value));
        }
        let path = self.directory.join(format!("{name}.txt"));
        fs::write(&path, text)?;
        println!("{}", path.display());
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A sidecar that lets everything go on, and writes it down.
struct Recorder {
    page: Arc<Mutex<PageWriter>>,
    stores: Arc<Mutex<Vec<Stored>>>,
}

impl Recorder {
    fn start(run_directory: &Path) -> Result<Self> {
        // It is told of every store of an open, durable or not.
        let limits = Limits { fence_tick_ns: 1_000_000_000, open_global_durable_min_len: 0 };
        let page = Arc::new(Mutex::new(PageWriter::open(&run_directory.join(frame::PAGE_FILE), limits)?));
        let stores = Arc::new(Mutex::new(Vec::new()));
        let listener = UnixListener::bind(run_directory.join(frame::SOCKET_FILE))?;
        let recorder = Self { page: Arc::clone(&page), stores: Arc::clone(&stores) };
        // Ends with this program.
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (page, stores) = (Arc::clone(&page), Arc::clone(&stores));
                thread::spawn(move || serve(stream, &page, &stores));
            }
        });
        Ok(recorder)
    }

    /// From now on the stores of that file and that lease are written down too.
    fn watch(&self, file: &[u8], lease: Option<&[u8]>) {
        let mut page = self.page.lock().expect("no thread panicked");
        page.set_file(file);
        if let Some(lease) = lease {
            page.set_lease(lease);
        }
    }

    /// What was stored since it was asked last.
    fn take(&self) -> Vec<Stored> {
        std::mem::take(&mut self.stores.lock().expect("no thread panicked"))
    }
}

fn serve(mut stream: UnixStream, page: &Mutex<PageWriter>, stores: &Mutex<Vec<Stored>>) {
    let mut buffer = FrameBuffer::new();
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        buffer.push(&chunk[..length]).expect("memory");
        while let Some(frame) = buffer.take_frame().expect("the shim sends sound frames") {
            let (request_id, request) = Request::decode(&frame).expect("the shim sends sound frames");
            let reply = match request {
                Request::Hello { instance, .. } => {
                    // Until this program ends, nothing is fenced.
                    page.lock().expect("no thread panicked").bind(&instance, u64::MAX);
                    Reply::Welcome
                }
                Request::Store { database, key, value } => {
                    stores.lock().expect("no thread panicked").push(Stored { database, key, value });
                    Reply::Proceed
                }
                _ => Reply::Proceed,
            };
            let mut answer = Vec::new();
            reply.encode(request_id, &mut answer).expect("small enough");
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    }
}
