//! Keeps the stored copy of the applied state up to date, on a thread of its own.
//!
//! Applying does not wait for it: the copy may lag. A bounded queue lies in between, so it cannot lag for
//! ever. After a failure the next write is told, and Raft stops the node.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use statedb::store::StoreError;
use statedb::store::applied::{AppliedStore, Change, StoredRecord};
use tokio::sync::{mpsc, oneshot};

use crate::telemetry::chain;

/// How many batches may wait. A batch is what was applied in one go, up to [`super::APPLY_BATCH_MAX`]
/// entries; beyond this, applying waits for the disk. Five thousand batches a second fit into [`GATHER_FOR`].
const QUEUE_LEN: usize = 256;

/// How long changes are gathered before they are written together. A record that changes often is written
/// once, and the disk and the processor are left to the log, for which clients wait. A restart replays that
/// much more of it.
const GATHER_FOR: Duration = Duration::from_millis(50);

/// Hands work to the thread. Cloneable; the thread ends with the last of them.
#[derive(Clone, Debug)]
pub(super) struct AppliedWriter {
    jobs: mpsc::Sender<Job>,
    status: Arc<Status>,
}

/// How far the copy is, and whether the node's stores still work.
#[derive(Debug, Default)]
pub(super) struct Status {
    /// Why nothing more is written: the first failure of the copy, or of the log.
    failure: OnceLock<StoreError>,
    /// Entries before this index are in the copy on disk.
    synced_next: AtomicU64,
}

impl Status {
    /// Why this node's stores accept nothing more. Raft ends of it, but tells it in words of its own.
    pub(super) fn failure(&self) -> Option<&StoreError> {
        self.failure.get()
    }

    /// The log has failed, and so the copy is not written any further either. Returns the error as Raft
    /// takes it.
    pub(super) fn log_failed(&self, error: StoreError) -> io::Error {
        let _ = self.failure.set(error.clone());
        io::Error::other(error)
    }
}

/// What the state was after some entry.
#[derive(Debug)]
pub(super) struct Meta {
    /// That entry; `None` before the first.
    pub(super) applied_index: Option<u64>,
    /// What is stored of it.
    pub(super) encoded: Vec<u8>,
}

#[derive(Debug)]
enum Job {
    Write { meta: Meta, changes: Vec<Change> },
    Replace { meta: Meta, records: Vec<StoredRecord>, done: oneshot::Sender<Result<(), StoreError>> },
    Sync { done: oneshot::Sender<Result<(), StoreError>> },
}

impl AppliedWriter {
    /// Starts the thread on a store whose content, up to `applied_index`, was just loaded and synced.
    pub(super) fn start(store: AppliedStore, applied_index: Option<u64>) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE_LEN);
        let status = Arc::new(Status::default());
        status.synced_next.store(next(applied_index), Ordering::Release);
        let thread = Thread { store, status: Arc::clone(&status), written_next: next(applied_index) };
        std::thread::Builder::new().name("applied-writer".to_owned()).spawn(move || thread.run(queue))?;
        Ok(Self { jobs, status })
    }

    /// To learn why a node has stopped, also after the thread has ended.
    pub(super) fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// Writes what some entries changed. On its way when this returns.
    pub(super) async fn write(&self, meta: Meta, changes: Vec<Change>) -> Result<(), StoreError> {
        self.send(Job::Write { meta, changes }).await
    }

    /// Puts a whole new state in the place of the old one. On disk when this returns.
    pub(super) async fn replace(&self, meta: Meta, records: Vec<StoredRecord>) -> Result<(), StoreError> {
        let (done, receiver) = oneshot::channel();
        self.send(Job::Replace { meta, records, done }).await?;
        self.wait(receiver).await
    }

    /// Waits until everything that was written is on disk.
    pub(super) async fn sync(&self) -> Result<(), StoreError> {
        let (done, receiver) = oneshot::channel();
        self.send(Job::Sync { done }).await?;
        self.wait(receiver).await
    }

    /// Waits until the copy holds the effects of the entry at `index`, on disk.
    pub(super) async fn ensure_synced(&self, index: u64) -> Result<(), StoreError> {
        if self.status.synced_next.load(Ordering::Acquire) > index { Ok(()) } else { self.sync().await }
    }

    async fn send(&self, job: Job) -> Result<(), StoreError> {
        if let Some(failure) = self.status.failure.get() {
            return Err(failure.clone());
        }
        self.jobs.send(job).await.map_err(|_| self.why_ended())
    }

    async fn wait(&self, done: oneshot::Receiver<Result<(), StoreError>>) -> Result<(), StoreError> {
        done.await.unwrap_or_else(|_| Err(self.why_ended()))
    }

    fn why_ended(&self) -> StoreError {
        self.status.failure.get().cloned().unwrap_or_else(|| StoreError::Stopped {
            path: "applied".into(),
            reason: "its thread has ended".to_owned(),
        })
    }
}

fn next(applied_index: Option<u64>) -> u64 {
    applied_index.map_or(0, |index| index + 1)
}

/// What the thread owns.
struct Thread {
    store: AppliedStore,
    status: Arc<Status>,
    /// Entries before this index are in the copy, if not on disk.
    written_next: u64,
}

impl Thread {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = queue.blocking_recv() {
            if let Err(error) = self.work(job, &mut queue) {
                tracing::error!(error = %chain(&error), "the applied state cannot be stored");
                // Whatever is queued is dropped, and who waits for it learns why.
                let _ = self.status.failure.set(error);
                return;
            }
        }
        if let Err(error) = self.store.sync() {
            tracing::error!(error = %chain(&error), "the applied state cannot be synced at the end");
        }
    }

    fn work(&mut self, job: Job, queue: &mut mpsc::Receiver<Job>) -> Result<(), StoreError> {
        let mut job = Some(job);
        while let Some(current) = job.take() {
            match current {
                Job::Write { mut meta, mut changes } => {
                    std::thread::sleep(GATHER_FOR);
                    // What has queued up meanwhile goes into the same batch: later changes of a record win.
                    while let Ok(queued) = queue.try_recv() {
                        match queued {
                            Job::Write { meta: later, changes: more } => {
                                meta = later;
                                changes.extend(more);
                            }
                            other => {
                                job = Some(other);
                                break;
                            }
                        }
                    }
                    self.store.write(&meta.encoded, changes)?;
                    self.written_next = next(meta.applied_index);
                }
                Job::Replace { meta, records, done } => {
                    let result = self.store.replace(&meta.encoded, records);
                    if result.is_ok() {
                        self.written_next = next(meta.applied_index);
                        self.status.synced_next.store(self.written_next, Ordering::Release);
                    }
                    let _ = done.send(result.clone());
                    result?;
                }
                Job::Sync { done } => {
                    let result = self.store.sync();
                    if result.is_ok() {
                        self.status.synced_next.store(self.written_next, Ordering::Release);
                    }
                    let _ = done.send(result.clone());
                    result?;
                }
            }
        }
        Ok(())
    }
}
