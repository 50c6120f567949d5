#!/bin/bash
# Puts the installer of a blank machine into the initramfs of the host itself,
# so that a release brings its own installer, kernel and drivers alike.
# Asleep in normal boots: it runs only as rdinit=/usr/lib/rackstep/installer-init.

check() {
    # Only where it is asked for, and only with everything that it runs.
    require_binaries rackstep ip sfdisk wipefs mkfs.xfs mkfs.ext4 mkfs.fat || return 1
    return 255
}

depends() {
    echo base udev-rules dracut-systemd
}

installkernel() {
    # Wired network cards of servers and of virtual machines.
    instmods virtio_net e1000 e1000e igb igc ixgbe i40e ice mlx4_en mlx5_core bnx2x bnxt_en tg3 r8169 \
        be2net qede ena vmxnet3 hv_netvsc xen_netfront af_packet
    # Disks that a new machine may have; the same set boots it later.
    instmods virtio_pci virtio_blk virtio_scsi sd_mod ahci ata_piix nvme vmd megaraid_sas mpt3sas smartpqi hpsa \
        aacraid mptspi vmw_pvscsi hv_storvsc xen_blkfront usb_storage uas
    # File systems that it makes and mounts, with the tables that vfat asks for.
    instmods xfs ext4 vfat nls_cp437 nls_ascii nls_iso8859_1 nls_utf8 loop
}

install() {
    inst_multiple rackstep ip sfdisk wipefs losetup blockdev blkid lsblk findmnt mkfs.xfs mkfs.ext4 mkfs.fat \
        mount umount chroot sync reboot poweroff sleep uname tr sort cat cut grep mv ln ls mkdir rm dmesg
    inst_multiple -o partx udevadm xfs_info tune2fs ps
    inst_simple /etc/mke2fs.conf
    # Servers may be reached by https.
    inst_simple /etc/ssl/certs/ca-certificates.crt
    inst_script "$moddir/installer-init.sh" /usr/lib/rackstep/installer-init
    # libostree writes the boot loader's configuration through it, outside any chroot.
    inst_script /usr/lib/rackstep/grub-config /usr/lib/rackstep/grub-config
    # Names of users and groups, for what is laid down on the disk.
    inst_simple /etc/nsswitch.conf
}
