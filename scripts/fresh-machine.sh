#!/usr/bin/env bash
# Runs scripts/setup.sh and the quick tests in a chroot of the minimal Debian system: an install step that is missing shows
# there, and nowhere else, once a developer's machine has everything from other packages.
#
# 1. the minimal system (mmdebstrap, minbase), kept as an archive for a week; downloaded packages are kept too;
# 2. a mount namespace with a file system of its own in it, and the sources, toolchain and compiled crates of this machine;
# 3. setup.sh, then what it claims to have installed, then `cargo test --lib` without the network.
#
# Root. About four minutes on two cores when warm; ended after BOUND seconds. Nothing of this machine is changed outside
# ~/.cache/rackstep/fresh and the target directory; every mount ends with the namespace.
set -euo pipefail
cd "$(dirname "$0")/.."

bound=${BOUND:-900}
week=$((7 * 24 * 3600))
cache="${XDG_CACHE_HOME:-$HOME/.cache}/rackstep"
fresh="$cache/fresh"

# What runs inside; its arguments are the directory of the sources and the target directory.
inside() {
  cd "$1"
  export CARGO_TARGET_DIR=$2 DEBIAN_FRONTEND=noninteractive HOME=/root PATH="$CARGO_HOME/bin:/usr/sbin:/usr/bin:/sbin:/bin"
  echo "fresh-machine: setup.sh on a machine with $(dpkg-query -f . -W | wc -c) packages"
  scripts/setup.sh >/tmp/setup.log 2>&1 || { tail -n 40 /tmp/setup.log >&2; exit 1; }
  echo "fresh-machine: setup.sh took $SECONDS s, $(dpkg-query -f . -W | wc -c) packages are there"
  # A second run has nothing left to do.
  scripts/setup.sh
  # Programs that tests and the demonstration start.
  local missing=0 program
  for program in ostree mmdebstrap skopeo umoci buildah dockerd containerd runc dnsmasq qemu-system-x86_64 qemu-img \
    libvirtd virsh vagrant sfdisk sgdisk mkfs.xfs mkfs.ext4 mkfs.fat mcopy losetup ip iptables curl ssh rsync cpio git python3; do
    command -v "$program" >/dev/null || { echo "fresh-machine: $program is missing" >&2; missing=1; }
  done
  [ "$missing" = 0 ]
  cargo test --quiet --offline --no-fail-fast --lib
}
if [ "${1:-}" = --inside ]; then
  inside "$2" "$3"
  exit
fi

[ "$(id -u)" = 0 ] || { echo "fresh-machine: it wants root" >&2; exit 2; }
command -v mmdebstrap >/dev/null || { echo "fresh-machine: mmdebstrap is missing (scripts/setup.sh)" >&2; exit 2; }

mkdir -p "$fresh/archives/partial"
archive="$fresh/minbase.tar"
if [ ! -e "$archive" ] || (($(date +%s) - $(stat -c %Y "$archive") > week)); then
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' "Codename: $codename" 'Component: main' | sort -u | head -n 1)
  [ -n "$mirror" ] || { echo "fresh-machine: no apt source for $codename found" >&2; exit 1; }
  mmdebstrap --quiet --format=tar --variant=minbase --include=ca-certificates,debian-archive-keyring "$codename" "$archive.new" "$mirror"
  mv "$archive.new" "$archive"
fi

sources=$PWD
target="${CARGO_TARGET_DIR:-$cache/target}"
export CARGO_HOME="${CARGO_HOME:-$HOME/.cargo}" RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}"
root=$(mktemp -d /var/tmp/rackstep-fresh-XXXXXX)
trap 'rm -rf --one-file-system "$root"' EXIT
tar -C "$root" -xf "$archive" --exclude='./dev/*'
# dpkg flushes every file otherwise; this system lives for minutes.
echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
# No service starts in it.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" && chmod 755 "$root/usr/sbin/policy-rc.d"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
# Whom this machine trusts, that one trusts as well: registries may be behind a certificate of the site.
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/machine-certificates.crt"
export SSL_CERT_FILE=/etc/machine-certificates.crt
mkdir -p "$root/var/cache/apt/archives" "$root$sources" "$root$target" "$root$CARGO_HOME" "$root$RUSTUP_HOME"

# shellcheck disable=SC2016 # the inner shell's own variables
timeout --kill-after=10 "$bound" unshare --mount --pid --fork --kill-child bash -euc '
  root=$1 archives=$2 sources=$3 target=$4
  mount --bind "$archives" "$root/var/cache/apt/archives"
  for place in "$sources" "$target" "$CARGO_HOME" "$RUSTUP_HOME"; do mount --bind "$place" "$root$place"; done
  mount --rbind /dev "$root/dev"
  mount --rbind /sys "$root/sys"
  mount -t proc proc "$root/proc"
  mount -t tmpfs tmpfs "$root/run"
  mount -t tmpfs tmpfs "$root/tmp"
  exec chroot "$root" "$sources/scripts/fresh-machine.sh" --inside "$sources" "$target"
' fresh "$root" "$fresh/archives" "$sources" "$target"
