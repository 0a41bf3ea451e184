"""`sidestep files`: copies files of a workload's container."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from sidestep.cli.backend import Backend, backend_options, namespace_for
from sidestep.cli.command import POD_NAME, Command, FilePath, WorkloadType
from sidestep.cli.copied_files import MIB, check_paths, copy_files
from sidestep.cli.options import namespace_option
from sidestep.cli.pod_session import access_spec, container_option, during, or_interrupted
from sidestep.cli.service_workloads import resolve_service
from sidestep.laptop.file_snapshot import FileSnapshot
from sidestep.tunnel.access import DEFAULT_FILES, MAX_FILES


@click.command(cls=Command, short_help="Copy files of a workload's container.")
@click.argument("workload", type=WorkloadType())
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--to", "folder", type=FilePath(), required=True, metavar="DIR", help="New or empty folder for them.")
@click.option(
    "--max-size",
    type=click.IntRange(1, MAX_FILES // MIB),
    default=DEFAULT_FILES // MIB,
    show_default=True,
    metavar="MIB",
    help="Leave out files that go beyond it.",
)
@container_option
@namespace_option
@click.option("--pod", type=POD_NAME, default="", metavar="POD", help="Only this pod of the workload.")
@backend_options
def files(
    workload: str,
    paths: tuple[str, ...],
    folder: Path,
    max_size: int,
    container: str,
    namespace: str | None,
    pod: str,
    backend: Backend,
) -> None:
    """Copy files of a container of WORKLOAD (`name` or `kind/name`) to this machine.

    PATH is a folder or a file in the container. Without one it is what is mounted there: volumes, with Secrets and
    ConfigMaps. DIR stands for the container's root, so /etc/tls becomes DIR/etc/tls. It is a snapshot: what changes
    later is not followed.

    What the container's main process may read is copied, and nothing else. Links stay links, and none leads out of DIR.
    Devices, pipes, sockets and interfaces of the kernel such as /proc are left out, and named on standard error. Only
    you may read DIR (on Windows whoever may read the folder above it): IT HOLDS SECRETS, where the container does.

    The exit code is 1 when a PATH cannot be copied, or when there is more than one snapshot takes. In a cluster it
    needs ClusterRole sidestep-pod-access in the namespace, a right as strong as pods/exec.

    \b
      sidestep files deploy/orders /etc/tls /var/lib/config -n shop --to ./orders-files
      sidestep files deploy/orders -n shop --to ./orders-volumes
    """
    check_paths(paths)
    namespace = namespace_for(backend, namespace)
    workload = resolve_service(backend, namespace, workload)
    spec = access_spec(namespace, workload, "files", pod=pod, container=container)
    snapshot = FileSnapshot(folder, max_size * MIB)
    snapshot.check()
    asyncio.run(during(backend, spec, lambda access: or_interrupted(copy_files(access, paths, snapshot))))
