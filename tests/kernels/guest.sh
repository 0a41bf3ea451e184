#!/bin/sh
# Process 1 of a guest, in the Debian root: mounts what a system has (cgroup v2 only), runs the steps, powers off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
for folder in /dev/shm /run /tmp; do mount -t tmpfs -o mode=1777 none $folder; done
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf none /sys/fs/bpf
mkdir /run/netns
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
# The root's own folder of modules has the links to the kernel headers.
modules=modules/$(uname -r)
mkdir -p /src "/usr/lib/$modules"
mount --bind /mnt/src /src
mount --bind "/mnt/$modules" "/usr/lib/$modules"
ip link set lo up
hostname guest
for name in veth dummy bridge nf_tables nft_chain_nat tcp_diag udp_diag overlay; do modprobe -q $name; done
# For a Kubernetes node, whose parts are found by a name in which the mirror takes part.
mkdir /mnt/tmp
[ ! -f /mnt/cache/mirror ] || export SIDESTEP_DEBIAN_MIRROR="$(cat /mnt/cache/mirror)"
cd /src && .venv/bin/python -m tests.kernels.guest /dev/ttyS1 "$SIDESTEP_STEPS"
sync
echo o >/proc/sysrq-trigger
exec sleep 60
