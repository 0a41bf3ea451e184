"""How to reach an API server and as whom; what a pod of the cluster finds in its file system.

https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/ says where the files are. The token is rotated by
the kubelet, so it is read again before each request. A kubeconfig is read by `kubeconfig`, which needs the `kubernetes`
library; the node daemon does without it (35 MiB of generated classes).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sidestep.model.errors import ConfigurationError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """An API server. `authorization` gives the header's value at each request, "" for none; no `tls` means in clear.

    `base` is a path before every other (Rancher has one); `server_name` is verified in place of the host where there is
    one; `user` is who the kubeconfig says we are: a claim.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    base: str = ""
    server_name: str = ""
    namespace: str = "default"
    user: str = ""
    authorization: Callable[[], str] = str
    ca_file: str = ""
    token_file: str = ""
    """Where both can be read again, for a process that is not this one."""

    def __str__(self) -> str:
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{shown}:{self.port}{self.base}"


def is_in_cluster(folder: Path = SERVICE_ACCOUNT) -> bool:
    """Whether this process runs in a pod that has a service account."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and (folder / "token").is_file()


def in_cluster(folder: Path = SERVICE_ACCOUNT) -> ClusterAccess:
    """The access of this pod's service account. Raises ConfigurationError outside of a pod."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ConfigurationError(
            "this is no pod of a cluster (KUBERNETES_SERVICE_HOST is not set); without one use --manifests DIR"
        )
    try:
        context = ssl.create_default_context(cadata=(folder / "ca.crt").read_text())
        namespace = (folder / "namespace").read_text().strip()
        (folder / "token").read_text()
        number = int(port)
    except (OSError, ValueError, ssl.SSLError) as error:
        raise ConfigurationError(f"the pod's service account cannot be used: {error}") from error
    return ClusterAccess(
        host=host,
        port=number,
        tls=context,
        namespace=namespace,
        authorization=lambda: _bearer(folder / "token"),
        ca_file=str(folder / "ca.crt"),
        token_file=str(folder / "token"),
    )


def _bearer(path: Path) -> str:
    try:
        return f"Bearer {path.read_text().strip()}"
    except OSError:
        return ""
