# Run by sh in the root folder of a node to be: what kind's own Dockerfile (images/base) does to Debian, and our units.
set -eu
find /lib/systemd/system/sysinit.target.wants -name systemd-tmpfiles-setup.service -delete
rm -f /lib/systemd/system/multi-user.target.wants/* /lib/systemd/system/local-fs.target.wants/*
rm -f /lib/systemd/system/basic.target.wants/* /etc/systemd/system/*.wants/*
rm -f /lib/systemd/system/sockets.target.wants/*udev* /lib/systemd/system/sockets.target.wants/*initctl*
echo ReadKMsg=no >>/etc/systemd/journald.conf
mkdir -p /opt/cni /etc/kubernetes/manifests
ln -s /usr/lib/cni /opt/cni/bin
ln -s /usr/bin/containerd /usr/bin/ctr /usr/local/bin
[ -e /sbin/init ] || ln -s /lib/systemd/systemd /sbin/init
systemctl enable kubelet containerd undo-mount-hacks images pod-network
systemctl mask systemd-binfmt
rm -rf /var/cache/apt /var/lib/apt/lists /usr/share/doc /usr/share/man /usr/share/locale
