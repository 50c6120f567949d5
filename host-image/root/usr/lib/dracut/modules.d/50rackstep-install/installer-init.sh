#!/bin/sh
# First process of a machine that is being installed.
#
# 1. kernel file systems, udev, drivers
# 2. the network, with the addresses that the server wrote on the kernel command line
# 3. `rackstep install`
# 4. reboot; or, when it failed, say so and switch off after a while
#
# The server has answered this machine's DHCP request already and knows its
# address: asking again here would only cost time and a DHCP client.
#
# Kernel arguments:
#   rackstep.server=URL        where the release comes from
#   rackstep.mac=MAC           the interface to use (aa:bb:... or aa-bb-...)
#   rackstep.ip=ADDR/PREFIX    its address
#   rackstep.gateway=ADDR      optional
#   rackstep.dns=ADDR          optional
#   rackstep.debug             a shell instead of switching off

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ TERM=${TERM:-linux}
# libostree's grub2 backend calls this instead of grub-mkconfig.
export OSTREE_GRUB2_EXEC=/usr/lib/rackstep/grub-config

LINK_WAIT_S=30        # a switch port with spanning tree takes up to 30 s
DEVICE_WAIT_S=60      # storage controllers with many disks are slow to scan
FAILURE_WAIT_S=120    # long enough to read the console, short enough not to be found days later

[ -d /proc/self ] || mount -t proc -o nosuid,nodev,noexec proc /proc
[ -d /sys/kernel ] || mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
[ -c /dev/null ] && [ -d /dev/pts ] || mount -t devtmpfs -o mode=0755,nosuid devtmpfs /dev 2>/dev/null
exec </dev/console >/dev/console 2>&1
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=0620,gid=5,nosuid,noexec devpts /dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run
mkdir -p /run/udev /run/lock /tmp
if [ -d /sys/firmware/efi ]; then
    mount -t efivarfs -o nosuid,nodev,noexec efivarfs /sys/firmware/efi/efivars 2>/dev/null
fi
# Kernel messages would cut through the installer's progress lines.
dmesg -n 4

uptime_s() { cut -d' ' -f1 /proc/uptime; }
say() { echo "rackstep-installer [$(uptime_s)s]: $*"; }

# argument NAME: the value of NAME=... on the kernel command line.
argument() {
    for word in $(cat /proc/cmdline); do
        case $word in
        "$1"=*)
            echo "${word#*=}"
            return
            ;;
        esac
    done
}

debugging() { grep -qwF rackstep.debug /proc/cmdline; }

shell() {
    say "a shell follows; it ends with exit, and the machine switches off"
    setsid -c sh -i 2>/dev/null || sh -i
}

# The machine must not install in a loop, nor sit at a prompt that no one sees.
fail() {
    say "FAILED: $*"
    if debugging; then
        shell
    else
        say "this machine switches off in $FAILURE_WAIT_S s (rackstep.debug on the kernel command line gives a shell)"
        sleep "$FAILURE_WAIT_S"
    fi
    sync
    poweroff -f
    sleep 10
    # Never return: the end of the first process is a kernel panic.
    while :; do sleep 3600; done
}

# interface_of MAC: the name of the interface with this hardware address.
interface_of() {
    for path in /sys/class/net/*; do
        # Bonds and VLANs repeat their card's address; only cards have a device.
        [ -e "$path/device" ] || continue
        if [ "$(cat "$path/address" 2>/dev/null)" = "$1" ]; then
            echo "${path##*/}"
            return
        fi
    done
}

# until_true SECONDS COMMAND...: polls ten times a second.
until_true() {
    tries=$(($1 * 10))
    shift
    while ! "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.1
    done
}

has_interface() { [ -n "$(interface_of "$mac")" ]; }
has_link() { [ "$(cat "/sys/class/net/$interface/carrier" 2>/dev/null)" = 1 ]; }

start_devices() {
    # Partitions are made through loop devices; nothing that udev sees would ask for the module.
    modprobe -q loop
    /usr/lib/systemd/systemd-udevd --daemon --resolve-names=never || fail "udev does not start"
    # Buses with disks, network cards and keyboards; what a driver finds there is
    # announced by the kernel. All devices would be some hundred more, for nothing.
    udevadm trigger --action=add --subsystem-match=pci --subsystem-match=usb --subsystem-match=virtio \
        --subsystem-match=vmbus --subsystem-match=xen --subsystem-match=scsi --subsystem-match=block \
        --subsystem-match=net
    udevadm settle --timeout="$DEVICE_WAIT_S" || say "devices are still appearing after $DEVICE_WAIT_S s; going on"
}

start_network() {
    [ -n "$mac" ] || fail "no rackstep.mac on the kernel command line"
    [ -n "$address" ] || fail "no rackstep.ip on the kernel command line"
    until_true 15 has_interface || fail "no network card with address $mac; there are: $(cat /sys/class/net/*/address | tr '\n' ' ')"
    interface=$(interface_of "$mac")
    ip link set lo up
    ip link set "$interface" up || fail "cannot bring up $interface"
    until_true "$LINK_WAIT_S" has_link || fail "no link on $interface ($mac) after $LINK_WAIT_S s"
    case $address in
    *:*) ip addr add "$address" dev "$interface" nodad ;;
    *) ip addr add "$address" broadcast + dev "$interface" ;;
    esac || fail "cannot set $address on $interface"
    if [ -n "$gateway" ]; then
        ip route add default via "$gateway" dev "$interface" || fail "cannot set the gateway $gateway on $interface"
    fi
    [ -z "$dns" ] || echo "nameserver $dns" >/etc/resolv.conf
    say "network: $interface $mac $address${gateway:+ via $gateway}"
}

server=$(argument rackstep.server)
mac=$(argument rackstep.mac | tr 'A-F-' 'a-f:')
address=$(argument rackstep.ip)
gateway=$(argument rackstep.gateway)
dns=$(argument rackstep.dns)

say "starting; server ${server:-not given}"
[ -n "$server" ] || fail "no rackstep.server on the kernel command line"
start_devices
start_network

rackstep install --server "$server"
status=$?
[ "$status" -eq 0 ] || fail "rackstep install ended with exit code $status"
say "done; starting the installed system"
sync
reboot -f
fail "the machine does not reboot"
