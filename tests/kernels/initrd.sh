#!/bin/busybox sh
# Process 1 of the initial RAM disk: loads the modules of the disks, mounts them, and goes on as /mnt/src/tests/kernels/guest.sh.
busybox() { /bin/busybox "$@"; }
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do busybox insmod "$module"; done
tries=0
while ! [ -b /dev/vda -a -b /dev/vdb ] && [ $tries -lt 100 ]; do busybox sleep 0.1; tries=$((tries + 1)); done
if busybox mount -t ext4 /dev/vda /new && busybox mount -t ext4 /dev/vdb /new/mnt; then
	busybox mount -t devtmpfs dev /new/dev
	busybox umount /proc
	exec /bin/busybox switch_root /new /bin/sh /mnt/src/tests/kernels/guest.sh
fi
echo "sidestep: the disks cannot be mounted"
busybox poweroff -f
