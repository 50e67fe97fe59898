//! The shared page: what every `smbd` process may know without asking.
//!
//! A file of fixed size in the run directory. The sidecar writes it ([`PageWriter`]); every `smbd` process
//! maps it read-only ([`PageReader`]) and reads it with single atomic loads, in the middle of its database
//! calls and in a signal handler.
//!
//! ```text
//!  offset     size  field                        meaning
//!       0        8  magic                        "HOLDFAST", as a little-endian number
//!       8        4  layout_version               LAYOUT_VERSION
//!      12        4  page_len                     PAGE_LEN
//!      16        8  instance_tag                 first 8 bytes of the bound instance; 0 none
//!      24        8  lease_deadline_ns            when this node must stop (CLOCK_MONOTONIC)
//!      32        8  fence_tick_ns                how often a process looks at the two fields above
//!      40        4  open_global_durable_min_len  an open_global value of this length or more may be durable
//!      44        4  node_slot                    0 ..= 7: this node draws ids ≡ slot (mod 8); 0xFF none
//!      48        4  in_use_version               odd while in_use_record is being changed
//!      52        4  in_use_len                   bytes used of in_use_record
//!      56        4  look_at_all                  1: every open's record is asked about before it is looked at
//!      60        4  locking_prelude              fixed_len, then item_len, 16 bits each; 0 until it is known
//!      64     1024  in_use_record                an open_global value that Samba takes for "in use"
//!    1088     3008  (zero)
//!    4096   131072  ids                          2^20 bits; bit (id mod 2^20) per tracked persistent id
//!  135168    32768  files                        2^18 bits; bit (key_hash mod 2^18) per tracked file id
//!  167936    32768  leases                       2^18 bits; bit (key_hash mod 2^18) per tracked lease key
//!  200704   131072  elsewhere                    2^20 bits; bit (id mod 2^20) per open that another node may have
//!  331776           PAGE_LEN: 81 pages of 4 KiB
//! ```
//!
//! # What must stay true
//!
//! - *A bit that is set may be wrong, one that is clear may not.* A set bit costs one needless question; a
//!   clear bit for a tracked key would let a change pass unseen. So bits are set before the thing they stand
//!   for is acknowledged, and [`PageWriter::replace_all`] sets the new ones before it clears the stale ones.
//! - The file is never truncated and never shrinks: a process that has it mapped would die of it. A file with
//!   another layout is replaced by a new file under the same name; processes that mapped the old one see no
//!   lease extended any more and end at their deadline ([`PageReader::is_current`] lets them notice earlier).
//! - `lease_deadline_ns` is never read as another instance's: it changes hands while `instance_tag` is 0
//!   ([`PageWriter::bind`], [`PageReader::serving_until`]).
//!
//! Bits are read and written with sequentially consistent operations. The sidecar sets a bit and then answers
//! a request over the socket; a process that hears of the answer by any path must also see the bit, and the
//! strongest ordering makes that hold without an argument about which path it was. On the reading side it is
//! a plain load.

#![expect(unsafe_code, reason = "the page is a file mapped into memory")]

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::hash::Hash;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::{fmt, io, mem, ptr};

/// The version of the layout above.
pub const LAYOUT_VERSION: u32 = 2;

/// The length of the file.
pub const PAGE_LEN: usize = mem::size_of::<Layout>();

/// The longest record that [`PageWriter::set_allocator`] takes. An `open_global` record that is not durable
/// has about 260 bytes in all Samba versions looked at.
pub const IN_USE_RECORD_MAX: usize = 1024;

/// How many nodes share the persistent ids between them.
pub const NODE_SLOTS: u32 = 8;

const MAGIC: u64 = u64::from_le_bytes(*b"HOLDFAST");
const NO_SLOT: u32 = 0xFF;

// 2^20 bits for ids: with 100,000 tracked opens one in ten untracked ids asks needlessly. Files and leases
// are fewer and their stores rarer, hence 2^18.
const ID_BITS: usize = 1 << 20;
const KEY_BITS: usize = 1 << 18;

