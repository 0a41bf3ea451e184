"""`sidestep flows`: a live log of the requests of a workload, heads only.

It runs a session without handler for each port of the workload that may speak HTTP: a wiretap of heads, for which no
body leaves the pod. Values of `authorization`, `cookie`, `set-cookie` and `proxy-authorization` are redacted in the pod
before anything is sent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sidestep.cli.backend import Backend, backend_options, namespace_for
from sidestep.cli.command import POD_NAME, Command, WorkloadType
from sidestep.cli.earlier import EarlierTold, earlier_options, earlier_text
from sidestep.cli.filtering import filter_of, filter_options
from sidestep.cli.foreground import STDOUT, run
from sidestep.cli.har_file import HarFile
from sidestep.cli.joined_requests import JoinedRequests
from sidestep.cli.live_page import PageSettings, live_page, page_options
from sidestep.cli.options import PortNameType, egress_option, namespace_option, output_option
from sidestep.cli.output import LineWriter, json_line
from sidestep.cli.port_sessions import PortSessionsReport, port_specs
from sidestep.cli.readable_ports import listened_ports, places
from sidestep.cli.report import address, request_line
from sidestep.cli.request_text import RequestText, answer_options, event_line, is_wanted, uses_colour
from sidestep.cli.saved_requests import SavedRequests, save_option
from sidestep.cli.service_workloads import resolve_service
from sidestep.config.filters import describe_filter
from sidestep.laptop.handler import NoHandler
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.text import harmless
from sidestep.tunnel.messages import Answered, AnyEvent, Dropped, Earlier, Lost, Request, SessionSpec


@click.command(cls=Command, short_help="Show the requests of a workload as they come.")
@click.argument("workload", type=WorkloadType())
@click.option(
    "--port",
    "-p",
    type=PortNameType(),
    default="",
    metavar="PORT",
    help="Only this port. [default: all that may speak HTTP]",
)
@egress_option
@filter_options
@answer_options
@earlier_options
@save_option
@page_options
@namespace_option
@click.option("--pod", type=POD_NAME, default="", metavar="POD", help="Only this pod of the workload.")
@output_option
@backend_options
def flows(
    workload: str,
    port: str,
    egress: bool,
    namespace: str | None,
    pod: str,
    output: str,
    statuses: tuple[str, ...],
    no_color: bool,
    since: float,
    last: int,
    save: Path | None,
    page: PageSettings | None,
    backend: Backend,
    **filters: Any,
) -> int:
    """Show the requests of WORKLOAD (`name` or `kind/name`) as they are answered, until Ctrl-C.

    One line for each request that matches: time, method, host and path, the answer (status, who gave it, how long it
    took, its size), client, pod, and the id of its trace. A request that is not answered within a second is shown, and
    once more when it is. `--output json` adds the header fields of both. The values of authorization, cookie,
    set-cookie and proxy-authorization are never shown, and bodies never. --save keeps the same in a file
    that browsers' tools, mitmproxy and `sidestep replay` read.

    --since and --last first show earlier requests that match, up to 1,000 of a port, where pods keep them: while flows
    without a filter are shown to somebody, or because of the annotation sidestep.dev/recent-requests.PORT.

    With --egress, one line for each request that the pods send in clear, and for each other connection that they make:
    TLS with the name of the server, or TCP. While it lasts, connections to external addresses pass the pod's proxy.

    \b
      sidestep flows orders -n shop
      sidestep flows orders -n shop --egress
      sidestep flows orders -n shop --http-status 5xx --since 10m
      sidestep flows orders -n shop --http-path-prefix /api/ --output json
      sidestep flows orders -n shop --save orders.har
    """
    try:
        wanted = filter_of(filters)
        if egress and (since or last):
            raise RefusedError("nothing is kept of connections that pods make: --since and --last go without --egress")
    except (ConfigurationError, RefusedError) as error:
        raise click.UsageError(str(error)) from error
    namespace = namespace_for(backend, namespace)
    workload = resolve_service(backend, namespace, workload)
    ports = listened_ports(backend, namespace, workload, port, egress=egress)
    specs = port_specs(
        ports,
        wanted,
        namespace=namespace,
        workload=workload,
        heads_only=True,
        pod=pod,
        egress=egress,
        statuses=statuses,
        since=since,
        last=last,
    )
    text = f"Requests ({describe_filter(wanted)}) of {workload}, {places(ports)}. Ctrl-C ends it."
    saved = None if save is None else SavedRequests(HarFile(save), statuses=statuses)
    coloured = output == "text" and uses_colour(no_color=no_color, descriptor=STDOUT)
    return run(
        specs,
        backend=backend,
        handler=NoHandler(),
        report=lambda writer: FlowReport(
            writer, text, output=output, statuses=statuses, coloured=coloured, saved=saved
        ),
        page=live_page(workload, page, backend=backend, namespace=namespace),
    )


class FlowReport(PortSessionsReport):
    """It prints requests, those with one of `statuses` if there are any."""

    def __init__(
        self,
        writer: LineWriter,
        text: str,
        *,
        output: str,
        statuses: tuple[str, ...] = (),
        coloured: bool = False,
        saved: SavedRequests | None = None,
    ) -> None:
        super().__init__(text)
        self._writer = writer
        self._json = output == "json"
        self._statuses = statuses
        self._saved = saved
        self._text_of = RequestText(coloured=coloured)
        self._requests = JoinedRequests(self._request, statuses=statuses)

    def event(self, event: AnyEvent) -> None:
        """As SessionObserver.event."""
        super().event(event)
        if self._saved is not None:
            self._saved.event(event)
        match event:
            case Request() | Answered() if self._json:
                if is_wanted(event.answer, self._statuses):
                    self._writer.line(event_line(event))
            case Request():
                self._requests.request(event)
            case Answered():
                self._requests.answered(event)
            case Earlier() if self._json:
                self._writer.line(json_line(event))
            case Earlier():
                if text := earlier_text(event):
                    self.say(text)
            case Lost() | Dropped():
                self.say(f"{event.count} requests are not shown: they came faster than they could be printed")

    def interrupted(self, reason: str) -> None:
        """As SessionObserver.interrupted."""
        self._requests.interrupted()
        if self._saved is not None:
            self._saved.interrupted()
        super().interrupted(reason)

    def close(self) -> None:
        """Finish the file, if requests are saved."""
        if self._saved is not None:
            self.say(self._saved.close())
            self._saved = None

    def _request(self, event: Request, late: bool) -> None:
        target = f"{event.authority}{event.path}" if event.path.startswith("/") else event.path
        shown = f"{event.method} {target}"
        if event.protocol in {"tls", "tcp"}:
            shown = f"{event.protocol.upper()} {event.authority}".strip()
        to = f"to {_server(event)}  " if event.server else ""
        self._writer.line(request_line(self._text_of, event, shown, f"{to}from {address(event)}", late=late))

    def say(self, text: str) -> None:
        """Print a line, in JSON as a note."""
        if self._json:
            self._writer.line(json_line({"event": "note", "text": text}))
        else:
            self._writer.line(harmless(text))


def _server(event: Request) -> str:
    """The server of a connection that the pod makes, as `report.address` shows the client."""
    return f"[{event.server}]:{event.port}" if ":" in event.server else f"{event.server}:{event.port}"


class _EarlierReport(FlowReport):
    """It prints earlier requests only."""

    def __init__(self, writer: LineWriter, told: EarlierTold, *, output: str, coloured: bool) -> None:
        super().__init__(writer, "", output=output, coloured=coloured)
        self._told = told

    def event(self, event: AnyEvent) -> None:
        """As SessionObserver.event."""
        if not isinstance(event, Request | Answered) or (isinstance(event, Request) and event.earlier):
            super().event(event)
        self._told.event(event)


def show_earlier(spec: SessionSpec, *, backend: Backend, output: str, coloured: bool) -> bool:
    """Show the earlier requests of a session of flows, and end it. Returns False if somebody has ended it before."""
    told = EarlierTold()
    run(
        [spec],
        backend=backend,
        handler=NoHandler(),
        report=lambda writer: _EarlierReport(writer, told, output=output, coloured=coloured),
        limit=told,
    )
    return told.is_over
