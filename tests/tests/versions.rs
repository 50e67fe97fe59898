//! The versions of Samba that are in roots (`tests/roots/make`). A version that is missing is left out with a line
//! that says so, unless `HOLDFAST_REQUIRE_SAMBA_ROOTS=1` is set.

use std::{fs, time::Duration};

use harness::{
    cluster::{Cluster, ClusterOptions},
    samba::{ROOT_VERSIONS, SambaSite, SambaTools, Smbd, SmbdOptions, samba_in_root_or_skip},
    smb_client::{Client, CreateRequest, LockElement},
    smbtorture::{self, Verdict},
};

/// The program that can be `holdfast`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

/// Far longer than one durable test takes on a busy machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(120);

fn versions() -> impl Iterator<Item = (&'static str, SambaTools)> {
    ROOT_VERSIONS.into_iter().filter_map(|version| Some((version, samba_in_root_or_skip(version)?)))
}

/// An `smbd` with the shim preloaded, and nobody for that to talk to.
async fn unprotected(tools: SambaTools) -> (SambaSite, Smbd) {
    let site = SambaSite::new(tools).unwrap();
    let shim = holdfast_tdb::built_library_path().unwrap();
    let env = vec![("LD_PRELOAD".to_owned(), shim.display().to_string())];
    let mut smbd = site.smbd("node", SmbdOptions { env, ..SmbdOptions::default() }).unwrap();
    smbd.start().await.unwrap();
    (site, smbd)
}

#[tokio::test]
async fn an_smbd_of_each_version_loads_the_shim_and_gives_back_a_durable_open() {
    for (version, tools) in versions() {
        let reported = tools.version().expect("smbd says its version");
        assert!(reported.starts_with(&format!("{version}.")), "{reported}");
        let (site, smbd) = unprotected(tools).await;
        let maps = fs::read_to_string(format!("/proc/{}/maps", smbd.pid().unwrap())).unwrap();
        assert!(maps.contains("libholdfast_tdb.so"), "the shim is not loaded");

        let client = Client::new(site.credentials());
        let session = client.connect(smbd.address()).await.unwrap();
        let share = session.tree_connect(&smbd.share()).await.unwrap();
        let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
        assert!(open.is_durable());
        open.write(0, version.as_bytes()).await.unwrap();
        session.drop_connection().await;

        let session = client.reconnect(smbd.address(), session.id()).await.unwrap();
        let share = session.tree_connect(&smbd.share()).await.unwrap();
        share.create(open.reconnect_request()).await.unwrap().close().await.unwrap();
        assert_eq!(fs::read(site.share_dir().join("file")).unwrap(), version.as_bytes());
    }
}

#[tokio::test]
async fn the_smbtorture_of_each_version_runs_against_its_smbd() {
    for (version, tools) in versions() {
        let (site, smbd) = unprotected(tools).await;
        let report = smbtorture::run(&site, smbd.address(), "smb2.durable-open.reopen2", TEST_TIMEOUT);
        let report = report.await.unwrap();
        assert_eq!(report.verdict, Verdict::Success, "Samba {version}: {}", report.output);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_of_each_version_survives_the_death_of_its_node() {
    for (version, tools) in versions() {
        let mut cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
        let client = Client::new(cluster.credentials());
        let session = client.connect(cluster.smb_address(0)).await.unwrap();
        let share = session.tree_connect(&cluster.share(0)).await.unwrap();
        let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
        assert!(open.is_durable(), "Samba {version}");
        open.lock(&[LockElement::exclusive(0, 1)]).await.unwrap();

        cluster.kill(0).unwrap();

        let session = client.reconnect(cluster.smb_address(1), session.id()).await.unwrap();
        let share = session.tree_connect(&cluster.share(1)).await.unwrap();
        let reclaimed = share.create(open.reconnect_request()).await.unwrap();
        assert_eq!(reclaimed.file_id().persistent, open.file_id().persistent, "Samba {version}");
        assert_eq!(reclaimed.response().lease, open.response().lease, "Samba {version}");
        // The lock is there, or it could not be given back.
        reclaimed.lock(&[LockElement::unlock(0, 1)]).await.unwrap();
    }
}
