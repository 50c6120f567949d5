#!/bin/sh
# The one row of each database.
set -eu
ovn-nbctl --db=unix:/run/ovn/ovnnb_db.sock --no-leader-only init
ovn-sbctl --db=unix:/run/ovn/ovnsb_db.sock --no-leader-only init
