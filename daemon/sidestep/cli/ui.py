"""`sidestep ui`: the requests of workloads on a page in a browser of this machine."""

from __future__ import annotations

from typing import Any

import click

from sidestep.cli.backend import Backend, backend_options, namespace_for
from sidestep.cli.command import POD_NAME, Command, WorkloadType
from sidestep.cli.filtering import filter_of, filter_options
from sidestep.cli.foreground import run
from sidestep.cli.live_page import LivePage, PageSettings, page_options
from sidestep.cli.options import PortNameType, namespace_option
from sidestep.cli.output import LineWriter
from sidestep.cli.port_sessions import PortSessionsReport, port_specs
from sidestep.cli.readable_ports import readable_ports
from sidestep.cli.service_workloads import resolve_service
from sidestep.config.filters import describe_filter
from sidestep.laptop.handler import NoHandler
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.text import harmless


@click.command(cls=Command, short_help="Show the requests of workloads on a page in a browser.")
@click.argument("workloads", type=WorkloadType(), nargs=-1, required=True, metavar="WORKLOAD...")
@click.option(
    "--port",
    "-p",
    type=PortNameType(),
    default="",
    metavar="PORT",
    help="Only this port. [default: all that may speak HTTP]",
)
@filter_options
@namespace_option
@click.option("--pod", type=POD_NAME, default="", metavar="POD", help="Only this pod of the workload.")
@lambda command: page_options(command, always=True)
@backend_options
def ui(
    workloads: tuple[str, ...],
    port: str,
    namespace: str | None,
    pod: str,
    page: PageSettings,
    backend: Backend,
    **filters: Any,
) -> int:
    """Show the requests of WORKLOADs (`name`, `kind/name` or `svc/NAME`) and their answers on a page, until Ctrl-C.

    The page is served on 127.0.0.1 to browsers of this machine that know its address, which is printed here; it loads
    nothing from elsewhere. It shows what `sidestep flows` shows, searches and filters it, saves it as HAR, and sends
    requests again. The newest 10,000 requests are kept, in memory.

    \b
      sidestep ui orders -n shop --open
      sidestep ui orders payments --http-header x-dev=ada
    """
    try:
        wanted = filter_of(filters)
    except (ConfigurationError, RefusedError) as error:
        raise click.UsageError(str(error)) from error
    namespace = namespace_for(backend, namespace)
    named = dict.fromkeys(resolve_service(backend, namespace, workload) for workload in workloads)
    specs = [
        spec
        for workload in named
        for spec in port_specs(
            [port] if port else readable_ports(backend, namespace, workload),
            wanted,
            namespace=namespace,
            workload=workload,
            heads_only=True,
            pod=pod,
        )
    ]
    names = ", ".join(named)
    return run(
        specs,
        backend=backend,
        handler=NoHandler(),
        report=lambda writer: _Report(writer, f"Requests ({describe_filter(wanted)}) of {names}. Ctrl-C ends it."),
        page=LivePage(names, page, backend=backend, namespace=namespace),
    )


class _Report(PortSessionsReport):
    """It prints conditions and what ends; requests are on the page."""

    def __init__(self, writer: LineWriter, text: str) -> None:
        super().__init__(text)
        self._writer = writer

    def say(self, text: str) -> None:
        """Print a line."""
        self._writer.line(harmless(text))
