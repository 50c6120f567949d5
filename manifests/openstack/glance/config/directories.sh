#!/bin/sh
# The store's directories; glance makes none of them.
set -eu
mkdir -p /var/lib/glance/images /var/lib/glance/staging /var/lib/glance/tasks
chown glance:glance /var/lib/glance /var/lib/glance/*
