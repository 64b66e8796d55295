# What CI runs is `make check` and `make test`. Everything else is here so that nobody has to remember it.

# Whole-server tests mostly wait for real time: more of them than cores run side by side.
export RUST_TEST_THREADS ?= 4

.PHONY: help setup build demo check test soak bench fuzz

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: ## what the build and the tests need from the system (Debian, Ubuntu)
	@scripts/setup.sh

build: ## the server, optimised: target/release/bywash
	cargo build --release --package bywash

demo: build ## a live stream relayed and recorded on this machine, nothing else needed
	target/release/bywash demo

check: ## formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

test: setup ## everything that proves it, in minutes
	cargo test --workspace

soak: setup ## the tests of crashes, many times over
	BYWASH_SOAK=1 cargo test --package bywash --test server -- crash

bench: setup ## what a stream costs here and in nginx-rtmp; BENCH="--seconds 30 --write-docs"
	cargo build --release --package bywash --package bywash-bench
	target/release/bywash-bench $(BENCH)

fuzz: ## each fuzz target for FUZZ_SECONDS; needs nightly Rust and cargo-fuzz
	@for target in $$(cargo +nightly fuzz list); do \
		cargo +nightly fuzz run $$target -- -max_total_time=$${FUZZ_SECONDS:-60} || exit 1; \
	done
