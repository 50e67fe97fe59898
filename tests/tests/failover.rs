//! What becomes of a durable open when its node gets SIGKILL.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use harness::{
    cluster::{Cluster, ClusterOptions},
    proxy::{Hurt, Mode, Proxy},
    samba::{SambaSite, SambaTools, Smbd, SmbdOptions, samba_or_skip},
    smb_client::{Client, Credentials, NtStatus},
    smbtorture::{self, Verdict},
    workload::Holder,
};

/// The program that can be `holdfast`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

/// The tests of `smbtorture` in which durable opens of several clients meet, and pass on one Samba.
const SHARING_TESTS: [&str; 12] = [
    "smb2.durable-open.open-oplock",
    "smb2.durable-open.open-lease",
    "smb2.durable-open.oplock",
    "smb2.durable-open.lease",
    "smb2.durable-open.open2-lease",
    "smb2.durable-open.open2-oplock",
    "smb2.durable-v2-open.open-oplock",
    "smb2.durable-v2-open.open-lease",
    "smb2.lease.upgrade2",
    "smb2.lease.break",
    "smb2.lease.oplock",
    "smb2.oplock.batch1",
];

/// Longer than the slowest of them takes on a loaded machine.
const SMBTORTURE_TIMEOUT: Duration = Duration::from_secs(120);

/// Far longer than it takes to open the files.
const FILL_TIMEOUT: Duration = Duration::from_secs(60);

/// Nodes of plain Samba on the same files, all running.
async fn plain_nodes(tools: SambaTools, count: usize) -> (SambaSite, Vec<Smbd>) {
    let site = SambaSite::new(tools).unwrap();
    let mut nodes = Vec::new();
    for number in 0..count {
        let mut node = site.smbd(&format!("node{number}"), SmbdOptions::default()).unwrap();
        node.start().await.unwrap();
        nodes.push(node);
    }
    (site, nodes)
}

/// Client machines that open files until the node dies.
const CLIENTS: usize = 5;

/// The node dies when so many opens, and up to half as many more, have been granted.
const OPENS_MIN: usize = 200;

/// Lets several clients open files on a node, kills it in the midst of that, and returns what they hold.
async fn fill_and_kill(
    credentials: Credentials,
    server: SocketAddr,
    share: &str,
    kill: impl AsyncFnOnce(),
) -> Vec<Holder> {
    let granted = Arc::new(AtomicUsize::new(0));
    let fillers: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (client, share) = (Client::new(credentials.clone()), share.to_owned());
            let (name, granted) = (format!("client{number}"), Arc::clone(&granted));
            tokio::spawn(async move { Holder::fill(client, server, &share, &name, &granted).await })
        })
        .collect();
    let enough = rand::random_range(OPENS_MIN..OPENS_MIN * 3 / 2);
    let filled = async {
        while granted.load(Ordering::Relaxed) < enough {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(FILL_TIMEOUT, filled).await.expect("opens are granted far too slowly");
    kill().await;
    let mut holders = Vec::new();
    for filler in fillers {
        holders.push(filler.await.unwrap().unwrap());
    }
    holders
}

/// Control: without Holdfast every durable open dies with its node, whatever it holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_holdfast_a_killed_node_takes_every_durable_open_along() {
    let Some(tools) = samba_or_skip() else { return };
    let (site, mut nodes) = plain_nodes(tools, 2).await;
    let [dying, survivor] = &mut nodes[..] else { unreachable!("two were asked for") };
    let (address, share) = (dying.address(), dying.share());
    let holders = fill_and_kill(site.credentials(), address, &share, async || dying.kill().unwrap()).await;

    let mut promised = 0;
    for holder in &holders {
        promised += holder.promises.len();
        let claims = holder.claim_all(survivor.address(), &survivor.share()).await.unwrap();
        assert_eq!(claims.broken.len(), holder.promises.len(), "{:?}", claims.claimed);
        for broken in claims.broken {
            assert_eq!(broken.what, "reclaim: CREATE was refused with OBJECT_NAME_NOT_FOUND");
        }
    }
    eprintln!("{promised} durable opens were granted and lost");
    assert!(promised >= OPENS_MIN);
}

/// Promise 1 and promise 2, against real `smbd`s: five clients open files with all kinds of durability, lock
/// and write, until their node dies with its sidecar. All that was acknowledged comes back on one survivor,
/// once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_open_survives_the_kill_of_its_node() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
    let (owner, survivor, bystander) = (0, 1, 2);
    let credentials = cluster.credentials();
    let (address, share) = (cluster.smb_address(owner), cluster.share(owner));
    let kill = async || cluster.kill(owner).unwrap();
    let holders = fill_and_kill(credentials.clone(), address, &share, kill).await;
    let promised: usize = holders.iter().map(|holder| holder.promises.len()).sum();

    let (address, share) = (cluster.smb_address(survivor), cluster.share(survivor));
    let claims = holders.iter().map(|holder| holder.claim_all(address, &share));
    let claims = futures::future::try_join_all(claims).await.unwrap();
    let broken: Vec<_> = claims.iter().flat_map(|claims| &claims.broken).collect();
    assert!(broken.is_empty(), "{} of {promised} promises were broken: {broken:#?}", broken.len());

    for holder in &holders {
        assert_eq!(holder.claim_again(address, &share).await.unwrap(), Vec::<u64>::new(), "granted twice");
    }
    let elsewhere = Client::new(credentials).connect(cluster.smb_address(bystander)).await.unwrap();
    let refusal = elsewhere.tree_connect(&cluster.share(bystander)).await.unwrap_err();
    assert_eq!(refusal.status(), Some(NtStatus::FILE_LOCK_CONFLICT), "{refusal}");
    let status = cluster.status(survivor).await.unwrap();
    assert_eq!(status.opens - status.disconnected_opens, promised as u64, "{status:?}");
    assert_eq!((status.contradictions, status.conflicts_refused), (0, 0), "{status:?}");
    eprintln!("{promised} durable opens were granted and reclaimed");
}

/// What the shim sees of a real `smbd`'s opens, their breaks, upgrades and closes makes sense by the rules of the
/// replicated state: no two opens are ever recorded that exclude each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_smbd_grants_never_contradicts_itself() {
    let Some(tools) = samba_or_skip() else { return };
    let cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
    let no_harm: Hurt = Box::new(|_, _| Box::pin(async { Ok(()) }));
    let proxy = Proxy::start(Mode::Pin, vec![cluster.smb_address(0)], no_harm).await.unwrap();
    for test in SHARING_TESTS {
        let report =
            smbtorture::run(&cluster.site(), proxy.address(), test, SMBTORTURE_TIMEOUT).await.unwrap();
        assert_eq!(report.verdict, Verdict::Success, "{test}\n{}", report.output);
        let status = cluster.status(0).await.unwrap();
        assert_eq!((status.contradictions, status.conflicts_refused), (0, 0), "{test}: {status:?}");
    }
}
