#!/bin/sh
# Leaves out kernel modules that no server has: sound, radio, sensors, TV, laptop
# graphics. They were 60 % of the files of the whole tree.
# compose unpacks what is left, and runs depmod.
set -eu

for tree in /usr/lib/modules/*; do
    (
        cd "$tree/kernel"
        rm -rf sound \
            drivers/accel drivers/atm drivers/bluetooth drivers/comedi drivers/iio drivers/isdn drivers/media \
            drivers/mmc drivers/mtd drivers/nfc drivers/parport drivers/pcmcia drivers/staging drivers/usb/gadget \
            drivers/input/gameport drivers/input/joystick drivers/input/tablet drivers/input/touchscreen \
            drivers/net/arcnet drivers/net/can drivers/net/hamradio drivers/net/ieee802154 drivers/net/wireless \
            drivers/net/wwan \
            net/6lowpan net/ax25 net/batman-adv net/bluetooth net/can net/ieee802154 net/mac80211 net/mac802154 \
            net/netrom net/nfc net/rose net/wireless \
            fs/adfs fs/affs fs/afs fs/bcachefs fs/befs fs/bfs fs/coda fs/efs fs/f2fs fs/gfs2 fs/hfs fs/hfsplus \
            fs/hpfs fs/jffs2 fs/jfs fs/minix fs/nilfs2 fs/ocfs2 fs/omfs fs/orangefs fs/qnx4 fs/qnx6 fs/reiserfs \
            fs/romfs fs/sysv fs/ubifs fs/ufs fs/zonefs
        # Graphics: what boards' management controllers and hypervisors show.
        for driver in drivers/gpu/drm/*/; do
            case $(basename "$driver") in
            ast | display | mgag200 | scheduler | solomon | tiny | ttm | virtio | qxl | clients) ;;
            *) rm -rf "$driver" ;;
            esac
        done
        # What needs a module that is gone would only fail to load. modules.dep, as the
        # package left it, names all that a module needs, indirectly too.
        cd "$tree"
        while IFS=': ' read -r module needs; do
            for need in $needs; do
                [ -e "$need" ] || rm -f "$module"
            done
        done <modules.dep
        find kernel -depth -type d -empty -delete
    )
done