/// The page as both sides see it. Every field is atomic: the other side is another process.
#[repr(C)]
struct Layout {
    magic: AtomicU64,
    layout_version: AtomicU32,
    page_len: AtomicU32,
    instance_tag: AtomicU64,
    lease_deadline_ns: AtomicU64,
    fence_tick_ns: AtomicU64,
    open_global_durable_min_len: AtomicU32,
    node_slot: AtomicU32,
    in_use_version: AtomicU32,
    in_use_len: AtomicU32,
    look_at_all: AtomicU32,
    locking_prelude: AtomicU32,
    in_use_record: [AtomicU64; IN_USE_RECORD_MAX / 8],
    zero_to_page_end: [u8; 3008],
    ids: [AtomicU64; ID_BITS / 64],
    files: [AtomicU64; KEY_BITS / 64],
    leases: [AtomicU64; KEY_BITS / 64],
    elsewhere: [AtomicU64; ID_BITS / 64],
}

const _: () = {
    assert!(mem::offset_of!(Layout, instance_tag) == 16);
    assert!(mem::offset_of!(Layout, in_use_version) == 48);
    assert!(mem::offset_of!(Layout, locking_prelude) == 60);
    assert!(mem::offset_of!(Layout, in_use_record) == 64);
    assert!(mem::offset_of!(Layout, ids) == 4096);
    assert!(mem::offset_of!(Layout, files) == 135_168);
    assert!(mem::offset_of!(Layout, leases) == 167_936);
    assert!(mem::offset_of!(Layout, elsewhere) == 200_704);
    assert!(PAGE_LEN == 331_776);
};

/// What the sidecar tells the shim about itself, once, when it opens the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How often a process looks whether it may go on serving.
    pub fence_tick_ns: u64,
    /// The length from which on an `open_global` value may be that of a durable open. Values below it are
    /// stored without a question, unless their id is tracked.
    pub open_global_durable_min_len: u32,
}

/// How a value of `locking.tdb` begins: with who waits for the record and who holds its lock, which concerns nobody but
/// the processes of one node. It begins with a u32, the count of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prelude {
    /// The bytes that are always there, the count included.
    pub fixed_len: u16,
    /// The bytes of an item.
    pub item_len: u16,
}

impl Prelude {
    /// What comes after the prelude, and so says something about opens. Nothing in a value that is too short.
    pub fn rest_of(self, value: &[u8]) -> &[u8] {
        let count = value.first_chunk().map_or(0, |count| u64::from(u32::from_le_bytes(*count)));
        let len = u64::from(self.fixed_len) + count * u64::from(self.item_len);
        usize::try_from(len).ok().and_then(|len| value.get(len..)).unwrap_or_default()
    }
}

/// Which eighth of the persistent ids belongs to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeSlot(u8);

impl NodeSlot {
    /// The slot with this number, if there is one.
    pub fn new(slot: u8) -> Option<Self> {
        (u32::from(slot) < NODE_SLOTS).then_some(Self(slot))
    }

    /// The number, below [`NODE_SLOTS`].
    pub fn get(self) -> u8 {
        self.0
    }

    /// Whether a node in this slot may draw this persistent id.
    pub fn owns(self, persistent_id: u32) -> bool {
        persistent_id % NODE_SLOTS == u32::from(self.0)
    }
}

/// Now on the clock of the lease, `CLOCK_MONOTONIC`, which is the same for all processes of a machine.
pub fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable. This clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// The tag of an instance in the page. Never 0, which stands for "none".
fn instance_tag(instance: &[u8; 16]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *instance;
    u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
}

/// The hash that chooses the bit of a file id or lease key: 64-bit FNV-1a. Both sides compute it, so it is
/// part of the layout. A client that chooses colliding lease keys only makes its own stores ask once more.
pub fn key_hash(key: &[u8]) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    key.iter().fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

fn id_bit(persistent_id: u32) -> usize {
    persistent_id as usize % ID_BITS
}

fn key_bit(key: &[u8]) -> usize {
    // FNV's high bits are mixed best: fold them into the low ones that are used.
    let hash = key_hash(key);
    (hash ^ (hash >> 32)) as usize % KEY_BITS
}

fn is_set(bitmap: &[AtomicU64], bit: usize) -> bool {
    bitmap[bit / 64].load(Ordering::SeqCst) & (1 << (bit % 64)) != 0
}

/// Why the page cannot be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum PageError {
    /// A system call failed.
    Io {
        /// Which one.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
    /// The record for [`PageWriter::set_allocator`] is empty or longer than [`IN_USE_RECORD_MAX`].
    InUseRecord {
        /// Its length.
        length: usize,
    },
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { operation, path, .. } => {
                write!(f, "cannot {operation} the shared page {}", path.display())
            }
            Self::InUseRecord { length } => {
                write!(f, "an in-use record has 1 to {IN_USE_RECORD_MAX} bytes, not {length}")
            }
        }
    }
}

