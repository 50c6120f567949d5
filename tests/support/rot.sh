#!/bin/sh
# Runs on a machine: takes its network away, lets a byte rot in the repo and one in Docker's store, has both found and
# mended, and gives the network back. What was seen goes to /run/rot, one file a step; `done` comes last.
set -eu
seen=/run/rot
mkdir -p "$seen"
rackstep=${1:-rackstep}
link=$(ip -o -4 route show default | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1)
ip link set "$link" down
trap 'ip link set "$link" up; touch "$seen/done"' EXIT

# The largest file below a directory.
largest() { find "$@" -type f -printf '%s %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-; }

flip() {
  middle=$(($(stat -c %s "$1") / 2))
  byte=$(od -An -tu1 -j "$middle" -N 1 "$1" | tr -d ' ')
  printf "\\$(printf %03o $((byte ^ 16)))" | dd of="$1" bs=1 seek="$middle" conv=notrunc status=none
  sync "$1"
}

step() {
  code=0
  "$rackstep" verify --json "$@" >"$seen/answer" 2>"$seen/words" || code=$?
  printf '{"code": %s, "answer": %s}\n' "$code" "$(cat "$seen/answer")"
}

ip -o -4 route show default >"$seen/routes"
file=$(largest /ostree/deploy/rackstep/deploy/*/usr/lib/rackstep/images/layers/*/root)
echo "$file" >"$seen/file"
sha256sum "$file" >"$seen/sum"
flip "$file"
step >"$seen/repo-found"
step --repair >"$seen/repo-mended"
sha256sum --check --status "$seen/sum" && echo same >"$seen/repo-same"

stored=$(largest /var/lib/docker/overlay2/*/diff)
echo "$stored" >"$seen/stored"
flip "$stored"
step >"$seen/docker-found"
step --repair --stop-services >"$seen/docker-mended"
