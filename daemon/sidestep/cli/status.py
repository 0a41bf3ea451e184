"""`sidestep status`: the node daemon, its target pods, intercepts and problems."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import click

from sidestep.cli.listing import conditions
from sidestep.cli.options import output_option, socket_option
from sidestep.cli.output import harmless
from sidestep.cli.table import table
from sidestep.laptop.local_client import LocalClient
from sidestep.node.view import InterceptView, StatusView
from sidestep.tunnel.messages import decode


@click.command(short_help="Show the node daemon, target pods, intercepts, problems.")
@socket_option
@output_option
def status(socket_path: Path, output: str) -> None:
    """Show the node daemon, the pods it steers, the intercepts it serves, and every problem it knows of.

    \b
      sidestep status
      sidestep status --output json
    """
    body = asyncio.run(LocalClient(socket_path).get("/v1/status"))
    if output == "json":
        click.echo(body.decode())
        return
    for line in _text(decode(body, StatusView, what="the daemon's answer")):
        click.echo(line)


def _text(view: StatusView) -> Iterable[str]:
    node = view.node
    yield harmless(f"Node {node.name}: sidestep {node.version}, pid {node.pid}, up {_duration(node.uptime)}")
    if node.counters:
        yield "  " + _counters(node.counters)
    yield ""
    if view.pods:
        head = ("TARGET POD", "PROXY", "STEERED", "CLIENT ADDRESSES", "COUNTERS")
        rows = [
            (
                f"{pod.namespace}/{pod.name}",
                f"{pod.proxy} {pod.proxy_pid or ''}".strip(),
                " ".join(pod.steered),
                pod.client_addresses,
                _counters(pod.counters),
            )
            for pod in view.pods
        ]
        yield from table(head, rows)
    else:
        yield "No pod is steered."
    yield ""
    if view.intercepts:
        columns = ("INTERCEPT", "OWNER", "WORKLOAD", "PORT", "FILTER", "ACTIVE", "COUNTERS")
        yield from table(columns, [_intercept(each) for each in view.intercepts])
    else:
        yield "No intercepts."
    yield from conditions(view.conditions)


def _intercept(each: InterceptView) -> tuple[str, ...]:
    return (
        f"{each.namespace}/{each.name}",
        each.owner,
        each.workload,
        f"{each.port}/{each.transport}",
        each.filter,
        f"{each.state.active} of {len(each.state.pods)}",
        _counters(each.counters),
    )


def _counters(counters: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counters.items() if count)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
