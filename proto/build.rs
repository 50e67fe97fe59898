//! Generates the Rust code of the `.proto` files. protox compiles them, so that no `protoc` is needed.

use std::error::Error;

/// Every file that has messages of ours.
const PROTO_FILES: [&str; 6] = [
    "proto/smb.proto",
    "proto/storage.proto",
    "proto/raft.proto",
    "proto/ops.proto",
    "proto/handles.proto",
    "proto/events.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in PROTO_FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(PROTO_FILES, ["proto"])?;
    tonic_prost_build::configure()
        // The largest variant of each: boxing keeps the others small.
        .boxed(".holdfast.storage.v1.Record.record.open")
        .boxed(".holdfast.storage.v1.FromSmbNode.request.grant")
        .boxed(".holdfast.storage.v1.FromSmbNode.request.create")
        .boxed(".holdfast.handles.v1.HandleRequest.request.grant")
        .boxed(".holdfast.handles.v1.HandleRequest.request.create")
        .boxed(".holdfast.events.v1.WatchResponse.response.open_now")
        .compile_fds(descriptors)?;
    Ok(())
}
