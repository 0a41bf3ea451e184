"""`sidestep leave`: ends an intercept of any session."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import quote

import click

from sidestep.cli import cluster_view
from sidestep.cli.backend import Backend, backend_options, namespace_for
from sidestep.cli.command import Command
from sidestep.cli.options import namespace_option, output_option
from sidestep.cli.output import json_line
from sidestep.kube.access import ClusterAccess
from sidestep.laptop.local_client import LocalClient
from sidestep.model.text import harmless

_NAME = re.compile(r"([^/]+/)?[^/]+")


@click.command(cls=Command, short_help="End an intercept.")
@click.argument("name")
@namespace_option
@output_option
@backend_options
def leave(name: str, namespace: str | None, backend: Backend, output: str) -> None:
    """End the intercept NAME (as `sidestep list` shows it; NS/NAME works too).

    The next request goes to the workload. The session is told who ended it, and exits.

    \b
      sidestep leave orders -n shop
    """
    if not _NAME.fullmatch(name):
        raise click.UsageError(
            f"{name!r} is not the name of an intercept: write NAME or NS/NAME, as sidestep list shows it"
        )
    before, slash, after = name.partition("/")
    namespace, name = (before, after) if slash else (namespace_for(backend, namespace), name)
    if isinstance(backend, ClusterAccess):
        asyncio.run(cluster_view.leave(backend, namespace, name))
    else:
        target = f"/v1/intercepts/{quote(namespace, safe='')}/{quote(name, safe='')}"
        asyncio.run(LocalClient(backend).delete(target))
    if output == "text":
        click.echo(harmless(f"Ended {namespace}/{name}."))
    else:
        click.echo(json_line({"ended": f"{namespace}/{name}"}))
