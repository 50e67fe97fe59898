//! What testparm says of an `smb.conf`.

use std::fs;
use std::path::Path;

use samba::Layout;
use samba::config::{ConfigError, Problem, SambaConfig};
use statedb::ShareName;
use tempfile::TempDir;

use crate::instance::{Samba, Smbd};

const TESTPARM: &str = "testparm";

#[test]
fn sound_configuration_is_read() {
    let Some(samba) = Samba::of_the_machine() else { return };
    let smbd = Smbd::start(&samba, "127.0.41.7");
    let config = SambaConfig::read(Path::new(TESTPARM), &smbd.conf(), |_| true).unwrap();
    assert_eq!(config.lock_directory, smbd.lock_directory());
    let service_path = smbd.share();
    let shares: Vec<_> = config.shares_at(service_path.to_str().unwrap()).collect();
    assert_eq!(shares, [&ShareName::new("SHARE")]);
    assert_eq!(config.shares_at("/elsewhere").count(), 0);
}

/// Defaults count too: `kernel share modes` and `posix locking` are wrong unless somebody has set them.
#[test]
fn everything_wrong_is_reported_at_once() {
    if Samba::of_the_machine().is_none() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let conf = directory.path().join("smb.conf");
    let text = "[global]\nkernel oplocks = yes\n[bad]\npath = /tmp\ndurable handles = no\nkernel share modes = yes\n\
                [good]\npath = /\nkernel oplocks = no\nkernel share modes = no\nposix locking = no\n[left alone]\npath = /\n";
    fs::write(&conf, text).unwrap();
    let error =
        SambaConfig::read(Path::new(TESTPARM), &conf, |share| share.as_str() != "left alone").unwrap_err();
    let ConfigError::Wrong { problems, .. } = &error else { panic!("{error}") };
    let options: Vec<_> = problems
        .0
        .iter()
        .map(|Problem::WrongOption { share, option, .. }| (share.as_str(), *option))
        .collect();
    assert_eq!(
        options,
        [
            ("bad", "kernel oplocks"),
            ("bad", "kernel share modes"),
            ("bad", "posix locking"),
            ("bad", "durable handles"),
        ]
    );
    let message = error.to_string();
    assert!(message.contains("[bad] has \"posix locking = Yes\"; set \"posix locking = no\""), "{message}");
}

#[test]
fn missing_configuration_is_an_error() {
    if Samba::of_the_machine().is_none() {
        return;
    }
    let error =
        SambaConfig::read(Path::new(TESTPARM), Path::new("/nonexistent/smb.conf"), |_| true).unwrap_err();
    assert!(matches!(error, ConfigError::Testparm(_)), "{error}");
}

/// With them Samba 4.25 keeps its records in another form.
#[test]
fn persistent_handles_of_samba_are_wrong() {
    for samba in Samba::all().into_iter().filter(|samba| samba.layout == Layout::V4_25) {
        let directory = TempDir::new().unwrap();
        let conf = directory.path().join("smb.conf");
        fs::write(&conf, "[global]\npersistent handles = yes\n").unwrap();
        let error = SambaConfig::read(&samba.testparm, &conf, |_| true).unwrap_err().to_string();
        assert!(error.contains("[global] has \"persistent handles = Yes\"; set"), "{error}");
    }
}
