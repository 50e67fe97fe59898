//! Writes the seeds of every target to `corpus/`. What else is there (inputs that once failed) stays.

use std::path::Path;
use std::{fs, io};

use holdfast_fuzz::{samba_records, shim_frames, stored_records, wire_conversions};

fn main() -> io::Result<()> {
    for (target, seeds) in [
        ("wire_conversions", wire_conversions::seeds()),
        ("stored_records", stored_records::seeds()),
        ("samba_records", samba_records::seeds()),
        ("shim_frames", shim_frames::seeds()),
    ] {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        fs::create_dir_all(&corpus)?;
        for (name, input) in seeds {
            fs::write(corpus.join(name), input)?;
        }
    }
    Ok(())
}
