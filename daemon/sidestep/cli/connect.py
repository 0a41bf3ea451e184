"""`sidestep connect`: a proxy on this machine whose connections are made by a workload's pod."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click

from sidestep.aio.interrupts import interrupts
from sidestep.cli.backend import Backend, backend_options, namespace_for
from sidestep.cli.child_command import ChildCommand
from sidestep.cli.command import POD_NAME, WorkloadType
from sidestep.cli.foreground import DashedCommand
from sidestep.cli.options import namespace_option
from sidestep.cli.output import tell
from sidestep.cli.pod_session import (
    Wanted,
    access_spec,
    during,
    fetch_world,
    folder_for,
    or_interrupted,
    through,
    world_options,
)
from sidestep.cli.service_workloads import resolve_service
from sidestep.laptop.outbound.server import OutboundProxy, Urls
from sidestep.laptop.pod_access import PodAccess


@click.command(cls=DashedCommand, short_help="Connect to what a workload's pod can reach.")
@click.argument("workload", type=WorkloadType())
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD ...]")
@click.option(
    "--listen",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="PORT",
    help="Port of 127.0.0.1 to listen on. [default: a free one]",
)
@partial(world_options, connects=True)
@namespace_option
@click.option("--pod", type=POD_NAME, default="", metavar="POD", help="Only this pod of the workload.")
@backend_options
def connect(
    workload: str,
    command: tuple[str, ...],
    listen: int,
    world: Wanted,
    namespace: str | None,
    pod: str,
    backend: Backend,
) -> int:
    """Run a proxy on 127.0.0.1 whose connections are made by a pod of WORKLOAD (`name` or `kind/name`), until Ctrl-C.

    It speaks SOCKS5 (TCP and UDP) and HTTP (CONNECT, and http URLs) on one port. Names are looked up by the pod, with
    its search domains; connections come from its address, so network policies hold for them as for the pod. Refused are
    link-local addresses, with the metadata of clouds, the node's own addresses, and the pod's loopback, unless
    --allow-loopback is there.

    With `-- CMD …` the command runs once a pod can be used, with ALL_PROXY, HTTP_PROXY, HTTPS_PROXY and NO_PROXY in its
    environment, in small letters, too. It ends with the command, whose exit code it has. With --transparent (Linux) its
    TCP connections go through the pod without settings of its own, by proxychains4. Without a command the URLs are
    printed: they have a password, which other users of this machine need, and on macOS and Windows everybody.

    In a cluster it needs ClusterRole sidestep-pod-access in the namespace, a right as strong as pods/exec.

    \b
      sidestep connect deploy/orders -n shop -- curl http://billing.pay/health
      sidestep connect deploy/orders -n shop --listen 1080
    """
    namespace = namespace_for(backend, namespace)
    workload = resolve_service(backend, namespace, workload)
    spec = access_spec(
        namespace, workload, *world.allow, pod=pod, container=world.container, allow_loopback=world.allow_loopback
    )
    with folder_for(world) as folder:
        return asyncio.run(during(backend, spec, lambda access: _serve(access, listen, command, world, folder)))


async def _serve(access: PodAccess, port: int, command: tuple[str, ...], wanted: Wanted, folder: Path | None) -> int:
    pod = await access.pod()
    variables = await or_interrupted(fetch_world(access, wanted, folder))
    async with OutboundProxy(access, port=port, tell=tell) as proxy:
        if command:
            with through(proxy.urls, wanted) as urls:
                return await _run(command, variables | urls, proxy)
        _show(proxy.urls, pod)
        interrupted = asyncio.Event()
        with interrupts(interrupted.set):
            waiting = asyncio.ensure_future(interrupted.wait())
            failing = asyncio.ensure_future(proxy.failed())
            await asyncio.wait({waiting, failing}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if failing.done():
                failing.result()
            failing.cancel()
        return 0


async def _run(command: tuple[str, ...], variables: Mapping[str, str], proxy: OutboundProxy) -> int:
    ready: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()
    ready.set_result(variables)
    child, active, interrupted = ChildCommand(command, ready=ready), asyncio.Event(), asyncio.Event()
    active.set()
    with interrupts(interrupted.set):
        running = asyncio.ensure_future(child.run(active))
        waiting = asyncio.ensure_future(interrupted.wait())
        failing = asyncio.ensure_future(proxy.failed())
        try:
            await asyncio.wait({running, waiting, failing}, return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                failing.result()
            return running.result() if running.done() else 0
        finally:
            await child.end()
            for task in (running, waiting, failing):
                task.cancel()
            await asyncio.gather(running, waiting, failing, return_exceptions=True)


def _show(urls: Urls, pod: str) -> None:
    tell(f"Connections through 127.0.0.1:{urls.port} are made by pod {pod}, until Ctrl-C.")
    for name, value in urls.variables().items():
        if name.isupper():
            click.echo(f"export {name}={value}")
    sys.stdout.flush()
