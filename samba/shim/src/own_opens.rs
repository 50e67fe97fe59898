//! Which opens this process has made or reclaimed: their records it looks at without asking anybody.
//!
//! A set of bits, one or more ids to each, so that it has a fixed size and adding to it costs next to nothing. Bits are
//! never cleared. An id that is wrongly taken for the process's own is not asked about, and then `smbd` answers a client
//! that comes back too early as it does without this library. But who comes back does so to a process that has just
//! been forked, and has stored nothing.

use std::sync::atomic::{AtomicU64, Ordering};

/// 2^16: a process with a thousand opens takes one of seventy others for its own.
const BITS: usize = 1 << 16;

// Samba works on its databases in one thread, so the bits need no order with anything.
static OWN: [AtomicU64; BITS / 64] = [const { AtomicU64::new(0) }; BITS / 64];

/// This process stores the record of an open.
pub(crate) fn add(persistent_id: u32) {
    let (word, bit) = place_of(persistent_id);
    OWN[word].fetch_or(bit, Ordering::Relaxed);
}

/// Whether this process has stored the record of an open, as far as it remembers.
pub(crate) fn contain(persistent_id: u32) -> bool {
    let (word, bit) = place_of(persistent_id);
    OWN[word].load(Ordering::Relaxed) & bit != 0
}

/// A forked process has none of its parent's.
pub(crate) fn begin() {
    OWN.iter().for_each(|word| word.store(0, Ordering::Relaxed));
}

/// The ids of a node are all the same modulo eight, so they are spread by Fibonacci hashing.
fn place_of(persistent_id: u32) -> (usize, u64) {
    const GOLDEN_RATIO: u32 = 0x9E37_79B9;
    let bit = (persistent_id.wrapping_mul(GOLDEN_RATIO) >> (u32::BITS - BITS.ilog2())) as usize;
    (bit / 64, 1 << (bit % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_there_until_the_process_is_another_one() {
        // Few enough that most others are not taken for one of them.
        let own = (0..1_000_u32).map(|number| number * 8 + 3);
        begin();
        own.clone().for_each(add);
        assert!(own.clone().all(contain));
        let others = (1_000..10_000_u32).map(|number| number * 8 + 3);
        let mistaken = others.filter(|id| contain(*id)).count();
        assert!(mistaken < 9_000 / 20, "{mistaken} of 9000");
        begin();
        assert!(!own.clone().any(contain));
    }
}
