"""Which Kubernetes the tests run on, and what differs between its versions.

Without settings it is 1.20.2, which Debian's sources build. `SIDESTEP_E2E_PROGRAMS=DIR` names a folder with the release
binaries of another one: kube-apiserver, kube-controller-manager, kube-scheduler, kubelet and kubectl. Whatever else a
node runs (etcd, containerd with its shim and ctr, runc, the CNI plugins `bridge` and `host-local`) is taken from DIR
where DIR has it, and else from the Debian release that goes with the version.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import kubernetes_validate

from tests.debian import roots
from tests.debian.cache import BuildError
from tests.debian.room import Room
from tests.e2e import binaries

SUPPORTED = 30
"""The oldest minor version that deploy/daemonset.yaml is for as it is."""

RUNTIMES = (
    (0, "bookworm"),  # containerd 1.6 speaks CRI v1alpha2, which kubelets before 1.23 need
    (26, "trixie"),  # containerd 1.7; CRI v1 is the only one from 1.26 on
    (36, "forky"),  # containerd 2.1; kubelets from 1.36 on want it
)
"""From which minor version on which Debian release's containerd, runc, etcd and CNI plugins are used."""

PACKAGES = ("etcd-server", "containerd", "runc", "containernetworking-plugins", "iproute2", "procps", "mount")
"""What a node is made of besides Kubernetes."""

CNI = "/usr/lib/cni"


@dataclass(frozen=True)
class Release:
    """A version of Kubernetes, and where its programs lie."""

    programs: Path
    version: str
    """As in 1.20.2."""

    @property
    def minor(self) -> int:
        return int(self.version.split(".")[1])

    @property
    def supported(self) -> bool:
        """Whether users may run it; an older one gets the manifest converted by `tests.e2e.product`."""
        return self.minor >= SUPPORTED

    @property
    def suite(self) -> str:
        """The Debian release that the rest of the node comes from."""
        return [suite for since, suite in RUNTIMES if self.minor >= since][-1]

    @property
    def plugins(self) -> str:
        """The folder of the CNI plugins."""
        return str(self.programs) if (self.programs / "bridge").exists() else CNI

    @property
    def apiserver_flags(self) -> list[str]:
        """The port without TLS went in 1.24."""
        return ["--insecure-port=0"] if self.minor < 24 else []

    @property
    def controller_flags(self) -> list[str]:
        """Likewise, of the controller manager and the scheduler."""
        return ["--port=0"] if self.minor < 24 else []

    @property
    def kubelet_flags(self) -> list[str]:
        """Docker was the default before 1.24; the flag went in 1.27."""
        return ["--container-runtime=remote"] if self.minor < 27 else []

    @property
    def kubelet_fields(self) -> dict[str, object]:
        """From 1.31 on a kubelet can refuse cgroup version 1; from 1.35 on it does unless told otherwise."""
        return {"failCgroupV1": False} if self.minor >= 31 else {}

    @property
    def environment(self) -> dict[str, str]:
        """What lets programs in the folder take precedence on the node."""
        usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": f"{self.programs}:{usual}"}

    def root(self) -> Path:
        """The root of the node. Raises BuildError."""
        return roots.root("node", self.suite, PACKAGES)

    def containerd(self) -> int:
        """The major version of containerd, which decides the version of its configuration."""
        return containerd_major(self.programs, self.root())


def of(programs: Path) -> Release:
    """The release whose programs lie in a folder. Raises BuildError when they do not tell."""
    try:
        said = subprocess.run(
            [programs / "kube-apiserver", "--version"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{programs}/kube-apiserver does not tell its version: {error}") from None
    return Release(programs, version(said))


def version(said: str) -> str:
    """The version in what `kube-apiserver --version` prints. Raises BuildError."""
    if not (found := re.match(r"Kubernetes v(1\.\d+\.\d+)", said)):
        raise BuildError(f"this is no version of Kubernetes: {said!r}")
    return found[1]


def schemas() -> list[str]:
    """The versions from the oldest supported one to the newest whose schemas kubernetes-validate has, e.g. 1.30."""
    folders = Path(kubernetes_validate.__file__).parent.rglob("v1.*-local-strict")
    minors = {int(path.name.split(".")[1]) for path in folders}
    return [f"1.{minor}" for minor in sorted(minors) if minor >= SUPPORTED]


def version_of_this_run() -> str:
    """The version of `release`, without building it. Raises BuildError."""
    return release().version if "SIDESTEP_E2E_PROGRAMS" in os.environ else binaries.VERSION


@functools.cache
def release() -> Release:
    """The release that the tests run on, built if need be. Raises BuildError."""
    if named := os.environ.get("SIDESTEP_E2E_PROGRAMS"):
        return of(Path(named).resolve())
    return Release(binaries.kubernetes(), binaries.VERSION)


@functools.cache
def containerd_major(programs: Path, root: Path) -> int:
    """The major version of the containerd that a node of these parts runs."""
    own = programs / "containerd"
    command = [str(own), "--version"] if own.exists() else Room(root).run("containerd", "--version")
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = re.search(r"\bv?(\d+)\.\d+\.\d+", said)
    if not found:
        raise BuildError(f"containerd does not tell its version: {said!r}")
    return int(found[1])
