"""Access to an API server: address, TLS and identity, and the service account that a pod finds in its file system.

https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/ documents the files. The kubelet rotates the
token, so it is read before each request; the `kubernetes` library reads it once a minute, and a clock that jumps makes
that too seldom. `kubeconfig` reads kubeconfigs with the library.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sidestep.aio.client_tls import default_client_context
from sidestep.model.errors import ConfigurationError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """Access to one API server.

    `authorization` returns the header's value for each request, "" for none. Without `tls` the server is reached in
    clear text. `base` is a path prefix of every request (Rancher uses one). `server_name` is verified instead of the
    host where it is set. `user` is the user name in the kubeconfig; it is not verified. `proxy` is the proxy's URL of
    the kubeconfig; "" means that the environment decides (`proxies`).
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    base: str = ""
    server_name: str = ""
    namespace: str = "default"
    user: str = ""
    proxy: str = field(default="", repr=False)
    authorization: Callable[[], str] = str
    ca_file: str = ""
    token_file: str = ""
    """Paths of the token and the CA, for a process that reads them itself."""

    def __str__(self) -> str:
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{shown}:{self.port}{self.base}"


def is_in_cluster(folder: Path = SERVICE_ACCOUNT) -> bool:
    """Whether this process runs in a pod with a service account."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and (folder / "token").is_file()


def in_cluster(folder: Path = SERVICE_ACCOUNT) -> ClusterAccess:
    """Return the access of this pod's service account. Raises ConfigurationError outside of a pod."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ConfigurationError(
            "this is no pod of a cluster (KUBERNETES_SERVICE_HOST is not set); without one use --manifests DIR"
        )
    try:
        context = default_client_context(cadata=(folder / "ca.crt").read_text())
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
