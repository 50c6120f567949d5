#!/bin/sh
# Makes a machine a rack server: one of our own boxes (host-image/provisioner.yaml), or Debian. Run by Vagrant as root, safe
# to repeat. RACK is the rack file (JSON, which is YAML as well), REF the release that it serves, SERVER our address.
set -eu

repo=/srv/rackstep/repo
[ -d "$repo/objects" ] || { echo "provisioner: no release repo came; provisioner.repo in cluster.yaml names it" >&2; exit 1; }

rackstep=/usr/bin/rackstep
if [ ! -x "$rackstep" ]; then
    rackstep=/usr/local/bin/rackstep
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -qy --no-install-recommends dnsmasq-base ipxe ostree libostree-1-1 iproute2
    # The program of the release itself: it knows the release's formats.
    ostree --repo="$repo" cat "$REF" /usr/bin/rackstep >$rackstep.new
    chmod 0755 $rackstep.new
    mv $rackstep.new $rackstep
fi

# The rack file names the interface, and which of them has the rack's address is libvirt's choice.
interface=$(ip -o -4 address show to "$SERVER/32" | awk '{print $2; exit}')
[ -n "$interface" ] || { echo "provisioner: no interface has $SERVER" >&2; exit 1; }
mkdir -p /etc/rackstep
printf '%s\n' "$RACK" | sed "s/\"rack0\"/\"$interface\"/" >/etc/rackstep/rack.yaml
$rackstep serve --rack /etc/rackstep/rack.yaml --check

cat >/etc/systemd/system/rackstep-serve.service <<UNIT
[Unit]
Description=Rack server
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=$rackstep serve --rack /etc/rackstep/rack.yaml
Restart=on-failure
RestartSec=2

[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --quiet rackstep-serve.service
systemctl restart rackstep-serve.service
