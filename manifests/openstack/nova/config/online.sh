#!/bin/sh
# Moves data in the background format of this release until nothing is left: the exit code 1 means that there is more.
set -u
while :; do
    nova-manage db online_data_migrations --max-count 1000
    code=$?
    [ $code -eq 1 ] || exit $code
done
