//! What becomes of a durable open when its node gets SIGKILL.

use std::{
    fs::Permissions,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
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
    smb_client::{Client, CreateRequest, Credentials, NtStatus, Session, Tree},
    smbtorture::{self, Verdict},
    workload::{Holder, reclaim},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
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

/// How long a process is kept from noticing that its client is gone: far less than its lease.
const STOPPED_FOR: Duration = Duration::from_millis(500);

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

/// A path below the share's root as clients write it.
fn for_clients(path: &str) -> String {
    path.replace('/', "\\")
}

/// Who dies in the middle of a rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dying {
    Node,
    Process,
}

/// Opens files, gives them other names behind the back of `smbd`, as it does it before it tells anybody, and kills. The
/// client has its opens back under the names that the files have, and nobody else's file.
async fn rename_and_kill(dying: Dying) {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
    let directory = cluster.site().share_dir();
    std::fs::create_dir(directory.join("folder")).unwrap();
    let owner = Client::new(cluster.credentials());
    let session = owner.connect(cluster.smb_address(0)).await.unwrap();
    let share = session.tree_connect(&cluster.share(0)).await.unwrap();
    let renames = [("leased", "leased, renamed"), ("batch", "batch, renamed"), ("moved", "folder/moved")];
    let mut opens = Vec::new();
    for (before, after) in renames {
        let request = match before {
            "batch" => CreateRequest::durable_v2_with_batch(before),
            _ => CreateRequest::durable_v2_with_lease(before),
        };
        let open = share.create(request).await.unwrap();
        open.write(0, before.as_bytes()).await.unwrap();
        opens.push((open, before, after));
    }
    for (before, after) in renames {
        std::fs::rename(directory.join(before), directory.join(after)).unwrap();
    }
    std::fs::write(directory.join("batch"), "another file").unwrap();

    let back = match dying {
        Dying::Node => {
            cluster.kill(0).unwrap();
            1
        }
        Dying::Process => {
            cluster.smbd(0).kill_child(session.client_address()).await.unwrap();
            0
        }
    };
    let session = owner.reconnect(cluster.smb_address(back), session.id()).await.unwrap();
    let share = session.tree_connect(&cluster.share(back)).await.unwrap();
    let mut reclaimed = Vec::new();
    for (open, before, after) in &opens {
        // A client that has had no answer to its rename does not know which name it is. smbd compares it for a lease, and
        // keeps the open.
        let by_name = |path| CreateRequest { path, ..open.reconnect_request() };
        let by_old_name = share.create(by_name(for_clients(before))).await;
        let open = match by_old_name {
            Ok(open) => open,
            Err(refusal) => {
                assert_eq!(refusal.status(), Some(NtStatus::INVALID_PARAMETER), "{before}: {refusal}");
                share.create(by_name(for_clients(after))).await.unwrap()
            }
        };
        assert_eq!(open.read(0, 100).await.unwrap(), before.as_bytes());
        reclaimed.push(open);
    }
    let known = cluster.opens(back).await.unwrap();
    let mut paths: Vec<_> = known.iter().map(|open| open.description.path.to_string()).collect();
    paths.sort();
    assert_eq!(paths, ["batch, renamed", "folder/moved", "leased, renamed"]);
    // The next rename is one like any other.
    reclaimed[0].rename("leased", false).await.unwrap();
    assert!(directory.join("leased").exists());
    assert_eq!(std::fs::read(directory.join("batch")).unwrap(), b"another file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_survives_the_death_of_its_node_in_the_middle_of_a_rename() {
    rename_and_kill(Dying::Node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_survives_the_death_of_its_process_alone_in_the_middle_of_a_rename() {
    rename_and_kill(Dying::Process).await;
}

async fn enter(cluster: &Cluster, client: &Client, node: usize) -> (Session, Tree) {
    let session = client.connect(cluster.smb_address(node)).await.unwrap();
    let share = session.tree_connect(&cluster.share(node)).await.unwrap();
    (session, share)
}

/// `smbd` says that there is no such open while the process that had it has not put it aside. The client is held until it
/// has; here that is when the process goes on that was stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_back_before_its_old_process_has_let_go_has_its_opens() {
    let Some(tools) = samba_or_skip() else { return };
    let cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
    let owner = Client::new(cluster.credentials());
    let (session, share) = enter(&cluster, &owner, 0).await;
    let leased = share.create(CreateRequest::durable_v2_with_lease("leased")).await.unwrap();
    let batch = share.create(CreateRequest::durable_v2_with_batch("batch")).await.unwrap();
    let old_process = Pid::from_raw(cluster.smbd(0).child_of(session.client_address()).unwrap());
    kill(old_process, Signal::SIGSTOP).unwrap();
    session.drop_connection().await;

    let (_session, share) = enter(&cluster, &owner, 0).await;
    let claim = async || {
        let leased = share.create(leased.reconnect_request()).await.unwrap();
        (leased, share.create(batch.reconnect_request()).await.unwrap())
    };
    let go_on = async {
        tokio::time::sleep(STOPPED_FOR).await;
        // On a busy machine its lease may be over, and it is dead. Then its opens are given back all the same.
        let _ = kill(old_process, Signal::SIGCONT);
    };
    let ((leased, batch), ()) = tokio::join!(claim(), go_on);
    for open in [leased, batch] {
        open.write(0, b"still mine").await.unwrap();
    }
}

/// A client that comes back at once, again and again, is never too early.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reconnects_at_once_to_the_same_node_has_its_opens() {
    const TIMES: usize = 10;
    let Some(tools) = samba_or_skip() else { return };
    let cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
    let owner = Client::new(cluster.credentials());
    let (mut session, share) = enter(&cluster, &owner, 0).await;
    let mut opens = Vec::new();
    for number in 0..10 {
        opens
            .push(share.create(CreateRequest::durable_v2_with_lease(format!("file{number}"))).await.unwrap());
    }
    for _ in 0..TIMES {
        session.drop_connection().await;
        let share;
        (session, share) = enter(&cluster, &owner, 0).await;
        // The first that it wants is the last that was put aside.
        for open in &mut opens {
            *open = share.create(open.reconnect_request()).await.unwrap();
        }
        opens.reverse();
    }
}

/// The records of an open are set aside while nobody leads the cluster. That takes as long as an election, and is as good as
/// at any other time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_survives_the_loss_of_its_connection_while_a_new_leader_is_elected() {
    let Some(tools) = samba_or_skip() else { return };
    let mut cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let node = (leader + 1) % cluster.len();
    let owner = Client::new(cluster.credentials());
    let (session, share) = enter(&cluster, &owner, node).await;
    let mut opens = Vec::new();
    for number in 0..4 {
        let request = match number % 2 {
            0 => CreateRequest::durable_v2_with_lease(format!("file{number}")),
            _ => CreateRequest::durable_v2_with_batch(format!("file{number}")),
        };
        opens.push(share.create(request).await.unwrap());
    }
    let going = share.create(CreateRequest::durable_v2_with_batch("going")).await.unwrap();
    going.set_delete_pending(true).await.unwrap();

    cluster.kill(leader).unwrap();
    session.drop_connection().await;

    let session = owner.reconnect(cluster.smb_address(node), session.id()).await.unwrap();
    let share = session.tree_connect(&cluster.share(node)).await.unwrap();
    for open in &opens {
        let open = share.create(open.reconnect_request()).await.unwrap();
        open.write(0, b"still mine").await.unwrap();
    }
    let refusal = share.create(going.reconnect_request()).await.unwrap_err();
    assert_eq!(refusal.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND), "{refusal}");
    assert!(!cluster.site().share_dir().join("going").exists());
}

