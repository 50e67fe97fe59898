//! Habits of the code that a machine can see, so that a reviewer need not.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace")
}

/// Every Rust file of ours below a directory, with its text.
fn sources(below: &str) -> Vec<(PathBuf, String)> {
    let (mut found, mut directories) = (Vec::new(), vec![root().join(below)]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {below}");
    found
}

/// Lines of code, without comments, that contain one of these words.
fn lines_with<'a>(text: &'a str, words: &'a [&str]) -> impl Iterator<Item = &'a str> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.filter(|line| words.iter().any(|word| line.contains(word)))
}

#[test]
fn the_replicated_state_is_pure() {
    // Whatever could give another answer on another replica, or tomorrow; and whatever bytes at rest depend on.
    let impure = [
        "SystemTime",
        "Instant",
        "HashMap",
        "HashSet",
        "std::fs",
        "std::net",
        "std::io",
        "std::thread",
        "std::env",
        "rand::",
        "tokio",
        "async ",
        "serde",
        "prost",
        "crate::store",
    ];
    for (path, text) in sources("statedb/src/state") {
        // The one place that has a hash map offers no way to iterate it.
        let wraps_a_hash_map = path.ends_with("lookup.rs");
        let impure: Vec<_> =
            impure.into_iter().filter(|word| !(wraps_a_hash_map && *word == "HashMap")).collect();
        let found: Vec<_> = lines_with(&text, &impure).collect();
        assert!(found.is_empty(), "{}: {found:#?}", path.display());
    }
}

#[test]
fn the_store_knows_nothing_of_opens() {
    for (path, text) in sources("statedb/src/store") {
        let found: Vec<_> = lines_with(&text, &["crate::state", "OpenDescription"]).collect();
        assert!(found.is_empty(), "{}: {found:#?}", path.display());
    }
}

#[test]
fn one_module_names_openraft() {
    for (path, text) in sources("node").into_iter().chain(sources("statedb")).chain(sources("proto")) {
        if !path.starts_with(root().join("node/src/raft")) {
            let found: Vec<_> = lines_with(&text, &["openraft::"]).collect();
            assert!(found.is_empty(), "{}: {found:#?}", path.display());
        }
    }
}

#[test]
fn the_shim_depends_on_nothing_that_could_surprise_smbd() {
    let manifest = fs::read_to_string(root().join("samba/shim/Cargo.toml")).unwrap();
    let dependencies = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let mut names: Vec<_> = dependencies
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["frame", "libc"]);
}

#[test]
fn nothing_is_left_to_be_done_later() {
    let unfinished = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("d", "bg!(")];
    for directory in ["statedb", "proto", "samba", "node", "tests"] {
        for (path, text) in sources(directory) {
            let found: Vec<_> = lines_with(&text, &unfinished).collect();
            assert!(found.is_empty(), "{}: {found:#?}", path.display());
        }
    }
}
