//! How long it takes to apply a durable open, and that it does not matter how many there are.
//!
//! `cargo bench -p holdfast-statedb`. What is measured is [`State::apply`](statedb::State::apply) alone: commands are made
//! before, and as many opens are closed afterwards, at random.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use population::{Kind, Population};

mod population;

/// How many opens there are already.
const OPENS: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// How many commands are applied between two looks at the clock. A node forgets what has changed as often.
const BATCH: u64 = 256;

/// About as long as an image of an open of Samba's is.
const IMAGE_LEN: usize = 1200;

fn apply(criterion: &mut Criterion) {
    for (name, kind) in [("create", Kind::Create), ("grant", Kind::Grant)] {
        let mut group = criterion.benchmark_group(format!("apply/{name}"));
        for opens in OPENS {
            let mut population = Population::new(kind, opens, IMAGE_LEN);
            group.bench_function(BenchmarkId::from_parameter(opens), |bencher| {
                bencher.iter_custom(|iterations| apply_opens(&mut population, iterations));
            });
        }
    }
}

/// Applies so many opens and returns how long that took.
fn apply_opens(population: &mut Population, iterations: u64) -> Duration {
    let mut taken = Duration::ZERO;
    let mut left = iterations;
    while left > 0 {
        let batch = left.min(BATCH);
        let commands: Vec<_> = (0..batch).map(|_| population.request_open()).collect();
        taken += timed(|| commands.iter().for_each(|command| population.apply(command)));
        population.forget_changes();
        for _ in 0..batch {
            let close = population.request_close();
            population.apply(&close);
        }
        population.forget_changes();
        left -= batch;
    }
    taken
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn timed(run: impl FnOnce()) -> Duration {
    let began = Instant::now();
    run();
    began.elapsed()
}

criterion_group!(benches, apply);
criterion_main!(benches);
