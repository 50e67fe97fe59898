//! The `.proto` files are what somebody with an SMB server of his own reads: nothing in them goes without saying.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where things are in a `.proto` file, by the field numbers of descriptor.proto.
mod place {
    pub(super) const MESSAGE: i32 = 4;
    pub(super) const ENUM: i32 = 5;
    pub(super) const SERVICE: i32 = 6;
    /// In a message a field, in an enumeration a value, in a service a call.
    pub(super) const MEMBER: i32 = 2;
}

fn proto_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("proto")
}

fn proto_files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(proto_dir()).expect("the .proto files are there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "proto"));
    files.sort();
    assert!(!files.is_empty(), "no .proto files in {}", proto_dir().display());
    files
}

#[test]
fn every_message_field_value_and_call_has_a_comment_of_whole_sentences() {
    let descriptors = protox::compile(proto_files(), [proto_dir()]).expect("the build has compiled them");
    let mut bare = Vec::new();
    for file in &descriptors.file {
        let locations = file.source_code_info.as_ref().map_or(&[][..], |info| &info.location);
        // A section, a status or a list may follow the last sentence.
        let is_sentence = |text: &str| text.trim_end().ends_with(['.', ':', ']']);
        let commented: BTreeSet<&[i32]> = locations
            .iter()
            .filter(|location| location.leading_comments.as_deref().is_some_and(is_sentence))
            .map(|location| location.path.as_slice())
            .collect();
        let mut check = |path: &[i32], name: String| {
            if !commented.contains(path) {
                bare.push(format!("{}: {name}", file.name()));
            }
        };
        for (at, message) in (0..).zip(&file.message_type) {
            check(&[place::MESSAGE, at], message.name().to_owned());
            for (field_at, field) in (0..).zip(&message.field) {
                let path = [place::MESSAGE, at, place::MEMBER, field_at];
                check(&path, format!("{}.{}", message.name(), field.name()));
            }
            let is_flat = message.nested_type.is_empty() && message.enum_type.is_empty();
            assert!(is_flat, "{} has types of its own, where nobody looks for them", message.name());
        }
        for (at, enumeration) in (0..).zip(&file.enum_type) {
            check(&[place::ENUM, at], enumeration.name().to_owned());
            for (value_at, value) in (0..).zip(&enumeration.value) {
                check(&[place::ENUM, at, place::MEMBER, value_at], value.name().to_owned());
            }
        }
        for (at, service) in (0..).zip(&file.service) {
            check(&[place::SERVICE, at], service.name().to_owned());
            for (call_at, call) in (0..).zip(&service.method) {
                let path = [place::SERVICE, at, place::MEMBER, call_at];
                check(&path, format!("{}.{}", service.name(), call.name()));
            }
        }
    }
    assert!(bare.is_empty(), "without a comment that ends as a sentence does: {bare:#?}");
}

#[test]
fn every_file_begins_by_saying_what_it_is_for() {
    for file in proto_files() {
        let text = std::fs::read_to_string(&file).expect("readable");
        assert!(text.starts_with("// "), "{}", file.display());
    }
}
