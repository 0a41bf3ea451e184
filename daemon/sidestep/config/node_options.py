"""Options of the node daemon, as the command line passes them."""

from __future__ import annotations

from pathlib import Path

import msgspec

DEFAULT_SOCKET = Path("/run/sidestep/node.sock")
"""Default path of the unix socket on which the daemon serves command lines of this machine."""


DEFAULT_TUNNEL_PORT = 7443
"""Port on the daemon pod's loopback where sessions arrive by port-forward."""
DEFAULT_HEALTH_PORT = 9464
"""Port of /healthz, /readyz and /metrics of a daemon in a cluster."""


class PodIdentity(msgspec.Struct, frozen=True):
    """The pod in which a daemon of a cluster runs, from the downward API."""

    namespace: str
    name: str
    service_account: str = "sidestep-node"


class NodeOptions(msgspec.Struct, frozen=True):
    """Options of the node daemon.

    `manifests` is the directory of local mode, None in a cluster; `node_name` is the name of this node. `pod` and the
    ports apply to a cluster only.
    """

    manifests: Path | None
    node_name: str
    socket: Path = DEFAULT_SOCKET
    eve: Path | None = None
    """File for records of inspection in local mode, "-" for standard output; None: as the Node says."""
    crs: Path | None = None
    """Folder of a Core Rule Set, an absolute path; None: that of Debian."""
    pod: PodIdentity | None = None
    tunnel_port: int = DEFAULT_TUNNEL_PORT
    health_port: int = DEFAULT_HEALTH_PORT