impl std::error::Error for PageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::InUseRecord { .. } => None,
        }
    }
}

/// The sidecar's side of the page. There is one writer at a time: the sidecar holds the run directory's lock.
#[derive(Debug)]
pub struct PageWriter {
    mapping: Mapping,
    ids: KeyBits<u32>,
    files: KeyBits<Vec<u8>>,
    leases: KeyBits<Vec<u8>>,
    elsewhere: KeyBits<u32>,
}

impl PageWriter {
    /// Opens the page, or makes one if there is none with this layout. What a former sidecar left in it
    /// stays: processes may be living by it. Its bits stay set until [`Self::replace_all`].
    ///
    /// # Errors
    ///
    /// [`PageError::Io`] when the file can be neither opened nor made.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, PageError> {
        let mapping = match Mapping::open(&c_path(path)?, libc::O_RDWR) {
            Ok(mapping) => mapping,
            // Only these two say that there is no page to keep; any other failure may pass.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                Self::create(path)?
            }
            Err(source) => return Err(PageError::Io { operation: "open", path: path.to_owned(), source }),
        };
        let layout = mapping.layout();
        layout.fence_tick_ns.store(limits.fence_tick_ns, Ordering::SeqCst);
        layout.open_global_durable_min_len.store(limits.open_global_durable_min_len, Ordering::SeqCst);
        Ok(Self {
            mapping,
            ids: KeyBits::default(),
            files: KeyBits::default(),
            leases: KeyBits::default(),
            elsewhere: KeyBits::default(),
        })
    }

    /// Makes a new page under a name of its own and then gives it its name, so that nobody maps half a page
    /// and a page in use is never written over.
    fn create(path: &Path) -> Result<Mapping, PageError> {
        let failed = |operation| move |source| PageError::Io { operation, path: path.to_owned(), source };
        let mut new_path = path.as_os_str().to_owned();
        new_path.push(".new");
        let new_path = PathBuf::from(new_path);

        let mut header = Vec::with_capacity(PAGE_LEN);
        header.extend_from_slice(&MAGIC.to_le_bytes());
        header.extend_from_slice(&LAYOUT_VERSION.to_le_bytes());
        header.extend_from_slice(&(PAGE_LEN as u32).to_le_bytes());
        header.resize(mem::offset_of!(Layout, node_slot), 0);
        header.extend_from_slice(&NO_SLOT.to_le_bytes());
        header.resize(PAGE_LEN, 0);
        std::fs::write(&new_path, header).map_err(failed("write"))?;
        // Read by processes that have become the user they serve.
        let readable_by_all = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&new_path, readable_by_all).map_err(failed("chmod"))?;
        std::fs::rename(&new_path, path).map_err(failed("rename"))?;
        Mapping::open(&c_path(path)?, libc::O_RDWR).map_err(failed("map"))
    }

    /// Makes `instance` the one that may serve, until `lease_deadline_ns` (`CLOCK_MONOTONIC`). Processes of
    /// any other instance end at their next tick.
    pub fn bind(&mut self, instance: &[u8; 16], lease_deadline_ns: u64) {
        let tag = instance_tag(instance);
        if self.mapping.layout().instance_tag.load(Ordering::SeqCst) != tag {
            // So that no process of the former instance takes the new deadline for its own.
            self.unbind();
        }
        self.extend_lease(lease_deadline_ns);
        self.mapping.layout().instance_tag.store(tag, Ordering::SeqCst);
    }

    /// No instance may serve any more: every process that was bound ends at its next tick.
    pub fn unbind(&mut self) {
        self.mapping.layout().instance_tag.store(0, Ordering::SeqCst);
    }

    /// Moves the instant at which this node's processes end. Earlier than before is allowed, and 0 ends them.
    pub fn extend_lease(&mut self, lease_deadline_ns: u64) {
        self.mapping.layout().lease_deadline_ns.store(lease_deadline_ns, Ordering::SeqCst);
    }

    /// Gives this node its share of the persistent ids. `in_use_record` is the value that the shim shows
    /// Samba's allocator for an id that is not to be drawn here; it must decode in the Samba that runs here,
    /// as the record of an open that is in use. (A value that does not decode is worse than none: Samba 4.17
    /// dereferences a null pointer when a client asks for such an id.)
    ///
    /// # Errors
    ///
    /// [`PageError::InUseRecord`] when the record is empty or too long; then nothing was changed.
    pub fn set_allocator(&mut self, slot: NodeSlot, in_use_record: &[u8]) -> Result<(), PageError> {
        let length = in_use_record.len();
        if !(1..=IN_USE_RECORD_MAX).contains(&length) {
            return Err(PageError::InUseRecord { length });
        }
        let layout = self.mapping.layout();
        // A sequence lock: readers retry while the version is odd or has changed. The version may have been
        // left odd by a sidecar that died in here.
        let version = layout.in_use_version.load(Ordering::Relaxed) | 1;
        layout.in_use_version.store(version, Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, bytes) in layout.in_use_record.iter().zip(in_use_record.chunks(8)) {
            let mut eight = [0; 8];
            eight[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(eight), Ordering::Relaxed);
        }
        layout.in_use_len.store(length as u32, Ordering::Relaxed);
        layout.in_use_version.store(version.wrapping_add(1), Ordering::Release);
        layout.node_slot.store(u32::from(slot.get()), Ordering::SeqCst);
        Ok(())
    }

    /// Tracks a persistent id: its stores and deletes are asked about, and it is never drawn here. A second
    /// call with the same id changes nothing.
    pub fn set_id(&mut self, persistent_id: u32) {
        self.ids.insert(&self.mapping.layout().ids, persistent_id, id_bit(persistent_id));
    }

    /// Forgets a persistent id. An id that is not tracked is ignored.
    pub fn clear_id(&mut self, persistent_id: u32) {
        self.ids.remove(&self.mapping.layout().ids, &persistent_id, id_bit(persistent_id));
    }

    /// Tracks a file id: changes of its `locking` and `brlock` records are asked about.
    pub fn set_file(&mut self, file_id: &[u8]) {
        self.files.insert(&self.mapping.layout().files, file_id.to_vec(), key_bit(file_id));
    }

    /// Forgets a file id, when no tracked open has it open any more.
    pub fn clear_file(&mut self, file_id: &[u8]) {
        self.files.remove(&self.mapping.layout().files, file_id, key_bit(file_id));
    }

    /// Tracks a lease by its key in `leases.tdb` (client guid and lease key).
    pub fn set_lease(&mut self, lease: &[u8]) {
        self.leases.insert(&self.mapping.layout().leases, lease.to_vec(), key_bit(lease));
    }

    /// Forgets a lease, when no tracked open uses it any more.
    pub fn clear_lease(&mut self, lease: &[u8]) {
        self.leases.remove(&self.mapping.layout().leases, lease, key_bit(lease));
    }

    /// Says that another node may have the open with this persistent id, or has had it: where the databases are those
    /// of a ctdb cluster, its record is asked about before it is looked at ([`PageReader::must_look`]).
    pub fn set_elsewhere(&mut self, persistent_id: u32) {
        self.elsewhere.insert(&self.mapping.layout().elsewhere, persistent_id, id_bit(persistent_id));
    }

    /// Tells processes how the values of `locking.tdb` begin, so that they need not ask about stores that change nothing
    /// after that.
    pub fn set_locking_prelude(&mut self, prelude: Prelude) {
        let packed = u32::from(prelude.fixed_len) | u32::from(prelude.item_len) << 16;
        self.mapping.layout().locking_prelude.store(packed, Ordering::SeqCst);
    }

    /// Says that the open with this persistent id is this node's, or nobody's any more.
    pub fn clear_elsewhere(&mut self, persistent_id: u32) {
        self.elsewhere.remove(&self.mapping.layout().elsewhere, &persistent_id, id_bit(persistent_id));
    }

    /// Says whether this node may have missed opens that others have. While it may, the record of every open is asked
    /// about before it is looked at.
    pub fn set_look_at_all(&mut self, look_at_all: bool) {
        self.mapping.layout().look_at_all.store(u32::from(look_at_all), Ordering::SeqCst);
    }

    /// Tracks exactly these keys, whatever was tracked before, by this sidecar or by one before it. A key
    /// that is tracked before and after is tracked all the time. `elsewhere` are those of the ids that
    /// [`Self::set_elsewhere`] is about.
    pub fn replace_all(
        &mut self,
        ids: impl IntoIterator<Item = u32>,
        files: impl IntoIterator<Item = Vec<u8>>,
        leases: impl IntoIterator<Item = Vec<u8>>,
        elsewhere: impl IntoIterator<Item = u32>,
    ) {
        let layout = self.mapping.layout();
        self.elsewhere.replace(&layout.elsewhere, elsewhere.into_iter().map(|id| (id_bit(id), id)));
        self.ids.replace(&layout.ids, ids.into_iter().map(|id| (id_bit(id), id)));
        self.files.replace(&layout.files, files.into_iter().map(|file| (key_bit(&file), file)));
        self.leases.replace(&layout.leases, leases.into_iter().map(|lease| (key_bit(&lease), lease)));
    }
}

