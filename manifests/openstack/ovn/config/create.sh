#!/bin/sh
# Makes the two databases where there are none, and brings those of an older release to this release's schema.
set -eu
for name in nb sb; do
    schema=/usr/share/ovn/ovn-$name.ovsschema
    file=/var/lib/ovn/$name.db
    if [ ! -f "$file" ]; then
        ovsdb-tool create "$file.new" "$schema"
        mv "$file.new" "$file"
    elif [ "$(ovsdb-tool needs-conversion "$file" "$schema")" = yes ]; then
        ovsdb-tool convert "$file" "$schema"
    fi
done
