# What a developer runs. `make check` is the gate and writes nothing outside target/.

.PHONY: check fix test fuzz docs demo

check: test
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

test:
	cargo test --workspace

# How long each fuzz target runs.
FUZZ_SECONDS ?= 60

fuzz:
	cargo fmt --manifest-path fuzz/Cargo.toml -- --check
	fuzz/run $(FUZZ_SECONDS)

fix:
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty

docs:
	cargo doc --workspace --no-deps --open

demo:
	cargo run --release --bin demo