/// The tracked keys behind one bitmap, so that a bit can be cleared when the last of its keys goes.
#[derive(Debug)]
struct KeyBits<K> {
    keys: HashSet<K>,
    /// How many of `keys` share a bit; never zero.
    keys_of_bit: HashMap<usize, u32>,
}

impl<K> Default for KeyBits<K> {
    fn default() -> Self {
        Self { keys: HashSet::new(), keys_of_bit: HashMap::new() }
    }
}

impl<K: Hash + Eq> KeyBits<K> {
    fn insert(&mut self, bitmap: &[AtomicU64], key: K, bit: usize) {
        if self.keys.insert(key) {
            *self.keys_of_bit.entry(bit).or_default() += 1;
            bitmap[bit / 64].fetch_or(1 << (bit % 64), Ordering::SeqCst);
        }
    }

    fn remove<Q>(&mut self, bitmap: &[AtomicU64], key: &Q, bit: usize)
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if !self.keys.remove(key) {
            return;
        }
        if let Some(count) = self.keys_of_bit.get_mut(&bit) {
            *count -= 1;
            if *count == 0 {
                self.keys_of_bit.remove(&bit);
                bitmap[bit / 64].fetch_and(!(1 << (bit % 64)), Ordering::SeqCst);
            }
        }
    }

    fn replace(&mut self, bitmap: &[AtomicU64], keys: impl Iterator<Item = (usize, K)>) {
        *self = Self::default();
        for (bit, key) in keys {
            self.insert(bitmap, key, bit);
        }
        // All that should be set is set by now; what is set beside it is stale, whoever set it.
        let mut wanted = vec![0_u64; bitmap.len()];
        for bit in self.keys_of_bit.keys() {
            wanted[bit / 64] |= 1 << (bit % 64);
        }
        for (word, wanted) in bitmap.iter().zip(wanted) {
            word.fetch_and(wanted, Ordering::SeqCst);
        }
    }
}

