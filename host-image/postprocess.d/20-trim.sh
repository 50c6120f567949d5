#!/bin/sh
# Leaves out what a host never reads: documentation (not the licences),
# and translations; moves the kernel to where ostree looks for it.
set -eu

find /usr/share/doc -type f ! -name copyright -delete
find /usr/share/doc -type l -delete
find /usr/share/doc -depth -type d -empty -delete
rm -rf /usr/share/man /usr/share/info /usr/share/lintian /usr/share/bug /usr/share/menu
find /usr/share/locale -mindepth 1 -maxdepth 1 ! -name locale.alias -exec rm -rf {} + 2>/dev/null || true
rm -rf /usr/share/bash-completion /usr/share/zsh /usr/share/fish /usr/share/grub/themes
# GRUB's modules for machines that we do not install, and debug data.
find /usr/lib/grub -name '*.module' -delete
rm -f /usr/lib/grub/*/gdb_* /usr/lib/grub/*/kernel.exec

# Compiled into hwdb.bin; and programs of containerd that Docker does not run.
[ ! -e /usr/lib/udev/hwdb.bin ] || rm -rf /usr/lib/udev/hwdb.d
rm -f /usr/bin/ctr /usr/bin/containerd-stress /usr/bin/containerd-shim /usr/bin/containerd-shim-runc-v1

# An ostree tree keeps its kernel here; the installer copies it to /boot.
for kernel in /boot/vmlinuz-*; do
    [ -e "$kernel" ] || continue
    version=${kernel#/boot/vmlinuz-}
    # Newer kernel packages keep these with the modules, and only links in /boot.
    for file in vmlinuz config; do
        wanted=/usr/lib/modules/$version/$file
        [ "/boot/$file-$version" -ef "$wanted" ] || mv "/boot/$file-$version" "$wanted"
    done
done
rm -rf /boot/* /vmlinuz /vmlinuz.old /initrd.img /initrd.img.old
