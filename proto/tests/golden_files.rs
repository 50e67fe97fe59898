//! The golden files leave out nothing that rests on disk: whoever adds a field or a message adds a file that has it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use protox::prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, Value};

/// The messages that golden files have, by their directory. Everything at rest is one of them or inside one.
const STORED: [(&str, &str); 5] = [
    ("appliedmeta", "holdfast.storage.v1.AppliedMeta"),
    ("command", "holdfast.storage.v1.Command"),
    ("logentry", "holdfast.storage.v1.LogEntry"),
    ("outcome", "holdfast.smb.v1.Outcome"),
    ("record", "holdfast.storage.v1.Record"),
];

fn below_the_crate(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The full names of all fields of a message and of those inside it.
fn reachable(message: &MessageDescriptor, fields: &mut BTreeSet<String>) {
    for field in message.fields() {
        if let (true, Kind::Message(inner)) = (fields.insert(field.full_name().to_owned()), field.kind()) {
            reachable(&inner, fields);
        }
    }
}

/// The full names of the fields that are set in a message and in those inside it.
fn set(message: &DynamicMessage, fields: &mut BTreeSet<String>) {
    for (field, value) in message.fields() {
        fields.insert(field.full_name().to_owned());
        match value {
            Value::Message(inner) => set(inner, fields),
            Value::List(values) => {
                values.iter().filter_map(Value::as_message).for_each(|inner| set(inner, fields))
            }
            _ => {}
        }
    }
}

#[test]
fn every_field_that_rests_on_disk_is_set_in_a_golden_file() {
    let descriptors = protox::compile(["storage.proto"], [below_the_crate("proto")]).expect("the build has");
    let pool = DescriptorPool::from_file_descriptor_set(descriptors).expect("they come from a compiler");
    let (mut stored, mut covered) = (BTreeSet::new(), BTreeSet::new());
    for (directory, message) in STORED {
        let descriptor = pool.get_message_by_name(message).expect("the message is in a .proto file");
        reachable(&descriptor, &mut stored);
        let entries = std::fs::read_dir(below_the_crate("testdata/v1").join(directory));
        for entry in entries.expect("the golden files are there") {
            let path = entry.expect("readable").path();
            let bytes = std::fs::read(&path).expect("readable");
            let golden = DynamicMessage::decode(descriptor.clone(), bytes.as_slice());
            set(&golden.unwrap_or_else(|error| panic!("{}: {error}", path.display())), &mut covered);
        }
    }
    let missing: Vec<_> = stored.difference(&covered).collect();
    assert!(missing.is_empty(), "in no golden file: {missing:#?}");
}