/// The side of a `smbd` process. Allocates nothing and takes no lock: it may be used, opened included, in a
/// signal handler.
#[derive(Debug)]
pub struct PageReader {
    mapping: Mapping,
}

impl PageReader {
    /// Maps the page.
    ///
    /// # Errors
    ///
    /// That of the system call that failed, or `InvalidData` for a file that is not a page of this layout.
    pub fn open(path: &CStr) -> io::Result<Self> {
        Ok(Self { mapping: Mapping::open(path, libc::O_RDONLY)? })
    }

    /// Whether `path` still leads to the file that is mapped here.
    pub fn is_current(&self, path: &CStr) -> bool {
        // SAFETY: all-zero bytes are a valid `stat`.
        let mut stat: libc::stat = unsafe { mem::zeroed() };
        // SAFETY: `path` is a C string and `stat` is writable.
        let found = unsafe { libc::stat(path.as_ptr(), &mut stat) } == 0;
        found && (stat.st_dev, stat.st_ino) == self.mapping.file
    }

    /// Until when this instance may serve, on `CLOCK_MONOTONIC`; `None` when it is not the one that may.
    pub fn serving_until(&self, instance: &[u8; 16]) -> Option<u64> {
        let layout = self.mapping.layout();
        let bound = || layout.instance_tag.load(Ordering::SeqCst) == instance_tag(instance);
        // The tag before the deadline: it was written after it, so the deadline is not an older one. And
        // again after it: a deadline for another instance is written when the tag is gone already.
        let before = bound();
        let lease_deadline_ns = layout.lease_deadline_ns.load(Ordering::SeqCst);
        (before && bound()).then_some(lease_deadline_ns)
    }

