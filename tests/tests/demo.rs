//! What a newcomer sees first.

use std::{process::Command, sync::Mutex};

use harness::samba::samba_or_skip;

/// The demo runs with the default timing, as a newcomer's does. Two of them at once could be too much for a machine
/// that is small and busy.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs the demo with these arguments, and returns what it printed and wrote.
fn demo(arguments: &[&str]) -> (String, serde_json::Value) {
    let _alone = ONE_AT_A_TIME.lock();
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("demo.json");
    let output =
        Command::new(env!("CARGO_BIN_EXE_demo")).args(arguments).arg("--json").arg(&json).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    (printed, serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap())
}

fn assert_all_kept(document: &serde_json::Value) {
    let files = document["files"].as_array().unwrap();
    assert_eq!(files.len(), 3);
    assert!(files.iter().all(|file| file["kept"] == true), "{document:#}");
    assert_ne!(document["victim"], document["survivor"]);
}

#[test]
fn without_samba_the_demo_tells_its_story_with_a_stand_in() {
    let (printed, document) = demo(&["--stand-in"]);
    assert!(printed.contains("3 of 3 handles survived their node."), "{printed}");
    assert_all_kept(&document);
}

#[test]
fn with_samba_the_demo_kills_a_real_smbd() {
    let Some(_) = samba_or_skip() else { return };
    let (printed, document) = demo(&[]);
    assert!(printed.contains("a real smbd"), "{printed}");
    assert_all_kept(&document);
}
