# The two front doors are `make demo` and `make test`; `make check` is the inner loop.

# The long stories run by themselves: their tables are for people.
STORY := imaged_upgraded_and_rolled_back_as_one
CLUSTER := vagrant_brings_a_cluster_up_and_both_machines_are_upgraded
RACK := a_blank_machine_beside_the_provisioner_is_imaged
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rackstep
# Compiled dependencies outlive a checkout.
export CARGO_TARGET_DIR ?= $(CACHE)/target

.PHONY: help setup check test test-cluster test-rack test-fresh demo bench fuzz

help:
	@echo 'make check   formatting, lints and quick tests: seconds to a few minutes'
	@echo 'make test    everything but the next two, the machine story last: the better part of an hour without KVM'
	@echo 'make demo    composes two releases, images a blank machine over PXE, upgrades it, rolls it back'
	@echo 'make bench   measures against docker, registry and ostree, and prints a table; SET=small, CHAPTERS=commit,import'
	@echo 'make test-cluster   real vagrant and libvirt: two machines from a box, upgraded by rackstep cluster; 20 minutes more'
	@echo 'make test-rack      the same: a blank machine imaged by the provisioner beside it; 20 minutes more'
	@echo 'make test-fresh   setup and quick tests in a chroot of the minimal system: a missing install step shows'
	@echo 'make fuzz    coverage-guided, SECONDS=60 for each target; TARGETS="layer shard" for some'
	@echo 'make setup   installs what the others need (they call it)'

setup:
	@scripts/setup.sh

check: setup
	cargo fmt --check
	cargo clippy --all-targets --quiet -- -D warnings
	cargo test --quiet --no-fail-fast --lib

test: check
	cargo test --no-fail-fast --tests -- --skip $(STORY) --skip $(CLUSTER) --skip $(RACK)
	SECONDS_EACH=10 fuzz/run.sh
	cargo test --test machine_story -- --nocapture

test-cluster: setup
	cargo test --test vagrant_cluster $(CLUSTER) -- --nocapture

test-rack: setup
	cargo test --test vagrant_rack -- --nocapture

# setup.sh and the quick tests where nothing else is installed: see the script.
test-fresh: setup
	scripts/fresh-machine.sh

demo: setup
	cargo test --test machine_story -- --nocapture

bench: setup
	cargo bench --bench bench

fuzz: setup
	SECONDS_EACH=$(or $(SECONDS),60) nice fuzz/run.sh $(TARGETS)