    /// How often to look at [`Self::serving_until`].
    pub fn fence_tick_ns(&self) -> u64 {
        self.mapping.layout().fence_tick_ns.load(Ordering::SeqCst)
    }

    /// How values of `locking.tdb` begin, if the sidecar has said so.
    pub fn locking_prelude(&self) -> Option<Prelude> {
        let packed = self.mapping.layout().locking_prelude.load(Ordering::SeqCst);
        let prelude = Prelude { fixed_len: packed as u16, item_len: (packed >> 16) as u16 };
        (packed != 0).then_some(prelude)
    }

    /// The length from which on an `open_global` value may be that of a durable open.
    pub fn open_global_durable_min_len(&self) -> usize {
        self.mapping.layout().open_global_durable_min_len.load(Ordering::SeqCst) as usize
    }

    /// This node's share of the persistent ids, once it is known.
    pub fn node_slot(&self) -> Option<NodeSlot> {
        let slot = self.mapping.layout().node_slot.load(Ordering::SeqCst);
        u8::try_from(slot).ok().and_then(NodeSlot::new)
    }

    /// Copies the record that stands for "this id is in use" and returns its length; `None` when there is
    /// none yet, or when it is just being changed.
    pub fn in_use_record(&self, copy: &mut [u8; IN_USE_RECORD_MAX]) -> Option<usize> {
        let layout = self.mapping.layout();
        let version = layout.in_use_version.load(Ordering::Acquire);
        let length = layout.in_use_len.load(Ordering::Relaxed) as usize;
        let words = layout.in_use_record.iter().take(length.div_ceil(8));
        for (word, bytes) in words.zip(copy.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        fence(Ordering::Acquire);
        let unchanged = version.is_multiple_of(2) && version == layout.in_use_version.load(Ordering::Relaxed);
        (unchanged && (1..=IN_USE_RECORD_MAX).contains(&length)).then_some(length)
    }

    /// Whether this persistent id may be tracked. False for sure means it is not.
    pub fn may_track_id(&self, persistent_id: u32) -> bool {
        is_set(&self.mapping.layout().ids, id_bit(persistent_id))
    }

    /// Whether another node may have the open with this persistent id, or has had it. False for sure means it is this
    /// node's, or nobody's.
    pub fn must_look(&self, persistent_id: u32) -> bool {
        let layout = self.mapping.layout();
        is_set(&layout.elsewhere, id_bit(persistent_id)) || layout.look_at_all.load(Ordering::SeqCst) != 0
    }

    /// Whether this file id may be tracked. False for sure means it is not.
    pub fn may_track_file(&self, file_id: &[u8]) -> bool {
        is_set(&self.mapping.layout().files, key_bit(file_id))
    }

    /// Whether this lease may be tracked. False for sure means it is not.
    pub fn may_track_lease(&self, lease: &[u8]) -> bool {
        is_set(&self.mapping.layout().leases, key_bit(lease))
    }
}

fn c_path(path: &Path) -> Result<CString, PageError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| PageError::Io {
        operation: "name",
        path: path.to_owned(),
        source: error.into(),
    })
}

/// A page mapped into this process.
#[derive(Debug)]
struct Mapping {
    layout: NonNull<Layout>,
    /// Device and inode.
    file: (libc::dev_t, libc::ino_t),
}

