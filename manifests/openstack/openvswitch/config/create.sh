#!/bin/sh
# Makes Open vSwitch's database where there is none, and converts an older one.
set -eu
schema=/usr/share/openvswitch/vswitch.ovsschema
file=/etc/openvswitch/conf.db
if [ ! -f "$file" ]; then
    ovsdb-tool create "$file.new" "$schema"
    mv "$file.new" "$file"
elif [ "$(ovsdb-tool needs-conversion "$file" "$schema")" = yes ]; then
    ovsdb-tool convert "$file" "$schema"
fi
