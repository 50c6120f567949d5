#!/usr/bin/env bash
# Warns of pinned binaries whose branch gets no fixes any more. A warning, not a failure: a date must not break a build.
#
# check-support.sh [DATE]   DATE as 2026-11-28; left out: today
set -euo pipefail
cd "$(dirname "$0")/.."

today=${1:-$(date -u +%F)}
pinned=$(sed -n 's/^require k8s\.io\/kubernetes v\(1\.[0-9]*\)\..*/\1/p' scripts/go/kubelet/go.mod)
end=$(awk -v branch="$pinned" '$1 == "kubernetes" && $2 == branch { print $3 }' scripts/support.txt)
if [ -z "$end" ]; then
  echo "warning: scripts/support.txt does not know until when Kubernetes $pinned gets fixes" >&2
elif [[ "$today" > "$end" ]]; then
  echo "warning: kubelet is pinned to Kubernetes $pinned, which got its last fixes on $end" >&2
fi
