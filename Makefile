# The two front doors are `make demo` and `make test`; `make check` is the inner loop.

# The long stories run by themselves: their tables are for people.
STORY := imaged_upgraded_and_rolled_back_as_one
CLUSTER := vagrant_brings_a_cluster_up_and_both_machines_are_upgraded
RACK := a_blank_machine_beside_the_provisioner_is_imaged
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rackstep
# Compiled dependencies outlive a checkout.
export CARGO_TARGET_DIR ?= $(CACHE)/target

.PHONY: help setup check test test-vagrant demo bench fuzz

help:
	@echo 'make check   formatting, lints and quick tests: seconds to a few minutes'
	@echo 'make test    everything, the machine stories last: about an hour without KVM'
	@echo 'make demo    composes two releases, images a blank machine over PXE, upgrades it, rolls it back'
	@echo 'make bench   measures against docker, registry and ostree, and prints a table; SET=small, CHAPTERS=commit,import'
	@echo 'make test-vagrant   real vagrant and libvirt: a cluster brought up and upgraded, a blank machine imaged by the provisioner'
	@echo 'make fuzz    coverage-guided, SECONDS=60 for each target; TARGETS="layer shard" for some'
	@echo 'make setup   installs what the others need (they call it)'

setup:
	@scripts/setup.sh

check: setup
	cargo fmt --check
	cargo clippy --all-targets --quiet -- -D warnings
	cargo test --quiet --lib

test: check
	cargo test --tests -- --skip $(STORY) --skip $(CLUSTER) --skip $(RACK)
	SECONDS_EACH=10 fuzz/run.sh
	cargo test --test machine_story -- --nocapture
	cargo test --test vagrant_cluster $(CLUSTER) -- --nocapture

test-vagrant: setup
	cargo test --test vagrant_cluster -- --nocapture
	cargo test --test vagrant_rack -- --nocapture

demo: setup
	cargo test --test machine_story -- --nocapture

bench: setup
	cargo bench --bench bench

fuzz: setup
	SECONDS_EACH=$(or $(SECONDS),60) nice fuzz/run.sh $(TARGETS)
