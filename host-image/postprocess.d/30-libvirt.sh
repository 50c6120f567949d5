#!/bin/sh
# Servers' definitions outlive a rollback: libvirt has no setting for where they are, so its directory is a link into /var.
# The package's default network goes with it: OVN plugs the servers.
set -eu
rm -rf /etc/libvirt/qemu
ln -s /var/lib/libvirt/definitions /etc/libvirt/qemu
