//! How much memory a check takes, which libFuzzer can measure only with a sanitizer.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a check may take for an input of no length: tables, messages of errors.
const BYTES_MAX_AT_ALL: usize = 64 * 1024;

/// What a check may take for each byte of its input. The dearest byte is half of an empty message in a list: two bytes
/// become a structure of about half a KiB, in a list that has grown to twice its length, which is held as message, as
/// checked type, and as both again after the way back.
const BYTES_MAX_PER_INPUT_BYTE: usize = 4 * 1024;

#[global_allocator]
static ALLOCATOR: Counting = Counting { live: AtomicUsize::new(0), peak: AtomicUsize::new(0) };

/// Runs a check.
///
/// # Panics
///
/// If the check does, or if it takes more memory than the length of its input justifies.
pub fn check_bounded(input: &[u8], check: impl FnOnce(&[u8])) {
    let before = ALLOCATOR.restart();
    check(input);
    let taken = ALLOCATOR.peak.load(Ordering::Relaxed) - before;
    let bytes_max = BYTES_MAX_AT_ALL + BYTES_MAX_PER_INPUT_BYTE * input.len();
    assert!(taken <= bytes_max, "{} bytes of input took {taken} bytes of memory", input.len());
}

/// The system's allocator, and how much it has given out.
struct Counting {
    live: AtomicUsize,
    peak: AtomicUsize,
}

impl Counting {
    /// Begins a new peak, and returns where it begins.
    fn restart(&self) -> usize {
        let live = self.live.load(Ordering::Relaxed);
        self.peak.store(live, Ordering::Relaxed);
        live
    }

    fn grow(&self, bytes: usize) {
        let live = self.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(live, Ordering::Relaxed);
    }

    fn shrink(&self, bytes: usize) {
        self.live.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator with the same arguments.
#[expect(unsafe_code, reason = "an allocator is unsafe to implement")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.grow(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.shrink(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        self.grow(new_size);
        self.shrink(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}
