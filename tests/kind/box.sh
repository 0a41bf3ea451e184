#!/bin/bash
# Run once in the box: the machine's cgroup hierarchies take the place of those that the room shows, each seen from the
# box's own folder, so that podman and the nodes can reach no other. The network begins to forward.
set -euo pipefail
hierarchies=$(awk '$2 ~ "^/sys/fs/cgroup" && $3 ~ "^cgroup" {print $2, $3, $4}' /proc/mounts | sort -u)
umount -R /sys/fs/cgroup
if [ "$(cut -d' ' -f1 <<<"$hierarchies")" != /sys/fs/cgroup ]; then
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
fi
ours='rw|relatime|nosuid|nodev|noexec|nsdelegate|favordynmods|memory_.*|.*,?release_agent=.*'
while read -r where kind options; do
    mkdir -p "$where"
    controllers=$(tr , '\n' <<<"$options" | { grep -vxE "$ours" || true; } | paste -sd,)
    mount -t "$kind" -o "${controllers:-rw}" "$kind" "$where"
done <<<"$hierarchies"
ip link set lo up
sysctl -qw net.ipv4.ip_forward=1
