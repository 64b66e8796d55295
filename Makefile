# What CI runs is `make test`. Everything else is here so that nobody has to remember it.

# Whole-server tests mostly wait for real time: more of them than cores run side by side.
export RUST_TEST_THREADS ?= 4

.PHONY: help setup build demo check test soak bench fuzz

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: ## what the build and the tests need from the system (Debian, Ubuntu)
	@scripts/setup.sh

build: ## the server, optimised: target/release/bywash
	@scripts/setup.sh build
	cargo build --release --package bywash

demo: ## a live stream relayed on this machine, nothing else needed; DEMO="--for 5m"
	@scripts/setup.sh build
	cargo build --package bywash
	target/debug/bywash demo $(or $(DEMO),--for 20s)

check: ## formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

test: setup ## everything that proves it, in minutes
	cargo test --package bywash --no-default-features --test server -- a_build_without
	cargo test --workspace --no-fail-fast

soak: setup ## what takes hours: crashes many times over, an hour without growth, a million files
	BYWASH_SOAK=1 cargo test --package bywash --test server -- crash growth record
	BYWASH_SOAK=1 cargo test --package bywash --test alone
	BYWASH_SOAK=1 cargo test --package bywash --lib -- a_search_in_a_million_files finishing_two_hours --nocapture

bench: setup ## what a stream costs here and in nginx-rtmp; BENCH="--seconds 30 --write-docs"
	cargo build --release --package bywash --package bywash-bench
	target/release/bywash-bench $(BENCH)

fuzz: setup ## each fuzz target for FUZZ_SECONDS (300); FUZZ="rtmp_server query" for some of them
	cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	@for target in $(or $(FUZZ),$$(sed -n 's/^name = "\([a-z]*_[a-z_]*\)"/\1/p' fuzz/Cargo.toml)); do \
		RUSTC_BOOTSTRAP=1 cargo fuzz run $$target -- -max_total_time=$(or $(FUZZ_SECONDS),300) || exit 1; \
	done
