//! What is fuzzed, one module per target: bytes from a socket, a disk or a database of Samba's, which anybody may
//! have damaged or made up.
//!
//! Each module has a `check`, which panics if the code under test breaks a promise, and `seeds`, inputs to begin
//! with, made of the golden files and encoded samples. `cargo run --example seeds` writes them to `corpus/`.
//! `fuzz_targets/` hands the checks to libFuzzer.
//!
//! # What is promised for every input
//!
//! - Nothing panics, overflows or runs for ever.
//! - What was decoded comes out the same after it was encoded and decoded again.
//! - The memory taken is in proportion to the input, whatever lengths and counts the input announces.
//!
//! What is not fuzzed: `unsafe` code (the shared page and the calls into libtdb have tests of their own), so that no
//! sanitizer is needed; and the conversions between `proto` and openraft, which are private to `node`.

mod memory;
mod pieces;
pub mod samba_records;
pub mod shim_frames;
pub mod stored_records;
mod story;
pub mod wire_conversions;

pub use memory::check_bounded;

/// An input to begin with: the name of its file in the corpus, and its bytes.
pub type Seed = (String, Vec<u8>);
