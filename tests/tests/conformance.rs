//! The short form of the conformance run: what `cargo run --bin conformance -- --short` shows, as a test.

use harness::{
    cluster::Clustering,
    conformance::{self, Ending, Options, Promise, RECLAIM_TESTS, Recipe, SUITES, Servers},
    proxy::Mode,
    samba::samba_or_skip,
    smbtorture,
};

/// The program that can be `holdfast`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_demo");

/// Each of the tests loses a connection and reclaims its open on the next. They pass on one `smbd`, they fail without
/// Holdfast when the node is killed in between, and with Holdfast they pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reclaim_test_of_smbtorture_passes_over_a_kill_and_fails_without_holdfast() {
    let Some(tools) = samba_or_skip() else { return };
    let installed = smbtorture::list(&tools, SUITES).unwrap();
    for test in RECLAIM_TESTS {
        assert!(installed.iter().any(|name| name == test), "this smbtorture has no {test}");
    }

    let options = Options {
        recipe: Recipe {
            program: PROGRAM.into(),
            tools,
            clustering: Clustering::Separate,
            kills: 1,
            log_level: 0,
        },
        tests: RECLAIM_TESTS.map(str::to_owned).to_vec(),
        modes: vec![Mode::Kill],
        jobs: 2,
        logs: None,
    };
    let matrix = conformance::run(&options, |_, _| {}).await;
    eprintln!("{}", conformance::table(&matrix));

    let broken: Vec<&Promise> = matrix.promises.iter().filter(|promise| !promise.held()).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    for (servers, mode, ending) in [
        (Servers::Alone, Mode::Pin, Ending::Pass),
        (Servers::Unprotected, Mode::Kill, Ending::Fail),
        (Servers::Protected, Mode::Kill, Ending::Pass),
    ] {
        let column = conformance::Column { servers, mode };
        let as_expected = matrix.cells.iter().filter(|cell| cell.column == column && cell.ending == ending);
        assert_eq!(as_expected.count(), RECLAIM_TESTS.len(), "{column}");
    }
}
