//! See the module of the same name in `holdfast_fuzz`.

#![no_main]

use holdfast_fuzz::{check_bounded, stored_records};

libfuzzer_sys::fuzz_target!(|input: &[u8]| check_bounded(input, stored_records::check));
