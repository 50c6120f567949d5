#!/bin/sh
# Where servers' disks are.
set -eu
mkdir -p /var/lib/nova/instances /var/lib/nova/tmp
