"""What a kind cluster is made of, from Debian alone: kind and podman, the nodes' image, the control plane's images.

    tools    kind, podman and runc of trixie, a root folder            debootstrap
    node     systemd 252 (the last that runs on cgroup v1), containerd and runc of bookworm; kubeadm, kubelet and
             kubectl; kind's own files for nodes, from Debian's source package of kind
    images   kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, etcd, pause

Each lies in the cache under a digest of what went into it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.debian import cache, mirror, roots
from tests.debian.room import Bind, Room
from tests.e2e import binaries, images
from tests.kind import archives

HERE = Path(__file__).resolve().parent
NODE_FILES = HERE / "node"

TOOLS_SUITE = "trixie"
"""The first Debian release with kind."""
TOOLS = ("kind", "podman", "netavark", "aardvark-dns", "nftables", "iproute2", "procps", "runc",
         "ca-certificates")  # fmt: skip
NODE = ("systemd", "systemd-sysv", "dbus", "containerd", "runc", "containernetworking-plugins", "iptables", "nftables",
        "conntrack", "ethtool", "iproute2", "kmod", "procps", "mount", "util-linux", "jq", "etcd-server",
        "ca-certificates")  # fmt: skip

VERSION = f"v{binaries.VERSION}"
REGISTRY = "k8s.gcr.io"
"""What kubeadm 1.20 calls its images; nothing is fetched from there."""
ETCD = "etcd:3.4.13-0"
"""The same (kubeadm config images list); what is inside is Debian's etcd."""

_BUILD = 15 * 60.0
"""Seconds that one attempt at one step may take on a busy machine; the longest takes one minute on an idle one."""


@dataclass(frozen=True)
class Parts:
    """Where everything lies."""

    tools: Path
    """A root folder; nothing may be written there."""
    node: Path
    """A tar of the nodes' root folder."""
    images: Path
    """A folder with a folder of archives for each role of a node."""
    product: list[Path]
    """Archives of the product and of the app, in one folder."""
    programs: Path
    """A folder with kubectl."""


def parts() -> Parts:
    """Everything, built where it is missing or stale. Raises BuildError."""
    programs = binaries.kubernetes()
    built = images.images().archives
    # They wait for the mirror half of the time.
    tools, debian = cache.side_by_side(
        lambda: roots.root("kind", TOOLS_SUITE, TOOLS), lambda: roots.root("kind-node", binaries.SUITE, NODE)
    )
    pause = built[images.PAUSE]
    inputs = (tools.parent.name, debian.parent.name, str(programs), pause.name)
    key = cache.digest(*inputs, NODE_FILES, HERE / "parts.py", HERE / "archives.py")
    node = cache.entry("kind", key, lambda partial: _node(partial, tools, debian, programs, pause))
    product = [path for name, path in built.items() if name != images.PAUSE]
    return Parts(tools=tools, node=node / "node.tar", images=node / "images", product=product, programs=programs)


def _node(partial: Path, tools: Path, debian: Path, programs: Path, pause: Path) -> None:
    """The nodes' root folder as a tar, and the archives."""
    root, log = partial / "root", partial / "build.log"
    cache.step("copying the nodes' Debian", ["cp", "-a", debian, root], log=log, within=_BUILD)
    source = _source(partial, tools, log)
    _images(partial / "images", root, programs, pause)
    _furnish(root, source, programs, log)
    tar = ["tar", "--numeric-owner", "-C", root, "-cf", partial / "node.tar", "."]
    cache.step("packing the nodes' root", tar, log=log, within=_BUILD)
    shutil.rmtree(root)
    shutil.rmtree(source)


def _source(work: Path, tools: Path, log: Path) -> Path:
    """Debian's source of kind: of the package only the upstream tarball is needed, for its folder images/base/files."""
    folder = work / "source"
    folder.mkdir()
    fetch = """
        sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >/etc/apt/sources.list.d/sources.list
        apt-get -qq --error-on=any update
        cd /source
        apt-get -qq source --tar-only --download-only kind
        tar -xzf kind_*.orig.tar.gz
    """
    room = Room(tools, binds=[Bind(folder, "/source")])
    cache.step("fetching Debian's source of kind (2 MB)", room.run("sh", "-euc", fetch), log=log, within=180,
               attempts=cache.ATTEMPTS)  # fmt: skip
    return folder


def _images(folder: Path, root: Path, programs: Path, pause: Path) -> None:
    """The archives that each role imports before its kubelet starts."""
    roles = {role: folder / role for role in ("control-plane", "worker")}
    for each in roles.values():
        each.mkdir(parents=True)
    architecture = mirror.architecture()

    def write(role: str, name: str, files: dict[str, Path | str]) -> Path:
        archive = roles[role] / f"{name.partition(':')[0]}.tar"
        archives.write(archive, f"{REGISTRY}/{name}", files, architecture=architecture)
        return archive

    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        write("control-plane", f"{name}:{VERSION}", {f"/usr/local/bin/{name}": programs / name})
    write("control-plane", ETCD, archives.with_libraries(root, "/usr/bin/etcd"))
    # kube-proxy runs iptables; its matches and targets are libraries, each in a file.
    extensions = [f"/{path.relative_to(root)}" for path in root.glob("usr/lib/*/xtables/*.so")]
    proxy = archives.with_libraries(root, "/usr/sbin/xtables-nft-multi", "/usr/sbin/conntrack", *extensions)
    for family in ("iptables", "ip6tables"):
        proxy |= {f"/usr/sbin/{family}{verb}": "xtables-nft-multi" for verb in ("", "-save", "-restore")}
    made = write("worker", f"kube-proxy:{VERSION}", {**proxy, "/usr/local/bin/kube-proxy": programs / "kube-proxy"})
    os.link(made, roles["control-plane"] / made.name)
    for each in roles.values():
        shutil.copy2(pause, each / "pause.tar")


def _furnish(root: Path, source: Path, programs: Path, log: Path) -> None:
    """Turn a Debian root into a node: kind's files, Kubernetes' programs, our units."""
    kind = next(source.glob("kind-*/images/base/files"))
    for path in kind.rglob("*"):
        if path.is_file() and "LICENSES" not in path.parts:
            _put(path, root / path.relative_to(kind), executable=path.parent.name == "bin")
    for name in ("kubeadm", "kubelet", "kubectl"):
        _put(programs / name, root / "usr/bin" / name, executable=True)
    (root / "kind/version").write_text(f"{VERSION}\n")
    for name, where in {
        "begin": "usr/local/bin/begin",
        "pod-network": "usr/local/bin/pod-network",
        "network.json": "kind/network.json",
        "default-storage.yaml": "kind/manifests/default-storage.yaml",
        "containerd.toml": "etc/containerd/config.toml",
        "images.service": "etc/systemd/system/images.service",
        "pod-network.service": "etc/systemd/system/pod-network.service",
        "12-cgroups.conf": "etc/systemd/system/kubelet.service.d/12-cgroups.conf",
    }.items():
        _put(NODE_FILES / name, root / where, executable="bin" in where)
    furnish = (NODE_FILES / "furnish.sh").read_text()
    cache.step("furnishing the node", ["chroot", root, "sh", "-c", furnish], log=log, within=_BUILD)


def _put(source: Path, target: Path, *, executable: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if executable else 0o644)
