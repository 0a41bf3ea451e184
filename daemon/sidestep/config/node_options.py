"""What the command line tells the node daemon."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_SOCKET = Path("/run/sidestep/node.sock")
"""Where CLIs of this machine find the daemon."""


DEFAULT_TUNNEL_PORT = 7443
"""Port on the daemon pod's loopback where sessions arrive by port-forward."""
DEFAULT_HEALTH_PORT = 9464
"""Port of /healthz, /readyz and /metrics of a daemon in a cluster."""


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """The pod that a daemon of a cluster runs in, as the downward API tells it."""

    namespace: str
    name: str
    service_account: str = "sidestep-node"


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """`manifests` is the directory of local mode, None for the node of a cluster; `node_name` names this node.

    What follows `socket` is for a cluster only.
    """

    manifests: Path | None
    node_name: str
    socket: Path = DEFAULT_SOCKET
    pod: PodIdentity | None = None
    tunnel_port: int = DEFAULT_TUNNEL_PORT
    health_port: int = DEFAULT_HEALTH_PORT
