# The two front doors are `make demo` and `make test`; `make check` is the inner loop.

# The long stories run by themselves: their tables are for people.
STORY := imaged_upgraded_and_rolled_back_as_one
HOST := a_host_on_this_machines_kernel_is_upgraded_and_rolled_back_and_loses_its_power
WAVES := a_cluster_is_upgraded_and_rolled_back_in_waves
CLUSTER := vagrant_brings_a_cluster_up_and_both_machines_are_upgraded
OPENSTACK := from_a_release_to_a_server_that_answers
RACK := a_blank_machine_beside_the_provisioner_is_imaged
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rackstep
# Licences and sources of dependencies; setup.sh fetches it. Advisories need a network, and are left out.
DENY := $(CACHE)/tools/cargo-deny
# Compiled dependencies outlive a checkout.
export CARGO_TARGET_DIR ?= $(CACHE)/target

# Where `make install` puts the program, its completions and its manual pages.
PREFIX ?= /usr/local

.PHONY: help setup check lint test test-suite test-fuzz test-host test-pxe test-machine test-uefi test-cluster test-rack test-fresh demo openstack bench bench-rack fuzz install

help:
	@echo 'make check   formatting, lints and quick tests: seconds to a few minutes'
	@echo 'make test    everything but the next two and Vagrant, with the time of each part: the better part of an hour without KVM'
	@echo 'make test-suite, test-fuzz, test-host, test-pxe   its parts: everything small; parsers; real releases as'
	@echo '             containers (upgrade, rollback, power cut, waves; minutes); a blank machine in QEMU over PXE'
	@echo 'make test-machine   the same machine upgraded and rolled back, all of it in QEMU'
	@echo 'make test-uefi   a blank machine with UEFI, from PXE to ssh; half an hour without KVM'
	@echo 'make demo    composes two releases, images a blank machine over PXE, upgrades it, rolls it back'
	@echo 'make openstack   composes the whole OpenStack set, boots it as a container, and starts a server through its public APIs'
	@echo 'make install builds the program and puts it under $(PREFIX), with completions, manual pages and a unit for serve'
	@echo 'make bench   measures against docker, registry and ostree, and prints a table; SET=small, CHAPTERS=commit,mounts'
	@echo 'make bench-rack  the rack server under load, beside nginx; minutes'
	@echo 'make test-cluster   real vagrant and libvirt: two machines from a box, upgraded by rackstep cluster; 20 minutes more'
	@echo 'make test-rack      the same: a blank machine imaged by the provisioner beside it; 20 minutes more'
	@echo 'make test-fresh   setup and quick tests in a chroot of the minimal system: a missing install step shows'
	@echo 'make fuzz    coverage-guided, SECONDS=60 for each target; TARGETS="layer shard" for some'
	@echo 'make setup   installs what the others need (they call it)'

setup:
	@scripts/setup.sh

# What needs no test to run. The shell scripts of host images are part of it.
lint: setup
	cargo fmt --check
	shellcheck --severity=warning --exclude=SC3013,SC2115,SC2154 $(shell git ls-files '*.sh' ':!manifests/*/config/*') .ci/run
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --quiet --no-deps --document-private-items
	@if [ -x $(DENY) ]; then $(DENY) --log-level warn check licenses bans sources; else echo 'NOT RUN: cargo-deny is not here'; fi
	@scripts/check-support.sh

check: lint
	cargo clippy --all-targets --quiet -- -D warnings
	cargo test --quiet --no-fail-fast --lib --test layering

# Ends with a table of the parts' times; the last two share their releases.
test: setup
	scripts/parts.sh check test-suite test-fuzz test-host test-pxe

# Everything that needs no real release.
test-suite: setup
	cargo test --no-fail-fast --tests -- --skip $(STORY) --skip $(HOST) --skip $(WAVES) --skip $(OPENSTACK) --skip $(CLUSTER) --skip $(RACK)

test-fuzz: setup
	SECONDS_EACH=10 fuzz/run.sh

test-host: setup
	cargo test --test cluster_container --test cluster_real -- --nocapture

# A blank machine in QEMU: PXE, installer, boot loader on BIOS, to its services.
test-pxe: setup
	RACKSTEP_UNTIL=services cargo test --test machine_story -- --nocapture

# The same machine upgraded and rolled back, all in QEMU. Half an hour and more where processors are emulated: not part of `make test`.
test-machine: setup
	cargo test --test machine_story -- --nocapture

# The same on UEFI, from PXE to ssh. Half an hour where processors are emulated: not part of `make test`.
test-uefi: setup
	RACKSTEP_FIRMWARE=uefi RACKSTEP_UNTIL=ssh cargo test --test machine_story -- --nocapture

test-cluster: setup
	cargo test --test vagrant_cluster $(CLUSTER) -- --nocapture

test-rack: setup
	cargo test --test vagrant_rack -- --nocapture

# setup.sh and the quick tests where nothing else is installed: see the script.
test-fresh: setup
	scripts/fresh-machine.sh

# The story for people: examples/demo. PLATFORM=qemu|container, KEEP=1, FRESH=1.
demo: setup
	cargo build --bin rackstep --example demo
	$(CARGO_TARGET_DIR)/debug/examples/demo

# RACKSTEP_OPENSTACK_REPO=DIR takes a release that is composed already.
openstack: setup
	cargo test --test openstack_story -- --nocapture

bench: setup
	cargo bench --bench bench

bench-rack: setup
	cargo build --release
	benches/rack.sh

fuzz: setup
	SECONDS_EACH=$(or $(SECONDS),60) nice fuzz/run.sh $(TARGETS)

install:
	cargo build --release
	install -D -m 755 $(CARGO_TARGET_DIR)/release/rackstep $(DESTDIR)$(PREFIX)/bin/rackstep
	$(CARGO_TARGET_DIR)/release/rackstep man $(DESTDIR)$(PREFIX)/share/man/man1
	install -D -m 644 pxe/rackstep-serve@.service $(DESTDIR)$(PREFIX)/lib/systemd/system/rackstep-serve@.service
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	$(CARGO_TARGET_DIR)/release/rackstep completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/rackstep
