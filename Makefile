# The two front doors are `make demo` and `make test`; `make check` is the inner loop.

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rackstep
# Compiled dependencies outlive a checkout.
export CARGO_TARGET_DIR ?= $(CACHE)/target

.PHONY: help setup check test demo bench

help:
	@echo 'make check   formatting, lints and quick tests: seconds to a few minutes'
	@echo 'make test    everything but the machine story'
	@echo 'make demo    composes two releases, images a blank machine over PXE, upgrades it, rolls it back'
	@echo 'make bench   measures against docker, registry and ostree, and prints a table; SET=small, CHAPTERS=commit,import'
	@echo 'make setup   installs what the others need (they call it)'

setup:
	@scripts/setup.sh

check: setup
	cargo fmt --check
	cargo clippy --all-targets --quiet -- -D warnings
	cargo test --quiet --lib

test: check
	cargo test --tests

demo: setup
	cargo test --test machine_story -- --ignored --nocapture

bench: setup
	cargo bench --bench bench
