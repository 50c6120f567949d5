#!/bin/sh
# Removes what differs between two compositions of the same packages, and what
# must differ between two hosts. Runs in the tree, after packages and files.
set -eu

# Identity belongs to a host. "uninitialized" makes systemd write a new machine
# id at the first boot; an empty file would only be covered by a mount.
echo uninitialized >/etc/machine-id
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
rm -f /etc/hostname /var/lib/dbus/machine-id
# The composing machine's, unless it is the link to systemd-resolved.
ln -sfn ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
: >/etc/fstab

# Backups and locks of the tools that edited the account files.
rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid- /etc/.pwd.lock
# The day of the last password change is the day of the compose.
sed -i -E 's/^([^:]*:[^:]*):[0-9]+:/\1:20000:/' /etc/shadow

# Byte code carries the time of the compose; nothing here runs Python often.
find /usr -depth -type d -name __pycache__ -exec rm -rf {} +

# Caches and logs.
rm -rf /var/cache/ldconfig /var/cache/debconf /var/cache/apt /var/lib/apt /var/log /var/lib/dracut /var/lib/systemd/catalog
rm -f /etc/ssl/certs/java/cacerts
rm -rf /tmp/* /tmp/.[!.]* /var/tmp/* /run/*

# What the package manager knew stays readable (dpkg-query -l), without its work files.
if [ -d /var/lib/dpkg ] && [ ! -L /var/lib/dpkg ]; then
    mkdir -p /usr/lib/sysimage
    rm -rf /usr/lib/sysimage/dpkg
    cp -a /var/lib/dpkg /usr/lib/sysimage/dpkg
    rm -rf /usr/lib/sysimage/dpkg/updates /usr/lib/sysimage/dpkg/parts /usr/lib/sysimage/dpkg/triggers
    find /usr/lib/sysimage/dpkg \( -name '*-old' -o -name 'lock*' -o -name '*.postinst' -o -name '*.preinst' \
        -o -name '*.postrm' -o -name '*.prerm' -o -name '*.config' -o -name '*.templates' -o -name '*.md5sums' \) -delete
fi
