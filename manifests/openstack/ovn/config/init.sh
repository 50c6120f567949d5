#!/bin/sh
# The one row of each database, and sockets that neutron (a user of its own) may open.
set -eu
ovn-nbctl --db=unix:/run/ovn/ovnnb_db.sock --no-leader-only init
ovn-sbctl --db=unix:/run/ovn/ovnsb_db.sock --no-leader-only init
chmod 666 /run/ovn/ovnnb_db.sock /run/ovn/ovnsb_db.sock
