#!/bin/sh
# Makes token and credential keys in keystone's format where there are none.
# The same as keystone-manage's fernet_setup and credential_setup (a staged key
# 0 and a primary key 1), without two more starts of keystone, which are what
# a first boot waits for on a slow processor. Existing keys are never touched.
set -eu
umask 077
cd /var/lib/keystone/keys
for set in fernet credential; do
    [ ! -d "$set" ] || continue
    rm -rf "$set.new"
    mkdir "$set.new"
    for number in 0 1; do
        # 32 random bytes in URL-safe base64 are a fernet key.
        head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n' > "$set.new/$number"
    done
    sync -f .
    mv -T "$set.new" "$set"
done
sync -f .
