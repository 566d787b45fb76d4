#!/bin/busybox sh
# shellcheck shell=sh
# First program of the guest: finds the disk, and makes its root of the test hosts' tree, which stays as it is.
# Modules that the kernel has built in are not in /modules.
export PATH=/bin
busybox mount -t devtmpfs dev /dev
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk overlay; do
    [ ! -e /modules/$module.ko ] || busybox insmod /modules/$module.ko
done
busybox mount -t ext4 -o noinit_itable /dev/vda /disk
tree=$(busybox readlink /disk/tree)
busybox mount -t overlay -o "lowerdir=/disk/$tree,upperdir=/disk/over/upper,workdir=/disk/over/work" root /new
busybox mkdir /new/disk
busybox mount --move /disk /new/disk
exec busybox switch_root /new /disk/guest
