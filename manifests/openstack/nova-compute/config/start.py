"""Starts nova-compute: with hardware virtualisation where the kernel makes a machine of it, else in software."""

import fcntl
import os

# linux/kvm.h: _IO(KVMIO, 0x01).
KVM_CREATE_VM = 0xAE01


def has_kvm():
    try:
        with open("/dev/kvm", "rb+", buffering=0) as device:
            os.close(fcntl.ioctl(device, KVM_CREATE_VM, 0))
    except OSError:
        return False
    return True


# oslo.config takes the environment before files.
if has_kvm():
    os.environ.setdefault("OS_LIBVIRT__VIRT_TYPE", "kvm")
    os.environ.setdefault("OS_LIBVIRT__CPU_MODE", "host-model")
os.execv("/usr/local/bin/nova-compute", ["nova-compute"])
