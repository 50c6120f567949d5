#!/bin/sh
# Tells the switch who this host is and where OVN's southbound database is; makes the two bridges.
# The datapath is in user space where the kernel has no openvswitch module, so laptops and CI run the same set.
set -eu
database=unix:/run/openvswitch/db.sock
vsctl() { ovs-vsctl --db="$database" --no-wait "$@"; }
if [ -d /sys/module/openvswitch ]; then datapath=system; else datapath=netdev; fi
vsctl init
vsctl set open . external-ids:system-id='${host:name}' external-ids:hostname='${host:name}' \
    external-ids:ovn-remote=unix:/run/ovn/ovnsb_db.sock external-ids:ovn-encap-type=geneve \
    external-ids:ovn-encap-ip='${host:address}' external-ids:ovn-bridge-datapath-type=$datapath \
    external-ids:ovn-cms-options=enable-chassis-as-gw external-ids:ovn-bridge-mappings=physnet1:br-ex
vsctl --may-exist add-br br-ex -- set bridge br-ex datapath_type=$datapath
vsctl --may-exist add-br br-int -- set bridge br-int datapath_type=$datapath fail_mode=secure other-config:disable-in-band=true
