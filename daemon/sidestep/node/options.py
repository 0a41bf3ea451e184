"""What the command line tells the node daemon."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_SOCKET = Path("/run/sidestep/node.sock")
"""Where CLIs of this machine find the daemon."""


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """`manifests` is the directory of local mode, None for the node of a cluster; `node_name` names this node."""

    manifests: Path | None
    node_name: str
    socket: Path = DEFAULT_SOCKET
