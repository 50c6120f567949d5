#!/usr/bin/env bash
# Runs parts of the tests, each a target of the Makefile, and ends with a table of their times. The stories of real releases
# share one composition. The first part that fails ends it; the table says which.
set -euo pipefail
cd "$(dirname "$0")/.."
kept=$(mktemp -d /var/tmp/rackstep-composed-XXXXXX)
table=()
finish() {
  rm -rf "$kept"
  printf '\n%-24s %8s\n' part time
  printf '%s\n' "${table[@]}"
}
trap finish EXIT
export RACKSTEP_STORY_KEPT=${RACKSTEP_STORY_KEPT:-$kept}
for part in "$@"; do
  began=$SECONDS
  if make "$part"; then
    table+=("$(printf '%-24s %6d s' "$part" $((SECONDS - began)))")
  else
    table+=("$(printf '%-24s %6d s  FAILED' "$part" $((SECONDS - began)))")
    exit 1
  fi
done
