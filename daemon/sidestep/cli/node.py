"""`sidestep node`: the node daemon in the foreground."""

from __future__ import annotations

import os
import platform
import stat
import sys
from pathlib import Path

import click

from sidestep.aio.named_file import mode_of
from sidestep.cli.command import Command, FilePath
from sidestep.cli.importing import uncollected
from sidestep.cli.options import socket_option
from sidestep.config.node_options import NodeOptions, PodIdentity
from sidestep.config.node_settings import OWN_NAMESPACE
from sidestep.model.errors import ConfigurationError


@click.command(cls=Command, short_help="Run the node daemon (as root).")
@click.option(
    "--manifests",
    type=FilePath(),
    metavar="DIR",
    help="Directory of Kubernetes manifests (YAML) to serve instead of a cluster; changes take effect at once.",
)
@click.option(
    "--name",
    "node_name",
    default=platform.node,
    metavar="NAME",
    help="Name of this node; in a cluster that of its Node. [default: the host's name]",
)
@click.option(
    "--eve",
    type=FilePath(),
    metavar="PATH",
    help="File for EVE records of inspection, - for standard output, in local mode. [default: as the Node says]",
)
@click.option(
    "--crs",
    type=FilePath(),
    metavar="DIR",
    help="OWASP Core Rule Set for firewalls of policies, as its project releases it. [default: Debian's package]",
)
@socket_option
def node(manifests: Path | None, node_name: str, eve: Path | None, crs: Path | None, socket_path: Path) -> int:
    """Run the node daemon (as root). SIGTERM drains it: connections may finish, nothing stays behind.

    A Pod in the manifests is tied to this machine by an annotation: sidestep.dev/netns: /run/netns/NAME, or
    sidestep.dev/pid: "1234".

    \b
      sidestep node --manifests ./manifests
    """
    if sys.platform != "linux":
        raise ConfigurationError(f"the node daemon runs on Linux only, and this is {platform.system()}")
    if manifests is not None and not stat.S_ISDIR(mode_of(manifests)):
        raise ConfigurationError("is not a directory", subject="--manifests", value=str(manifests)[:200])
    if eve is not None and manifests is None:
        raise ConfigurationError("is for local mode; a Node has the annotation sidestep.dev/eve", subject="--eve")
    if crs is not None and not stat.S_ISDIR(mode_of(crs)):
        raise ConfigurationError("is not a directory", subject="--crs", value=str(crs)[:200])
    with uncollected():
        from sidestep.node.daemon import run

    pod = None
    if manifests is None:
        pod = PodIdentity(
            namespace=os.environ.get("POD_NAMESPACE", OWN_NAMESPACE),
            name=os.environ.get("POD_NAME", platform.node()),
            service_account=os.environ.get("POD_SERVICE_ACCOUNT", "sidestep-node"),
        )
    folder = None if crs is None else crs.resolve()
    options = NodeOptions(manifests=manifests, node_name=node_name, socket=socket_path, eve=eve, crs=folder, pod=pod)
    return run(options)
