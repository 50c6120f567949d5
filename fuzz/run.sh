#!/usr/bin/env bash
# Fuzzes the named targets, or all, SECONDS_EACH seconds each. What a run finds interesting stays in the cache for the next; an input
# that breaks a promise is left there too, and named.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${SECONDS_EACH:-60}
corpus=${XDG_CACHE_HOME:-$HOME/.cache}/rackstep/fuzz
target_dir=${CARGO_TARGET_DIR:-$PWD/target}
if [ $# -eq 0 ]; then set -- layer skeleton shard patch documents arguments rack; fi

# The product's own versions, so that its compiled dependencies fit.
cp ../Cargo.lock Cargo.lock
CARGO_INCREMENTAL=0 RUSTC_WRAPPER=$PWD/rustc.sh cargo build --quiet --target-dir "$target_dir"

# In memory where the machine has such.
if [ -d /dev/shm ]; then memory=/dev/shm; else memory=${TMPDIR:-/tmp}; fi
TMPDIR=$(mktemp -d -p "$memory" rackstep-fuzz.XXXXXX)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
trap 'exit 130' INT TERM

failed=0
for target in "$@"; do
  dir=$corpus/$target
  mkdir -p "$dir"
  log=$corpus/$target.log
  if RACKSTEP_FUZZ=$target RACKSTEP_SEEDS=$dir "$target_dir/debug/rackstep-fuzz" "$dir" \
    -max_total_time="$seconds" -max_len=16384 -timeout=20 -rss_limit_mb=512 \
    -artifact_prefix="$corpus/$target-" -print_final_stats=1 >"$log" 2>&1; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    coverage=$(sed -n 's/^#[0-9]*\tDONE *\(cov: [0-9]* ft: [0-9]*\).*/\1/p' "$log")
    printf '%-10s %9s runs in %s s   %s\n' "$target" "$runs" "$seconds" "$coverage"
  else
    failed=1
    printf '%-10s FAILED: %s\n' "$target" "$(grep -m1 -A1 'panicked at\|ERROR: libFuzzer' "$log" | tr '\n' ' ')"
    sed -n "s/.*Test unit written to /           again with: RACKSTEP_FUZZ=$target rackstep-fuzz /p" "$log"
  fi
done
exit "$failed"
