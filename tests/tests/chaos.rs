//! The short forms of the chaos run. `cargo run --release --bin chaos` is the long one.

use harness::{
    chaos::{self, Options},
    cluster::ClusterOptions,
    samba::{SambaTools, samba_or_skip},
};

/// The program that can be `holdfast`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_chaos");

/// Any one will do; with this one a failure can be repeated.
const SEED: u64 = 4;

/// Three times a node or two die under clients at work: everything that they were promised is there afterwards, once.
async fn assert_no_promise_is_broken(
    options: impl FnOnce(SambaTools) -> ClusterOptions,
    shares: usize,
    clients: usize,
    opens: usize,
) {
    let Some(tools) = samba_or_skip() else { return };
    let evidence = format!("holdfast-chaos-test-{}-{shares}", std::process::id());
    let report = chaos::run(Options {
        seed: SEED,
        rounds: 3,
        only: Vec::new(),
        clients,
        opens,
        shares,
        cluster: options(tools).patient(),
        evidence: std::env::temp_dir().join(evidence),
        verbose: false,
    })
    .await
    .unwrap();
    eprintln!("{report}");
    assert!(report.all_kept(), "{report}");
    assert!(report.acknowledged() >= opens as u64 && report.reclaimed() > 0, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes about two minutes; the long form is `cargo run --release --bin chaos`"]
async fn no_promise_is_broken_over_three_deaths() {
    assert_no_promise_is_broken(|tools| ClusterOptions::with_samba(PROGRAM, tools), 2, 12, 150).await;
}

/// Where CTDB recovers, and may bring older records back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes about two minutes, most of which are CTDB's recoveries"]
async fn no_promise_is_broken_over_three_deaths_in_a_ctdb_cluster() {
    assert_no_promise_is_broken(|tools| ClusterOptions::with_ctdb(PROGRAM, tools), 1, 6, 60).await;
}
