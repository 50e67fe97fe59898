//! `smbd` with the shim preloaded and nobody for it to talk to.

use std::fs;

use harness::{
    samba::{SambaSite, SmbdOptions, samba_or_skip},
    smb_client::{Client, CreateRequest, LockElement},
};

/// An operator who installs the library and starts no sidecar must notice nothing.
#[tokio::test]
async fn without_a_run_directory_smbd_works_as_if_the_shim_were_not_there() {
    let Some(tools) = samba_or_skip() else { return };
    let site = SambaSite::new(tools).unwrap();
    let shim = holdfast_tdb::built_library_path().unwrap();
    let env = vec![("LD_PRELOAD".to_owned(), shim.display().to_string())];
    let mut smbd = site.smbd("node", SmbdOptions { env, ..SmbdOptions::default() }).unwrap();
    smbd.start().await.unwrap();
    let maps = fs::read_to_string(format!("/proc/{}/maps", smbd.pid().unwrap())).unwrap();
    assert!(maps.contains("libholdfast_tdb.so"), "the shim is not loaded");

    let client = Client::new(site.credentials());
    let session = client.connect(smbd.address()).await.unwrap();
    let share = session.tree_connect(&smbd.share()).await.unwrap();
    let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    assert!(open.is_durable());
    open.lock(&[LockElement::exclusive(0, 1)]).await.unwrap();
    session.drop_connection().await;

    let session = client.reconnect(smbd.address(), session.id()).await.unwrap();
    let share = session.tree_connect(&smbd.share()).await.unwrap();
    let open = share.create(open.reconnect_request()).await.unwrap();
    open.lock(&[LockElement::unlock(0, 1)]).await.unwrap();
    open.close().await.unwrap();
}
