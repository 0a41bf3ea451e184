"""The names that complete a word: contexts, namespaces, workloads, sessions. Loaded when a word is completed.

They are asked for where the command line so far points to: its --socket, --kubeconfig, --context and -n decide as they
do when it runs. Whoever presses TAB waits for DEADLINE at most, and gets no names where something is in the way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from click.shell_completion import CompletionItem

from sidestep.aio.time_limit import time_limit

if TYPE_CHECKING:
    import click

    from sidestep.kube.api import Api
    from sidestep.laptop.local_client import LocalClient
    from sidestep.tunnel.views import WorkloadView

DEADLINE = 4.0
"""Seconds for all that is asked of a server."""

Names = dict[str, str]
"""Names, with what describes them."""


def contexts(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a context of the kubeconfig."""

    def read() -> Names:
        from sidestep.kube import kubeconfig

        return kubeconfig.contexts(ctx.params.get("kubeconfig"))

    return _items(read, incomplete)


def namespaces(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Complete a namespace."""
    return _items(lambda: _ask(ctx, _namespaces_here, _namespaces_of_cluster), incomplete)


def workloads(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Complete a workload: `kind/name`, or once something is written a name alone."""

    def named() -> Names:
        found = _ask(ctx, _workloads_here, _workloads_of_cluster)
        alone = {name.partition("/")[2]: name.partition("/")[0] for name in found} if incomplete else {}
        return alone | found

    return _items(named, incomplete)


def sessions(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Complete a session, `kind/name`."""
    return _items(lambda: _ask(ctx, _sessions_here, _sessions_of_cluster), incomplete)


def _items(names: Callable[[], Names], incomplete: str) -> list[CompletionItem]:
    try:
        found = names()
    except Exception:  # noqa: BLE001 - whoever presses TAB can do nothing about it
        return []
    return [CompletionItem(name, help=text) for name, text in sorted(found.items()) if name.startswith(incomplete)]


def _ask(
    ctx: click.Context,
    here: Callable[[LocalClient, str], Awaitable[Names]],
    of_cluster: Callable[[Api, str], Awaitable[Names]],
) -> Names:
    """Ask the backend of the command line so far."""
    from sidestep.cli.backend import choose_backend, namespace_for
    from sidestep.kube.api import Api
    from sidestep.laptop.local_client import LocalClient

    values = ctx.params
    backend = choose_backend(values.get("socket_path"), values.get("kubeconfig"), values.get("context"))
    namespace = namespace_for(backend, values.get("namespace"))

    async def ask() -> Names:
        async with time_limit(DEADLINE):
            if isinstance(backend, Path):
                return await here(LocalClient(backend), namespace)
            api = Api(backend)
            try:
                return await of_cluster(api, namespace)
            finally:
                await api.aclose()

    return asyncio.run(ask())


async def _namespaces_here(client: LocalClient, _namespace: str) -> Names:
    return {each.namespace: "" for each in await _views(client)}


async def _namespaces_of_cluster(api: Api, _namespace: str) -> Names:
    from sidestep.kube.snapshot import list_all

    return {str(each["metadata"]["name"]): "" for each in await list_all(api, "/api/v1/namespaces")}


async def _workloads_here(client: LocalClient, namespace: str) -> Names:
    return {f"{each.kind}/{each.name}": "" for each in await _views(client) if each.namespace == namespace}


async def _workloads_of_cluster(api: Api, namespace: str) -> Names:
    from sidestep.kube.snapshot import read_inventory

    inventory = await read_inventory(api, namespace)
    owners = {f"{key.kind}/{key.name}": "" for key, each in inventory.workloads.items() if not each.owners}
    alone = {f"pod/{pod.key.name}": "" for pod in inventory.pods.values() if not pod.owners}
    return owners | alone


async def _sessions_here(client: LocalClient, namespace: str) -> Names:
    from sidestep.tunnel.messages import decode
    from sidestep.tunnel.views import StatusView

    status = decode(await client.get("/v1/status"), StatusView, what="the daemon's answer")
    return {f"{each.kind}/{each.name}": each.filter for each in status.intercepts if each.namespace == namespace}


async def _sessions_of_cluster(api: Api, namespace: str) -> Names:
    from sidestep.cli.cluster_view import session_views

    return {f"{each.kind}/{each.name}": each.filter for each in await session_views(api, namespace)}


async def _views(client: LocalClient) -> Iterable[WorkloadView]:
    from sidestep.tunnel.messages import decode
    from sidestep.tunnel.views import WorkloadView

    return decode(await client.get("/v1/workloads"), tuple[WorkloadView, ...], what="the daemon's answer")