// SAFETY: the mapping belongs to the process, not to a thread, and all access to it is atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn open(path: &CStr, access: libc::c_int) -> io::Result<Self> {
        // SAFETY: `path` is a C string.
        let fd = unsafe { libc::open(path.as_ptr(), access | libc::O_CLOEXEC | libc::O_NOFOLLOW) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let mapping = Self::map(fd, access == libc::O_RDWR);
        // SAFETY: `fd` was opened above and is not used again; a mapping outlives its descriptor.
        unsafe { libc::close(fd) };
        mapping
    }

    fn map(fd: libc::c_int, writable: bool) -> io::Result<Self> {
        // SAFETY: all-zero bytes are a valid `stat`.
        let mut stat: libc::stat = unsafe { mem::zeroed() };
        // SAFETY: `stat` is writable.
        if unsafe { libc::fstat(fd, &mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // Checked before mapping: reading behind the end of a shorter file would raise SIGBUS.
        if stat.st_size != PAGE_LEN as libc::off_t {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new shared mapping at an address of the kernel's choice touches nothing that exists.
        let address = unsafe { libc::mmap(ptr::null_mut(), PAGE_LEN, protection, libc::MAP_SHARED, fd, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let layout = NonNull::new(address.cast::<Layout>()).ok_or(io::ErrorKind::InvalidData)?;
        let mapping = Self { layout, file: (stat.st_dev, stat.st_ino) };
        let header = mapping.layout();
        let sound = header.magic.load(Ordering::SeqCst) == MAGIC
            && header.layout_version.load(Ordering::SeqCst) == LAYOUT_VERSION
            && header.page_len.load(Ordering::SeqCst) == PAGE_LEN as u32;
        if sound { Ok(mapping) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn layout(&self) -> &Layout {
        // SAFETY: the mapping is PAGE_LEN = size_of::<Layout>() bytes long, page-aligned, lives as long as
        // `self`, and every field that anybody reads is atomic, so that the other process's writes are no
        // data race. A reader only loads, which is allowed on a read-only mapping.
        unsafe { self.layout.as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped with this address and length in `map`, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.layout.as_ptr().cast(), PAGE_LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { fence_tick_ns: 50_000_000, open_global_durable_min_len: 400 };

    struct TestDir(tempfile::TempDir);

    impl TestDir {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("temporary directory"))
        }

        fn page(&self) -> PathBuf {
            self.0.path().join(crate::PAGE_FILE)
        }

        fn writer(&self) -> PageWriter {
            PageWriter::open(&self.page(), LIMITS).expect("page")
        }

        fn reader(&self) -> PageReader {
            PageReader::open(&c_path(&self.page()).expect("path")).expect("page")
        }
    }

    #[test]
    fn a_new_page_grants_nothing() {
        let dir = TestDir::new();
        let _writer = dir.writer();
        let reader = dir.reader();
        assert_eq!(reader.serving_until(&[0; 16]), None);
        assert_eq!(reader.fence_tick_ns(), LIMITS.fence_tick_ns);
        assert_eq!(reader.open_global_durable_min_len(), 400);
        assert_eq!(reader.node_slot(), None);
        assert_eq!(reader.in_use_record(&mut [0; IN_USE_RECORD_MAX]), None);
        assert!(!reader.may_track_id(0) && !reader.may_track_file(&[]) && !reader.may_track_lease(&[]));
    }

    #[test]
    fn one_instance_at_a_time_may_serve() {
        let dir = TestDir::new();
        let mut writer = dir.writer();
        let reader = dir.reader();
        let (first, second) = ([1; 16], [2; 16]);
        writer.bind(&first, 77);
        assert_eq!((reader.serving_until(&first), reader.serving_until(&second)), (Some(77), None));
        writer.extend_lease(99);
        assert_eq!(reader.serving_until(&first), Some(99));
        writer.bind(&second, 111);
        assert_eq!((reader.serving_until(&first), reader.serving_until(&second)), (None, Some(111)));
        writer.unbind();
        assert_eq!(reader.serving_until(&second), None);
    }

    #[test]
    fn the_allocator_record_is_copied_whole() {
        let dir = TestDir::new();
        let mut writer = dir.writer();
        let reader = dir.reader();
        let mut copy = [0; IN_USE_RECORD_MAX];
        for length in [1, 7, 8, 9, 256, IN_USE_RECORD_MAX] {
            let record: Vec<u8> = (0..length).map(|i| i as u8).collect();
            writer.set_allocator(NodeSlot::new(3).expect("slot"), &record).expect("fits");
            assert_eq!(reader.in_use_record(&mut copy), Some(length));
            assert_eq!(copy[..length], record);
        }
        assert_eq!(reader.node_slot(), NodeSlot::new(3));
        for length in [0, IN_USE_RECORD_MAX + 1] {
            let result = writer.set_allocator(NodeSlot::new(5).expect("slot"), &vec![0; length]);
            assert!(matches!(result, Err(PageError::InUseRecord { .. })));
        }
        assert_eq!(reader.node_slot(), NodeSlot::new(3));
    }

    #[test]
    fn slots_partition_the_ids() {
        assert_eq!(NodeSlot::new(8), None);
        for id in 0..64 {
            let owners = (0..8).filter(|slot| NodeSlot::new(*slot).expect("slot").owns(id)).count();
            assert_eq!(owners, 1, "{id}");
        }
    }

    #[test]
    fn a_bit_is_cleared_when_the_last_of_its_keys_goes() {
        let dir = TestDir::new();
        let mut writer = dir.writer();
        let reader = dir.reader();
        let (first, second) = (17, 17 + ID_BITS as u32);
        writer.set_id(first);
        writer.set_id(first);
        writer.set_id(second);
        writer.clear_id(first);
        writer.clear_id(first);
        assert!(reader.may_track_id(second));
        writer.clear_id(second);
        assert!(!reader.may_track_id(second));
    }

    #[test]
    fn files_and_leases_are_tracked_by_their_keys() {
        let dir = TestDir::new();
        let mut writer = dir.writer();
        let reader = dir.reader();
        let keys: Vec<Vec<u8>> = (0..1000_u32).map(|i| i.to_be_bytes().repeat(6)).collect();
        for key in &keys {
            writer.set_file(key);
            assert!(reader.may_track_file(key));
        }
        assert!(!keys.iter().any(|key| reader.may_track_lease(key)));
        keys.iter().for_each(|key| writer.clear_file(key));
        assert!(!keys.iter().any(|key| reader.may_track_file(key)));
        writer.set_lease(&keys[0]);
        assert!(reader.may_track_lease(&keys[0]));
        writer.clear_lease(&keys[0]);
        assert!(!reader.may_track_lease(&keys[0]));
    }

    #[test]
    fn a_restarted_sidecar_keeps_the_page_and_replaces_its_bits() {
        let dir = TestDir::new();
        let mut writer = dir.writer();
        let reader = dir.reader();
        writer.bind(&[9; 16], 1234);
        writer.set_id(1);
        writer.set_id(2);
        writer.set_file(b"stale");
        writer.set_lease(b"kept");
        drop(writer);

        let mut writer = dir.writer();
        assert!(reader.is_current(&c_path(&dir.page()).expect("path")));
        assert_eq!(reader.serving_until(&[9; 16]), Some(1234));
        assert!(reader.may_track_id(1) && reader.may_track_file(b"stale"));

        writer.replace_all([2, 3], [], [b"kept".to_vec()], []);
        assert!(!reader.may_track_id(1) && reader.may_track_id(2) && reader.may_track_id(3));
        assert!(!reader.may_track_file(b"stale") && reader.may_track_lease(b"kept"));
        writer.clear_id(2);
        assert!(!reader.may_track_id(2));
    }

    #[test]
    fn the_opens_of_others_are_looked_at_and_all_opens_when_some_may_be_missed() {
        let dir = TestDir::new();
        let mut writer = dir.writer();
        let reader = dir.reader();
        writer.set_id(5);
        assert!(!reader.must_look(5), "this node's own");
        writer.set_elsewhere(5);
        assert!(reader.must_look(5) && !reader.must_look(6));
        writer.clear_elsewhere(5);
        assert!(!reader.must_look(5) && reader.may_track_id(5));

        writer.set_elsewhere(5);
        writer.replace_all([5, 6, 7], [], [], [6]);
        assert!(!reader.must_look(5) && reader.must_look(6) && !reader.must_look(7));

        writer.set_look_at_all(true);
        assert!(reader.must_look(7) && reader.must_look(4711));
        writer.set_look_at_all(false);
        assert!(reader.must_look(6) && !reader.must_look(7));
    }

    #[test]
    fn a_foreign_file_is_replaced_and_its_readers_notice() {
        let dir = TestDir::new();
        let path = c_path(&dir.page()).expect("path");
        std::fs::write(dir.page(), vec![0x5A; PAGE_LEN]).expect("write");
        assert_eq!(PageReader::open(&path).expect_err("no magic").kind(), io::ErrorKind::InvalidData);
        std::fs::write(dir.page(), b"short").expect("write");
        assert_eq!(PageReader::open(&path).expect_err("too short").kind(), io::ErrorKind::InvalidData);

        let _writer = dir.writer();
        let reader = dir.reader();
        assert!(reader.is_current(&path));
        std::fs::remove_file(dir.page()).expect("remove");
        let _writer = dir.writer();
        assert!(!reader.is_current(&path));
        // The old mapping goes on working, and goes on granting nothing.
        assert_eq!(reader.serving_until(&[0; 16]), None);
    }

    #[test]
    fn the_writer_can_move_to_another_thread() {
        fn assert_send<T: Send>() {}
        assert_send::<PageWriter>();
    }
}
