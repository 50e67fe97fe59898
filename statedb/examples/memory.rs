//! How much memory an open takes without its image, after some have come and gone:
//! `cargo run --release -p holdfast-statedb --example memory`.

#![expect(unsafe_code, reason = "an allocator is unsafe to implement")]
#![expect(clippy::print_stdout, reason = "the measurement is what it is for")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use population::{Kind, Population};

#[path = "../benches/population/mod.rs"]
mod population;

/// As many as a cluster may hold.
const OPENS: usize = 1_000_000;

#[global_allocator]
static ALLOCATOR: Counting = Counting { live: AtomicUsize::new(0) };

fn main() {
    for kind in [Kind::Create, Kind::Grant] {
        let before = ALLOCATOR.live.load(Ordering::Relaxed);
        let mut population = Population::new(kind, OPENS, 0);
        for _ in 0..OPENS / 10 {
            let open = population.request_open();
            population.apply(&open);
            let close = population.request_close();
            population.apply(&close);
            population.forget_changes();
        }
        let state = population.state;
        let taken = ALLOCATOR.live.load(Ordering::Relaxed) - before;
        println!("{kind:?}: {} bytes for each of {} opens", taken / state.opens_len(), state.opens_len());
    }
}

/// The system's allocator, and how many bytes it has given out.
struct Counting {
    live: AtomicUsize,
}

// SAFETY: every call goes to the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.live.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.live.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
