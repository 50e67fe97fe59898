//! Which tests there are, and which of them Holdfast promises something about.

/// How the suites about durable handles begin.
pub const SUITES: &str = "smb2.durable-";

/// Tests in which a client loses its connection, and must get its open back on the next one. With a node that died
/// in between, these are what Holdfast is for.
pub const RECLAIM_TESTS: [&str; 16] = [
    "smb2.durable-open.reopen2",
    "smb2.durable-open.reopen2-lease",
    "smb2.durable-open.reopen2-lease-v2",
    "smb2.durable-open.reopen2a",
    "smb2.durable-open.lock-oplock",
    "smb2.durable-open.lock-lease",
    "smb2.durable-open.file-position",
    "smb2.durable-open.alloc-size",
    "smb2.durable-open.read-only",
    "smb2.durable-open.delete_on_close1",
    "smb2.durable-v2-open.reopen2",
    "smb2.durable-v2-open.reopen2b",
    "smb2.durable-v2-open.reopen2-lease",
    "smb2.durable-v2-open.reopen2-lease-v2",
    "smb2.durable-v2-open.durable-v2-setinfo",
    "smb2.durable-v2-delay.durable_v2_reconnect_delay",
];

/// Tests in which a client's new session takes over from an old one whose connection still stands: on another node,
/// where several serve a share.
pub const TAKEOVER_TESTS: [&str; 4] = [
    "smb2.durable-open.reopen1a",
    "smb2.durable-open.reopen1a-lease",
    "smb2.durable-v2-open.reopen1a",
    "smb2.durable-v2-open.reopen1a-lease",
];

/// Tests in which another client wants the file: on the survivor, where several nodes serve a share.
pub const INTRUDER_TESTS: [&str; 5] = [
    "smb2.durable-open.oplock",
    "smb2.durable-open.lease",
    "smb2.durable-open.open2-lease",
    "smb2.durable-open.open2-oplock",
    "smb2.durable-v2-delay.durable_v2_reconnect_delay_msec",
];
