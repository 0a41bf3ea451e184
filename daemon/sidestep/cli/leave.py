"""`sidestep leave`: ends a session of anybody."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import click

from sidestep.cli import cluster_view
from sidestep.cli.backend import Backend, backend_options, namespace_for
from sidestep.cli.command import Command, Completed
from sidestep.cli.options import namespace_option, output_option
from sidestep.cli.output import json_line
from sidestep.cli.session_choice import Wanted, choose, parse_session
from sidestep.kube.access import ClusterAccess
from sidestep.laptop.local_client import LocalClient
from sidestep.model.text import harmless
from sidestep.tunnel.messages import decode
from sidestep.tunnel.views import StatusView


@click.command(cls=Command, short_help="End an intercept, a wiretap, flows, a capture or another session.")
@click.argument("name", type=Completed("sessions"))
@namespace_option
@output_option
@backend_options
def leave(name: str, namespace: str | None, backend: Backend, output: str) -> None:
    """End the session NAME: KIND/NAME as `sidestep list` shows it, or NAME alone. NS/NAME and NS/KIND/NAME work too.

    NAME alone is the intercept of that name, or else the only session that has it; the flows of somebody are ended only
    as flows/NAME. The next request goes to the workload. The session is told who ended it, and exits.

    \b
      sidestep leave orders -n shop
      sidestep leave flows/orders-flows -n shop
    """
    wanted = parse_session(name)
    if wanted is None:
        raise click.UsageError(
            f"{name!r} is not the name of a session: write NAME or KIND/NAME, as sidestep list shows it"
        )
    namespace = wanted.namespace or namespace_for(backend, namespace)
    if isinstance(backend, ClusterAccess):
        kind = asyncio.run(cluster_view.leave(backend, namespace, wanted))
    else:
        kind = asyncio.run(_leave_here(LocalClient(backend), namespace, wanted))
    if output == "text":
        click.echo(harmless(f"Ended {kind} {namespace}/{wanted.name}."))
    else:
        click.echo(json_line({"ended": f"{namespace}/{wanted.name}", "kind": kind}))


async def _leave_here(client: LocalClient, namespace: str, wanted: Wanted) -> str:
    """End a session of this machine's daemon; returns its kind."""
    status = decode(await client.get("/v1/status"), StatusView, what="the daemon's answer")
    there = [each.kind for each in status.intercepts if (each.namespace, each.name) == (namespace, wanted.name)]
    kind = choose(wanted, there, namespace)
    target = f"/v1/intercepts/{quote(namespace, safe='')}/{quote(wanted.name, safe='')}?kind={quote(kind, safe='')}"
    await client.delete(target)
    return kind
