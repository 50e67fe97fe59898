//! What becomes of a durable open when its node gets SIGKILL.

use std::{sync::Arc, time::Duration};

use harness::{
    proxy::{Kill, Mode, Proxy},
    samba::{SambaSite, SambaTools, Smbd, SmbdOptions, samba_or_skip},
    smb_client::{Client, CreateRequest, NtStatus},
    smbtorture::{self, Verdict},
};
use tokio::sync::Mutex;

/// The tests of `smbtorture` that lose a connection and reclaim on the next, and pass on one Samba.
const RECLAIM_TESTS: [&str; 5] = [
    "smb2.durable-open.reopen2",
    "smb2.durable-open.lock-lease",
    "smb2.durable-v2-open.reopen2",
    "smb2.durable-v2-open.reopen2-lease",
    "smb2.durable-v2-open.durable-v2-setinfo",
];

/// Longer than the slowest of them takes on a loaded machine.
const SMBTORTURE_TIMEOUT: Duration = Duration::from_secs(120);

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

/// Control: without Holdfast a durable open dies with its node, whatever it holds.
#[tokio::test]
async fn without_holdfast_a_killed_node_takes_its_durable_opens_along() {
    let Some(tools) = samba_or_skip() else { return };
    let (site, mut nodes) = plain_nodes(tools, 2).await;
    let client = Client::new(site.credentials());
    let session = client.connect(nodes[0].address()).await.unwrap();
    let share = session.tree_connect(&nodes[0].share()).await.unwrap();
    let opens = [
        share.create(CreateRequest::durable_v2_with_lease("lease")).await.unwrap(),
        share.create(CreateRequest::durable_v2_with_batch("batch")).await.unwrap(),
    ];

    nodes[0].kill().unwrap();

    let session = client.reconnect(nodes[1].address(), session.id()).await.unwrap();
    let share = session.tree_connect(&nodes[1].share()).await.unwrap();
    for open in opens {
        assert!(open.is_durable());
        let refusal = share.create(open.reconnect_request()).await.unwrap_err();
        assert_eq!(refusal.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND));
    }
}

/// Control: without Holdfast the tests pass on one node, and fail when the node is killed between two
/// connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_holdfast_smbtorture_passes_on_one_node_and_fails_over_a_kill() {
    let Some(tools) = samba_or_skip() else { return };
    for test in RECLAIM_TESTS {
        for (mode, expected, backend_of_second) in
            [(Mode::Pin, Verdict::Success, 0), (Mode::Kill, Verdict::Failure, 1)]
        {
            let (site, nodes) = plain_nodes(tools.clone(), 2).await;
            let addresses = nodes.iter().map(Smbd::address).collect();
            let nodes = Arc::new(Mutex::new(nodes));
            let kill: Kill = Box::new(move |backend| {
                let nodes = Arc::clone(&nodes);
                Box::pin(async move { nodes.lock().await[backend].kill().unwrap() })
            });
            let proxy = Proxy::start(mode, addresses, kill).await.unwrap();
            let report = smbtorture::run(&site, proxy.address(), test, SMBTORTURE_TIMEOUT).await.unwrap();
            let context = format!("{test} with {mode:?}\n{:?}\n{}", proxy.log(), report.output);
            assert_eq!(report.verdict, expected, "{context}");
            assert_eq!(proxy.backend_of(2), Some(backend_of_second), "{context}");
        }
    }
}
