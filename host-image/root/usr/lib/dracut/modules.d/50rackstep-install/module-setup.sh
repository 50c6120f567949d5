#!/bin/bash
# Puts the installer of a blank machine into the initramfs of the host itself,
# so that a release brings its own installer, kernel and drivers alike.
# Asleep in normal boots: it runs only as rdinit=/usr/lib/rackstep/installer-init.

check() {
    # Only where it is asked for, and only with everything that it runs.
    require_binaries rackstep ostree ip losetup sfdisk wipefs mkfs.xfs mkfs.ext4 mkfs.fat modprobe || return 1
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
    # What `rackstep install` calls. A name that is missing here shows only on
    # the machine that cannot be imaged, so none of these is optional.
    inst_multiple rackstep ostree lsblk wipefs sfdisk losetup blockdev blkid findmnt modprobe \
        mkfs.xfs mkfs.ext4 mkfs.fat mount umount chroot
    # What the first process and grub-config call.
    inst_multiple ip udevadm dmesg sync reboot poweroff sleep cat cut grep head ls ln mkdir mv rm sed sort tr uname
    # For a person at the shell.
    inst_multiple -o ps ping ss less xfs_repair e2fsck
    # grub-config has it read what it wrote, where the release has it.
    inst_multiple -o grub-script-check
    inst_simple /etc/mke2fs.conf
    inst_simple /etc/nsswitch.conf
    # Servers may be reached by https.
    inst_simple /etc/ssl/certs/ca-certificates.crt
    inst_script "$moddir/installer-init.sh" /usr/lib/rackstep/installer-init
    # libostree writes the boot loader's configuration through it, outside any chroot.
    inst_script /usr/lib/rackstep/grub-config /usr/lib/rackstep/grub-config
}