/// A client that has not lost its connection is not robbed of its open by itself, neither then nor when it loses the
/// connection later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_claim_beside_a_living_connection_is_refused_and_harms_nothing() {
    let Some(tools) = samba_or_skip() else { return };
    let cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
    let owner = Client::new(cluster.credentials());
    let (mut session, mut share) = enter(&cluster, &owner, 0).await;
    let mut open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    for _ in 0..3 {
        let (second_session, second_share) = enter(&cluster, &owner, 0).await;
        let refusal = second_share.create(open.reconnect_request()).await.unwrap_err();
        assert_eq!(refusal.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND), "{refusal}");
        open.write(0, b"still mine").await.unwrap();
        second_session.drop_connection().await;
        session.drop_connection().await;

        (session, share) = enter(&cluster, &owner, 0).await;
        open = share.create(open.reconnect_request()).await.unwrap();
    }
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

/// A file that was not made by Samba has no creation time of Samba's until a client first writes it, and from then on it has
/// one. `smbd` compares that with what it knew when it granted the open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_of_a_file_that_samba_has_not_made_survives_too() {
    for tools in SambaTools::all_there() {
        let version = tools.version();
        let mut cluster = Cluster::start(ClusterOptions::with_samba(PROGRAM, tools).patient()).await.unwrap();
        let owner = Client::new(cluster.credentials());
        let (_session, share) = enter(&cluster, &owner, 0).await;
        let mut opens = Vec::new();
        for (path, is_written) in [("written", true), ("read", false)] {
            let file = cluster.site().share_dir().join(path);
            std::fs::write(&file, b"from elsewhere").unwrap();
            std::fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
            let open = share.create(CreateRequest::durable_v2_with_batch(path)).await.unwrap();
            if is_written {
                open.write(0, b"FROM").await.unwrap();
            } else {
                open.read(0, 4).await.unwrap();
            }
            opens.push(open);
        }

        for node in [0, 1] {
            cluster.kill(node).unwrap();
            let (_session, share) = enter(&cluster, &owner, node + 1).await;
            for open in &mut opens {
                *open =
                    reclaim(&share, open).await.unwrap_or_else(|broken| panic!("{version:?}: {broken:?}"));
            }
            if node == 0 {
                cluster.start_node(0).await.unwrap();
            }
        }
    }
}
