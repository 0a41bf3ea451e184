"""`sidestep flows`: a live log of the requests of a workload, heads only.

It runs a session without handler for each port of the workload that may speak HTTP: a wiretap of heads, for which no
body leaves the pod. Values of `authorization`, `cookie`, `set-cookie` and `proxy-authorization` are redacted in the pod
before anything is sent.
"""

from __future__ import annotations

import asyncio
from typing import Any

import click

from sidestep.cli.backend import Backend, backend_options, namespace_for
from sidestep.cli.command import POD_NAME, Command, WorkloadType
from sidestep.cli.filtering import filter_of, filter_options, filter_spec
from sidestep.cli.foreground import claimed_owner, run
from sidestep.cli.options import PortNameType, namespace_option, output_option
from sidestep.cli.output import LineWriter, json_line
from sidestep.cli.report import address, clock
from sidestep.config.filters import describe_filter
from sidestep.kube.access import ClusterAccess
from sidestep.laptop.handler import NoHandler
from sidestep.laptop.local_client import LocalClient
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.text import harmless
from sidestep.policy.workloads import parse_workload
from sidestep.tunnel.messages import AnyEvent, Dropped, Ended, Hello, Lost, Request, SessionSpec, State, decode
from sidestep.tunnel.opening import StreamOpening
from sidestep.tunnel.views import NOT_READ, PENDING, WorkloadView


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
@filter_options
@namespace_option
@click.option("--pod", type=POD_NAME, default="", metavar="POD", help="Only this pod of the workload.")
@output_option
@backend_options
def flows(
    workload: str, port: str, namespace: str | None, pod: str, output: str, backend: Backend, **filters: Any
) -> int:
    """Show the requests of WORKLOAD (`name` or `kind/name`) as they come, until Ctrl-C.

    One line for each request that matches: time, method, host and path, client, pod. `--output json` adds the header
    fields. The values of authorization, cookie and proxy-authorization are never shown, and bodies never.

    \b
      sidestep flows orders -n shop
      sidestep flows orders -n shop --http-path-prefix /api/ --output json
    """
    try:
        wanted = filter_of(filters)
    except (ConfigurationError, RefusedError) as error:
        raise click.UsageError(str(error)) from error
    namespace = namespace_for(backend, namespace)
    ports = [port] if port else _ports(backend, namespace, workload)
    specs = [
        SessionSpec(
            namespace=namespace,
            workload=workload,
            port=each,
            kind="wiretap",
            heads_only=True,
            name="",
            pod=pod,
            claimed_owner=claimed_owner(),
            **filter_spec(wanted),
        )
        for each in ports
    ]
    text = f"Requests ({describe_filter(wanted)}) of {workload}, port {', '.join(ports)}. Ctrl-C ends it."
    return run(
        specs, backend=backend, handler=NoHandler(), report=lambda writer: FlowReport(writer, text, output=output)
    )


def _ports(backend: Backend, namespace: str, workload: str) -> list[str]:
    """Return the workload's ports that may speak HTTP and can be read. Raises RefusedError."""
    if isinstance(backend, ClusterAccess):
        raise RefusedError("in a cluster, give the port with --port PORT")
    body = asyncio.run(LocalClient(backend).get("/v1/workloads"))
    wanted = parse_workload(workload)
    for each in decode(body, tuple[WorkloadView, ...], what="the daemon's answer"):
        if each.namespace == namespace and each.name == wanted.name and wanted.kind in {None, each.kind}:
            found = [
                str(port.number)
                for port in each.ports
                if port.transport == "tcp"
                and port.protocol != "tcp"
                and (port.tls != "always" or port.certificate is not None or _may_come(port.certificate_state))
            ]
            if found:
                return found
            raise RefusedError(f"no port of {workload} can be read as HTTP; sidestep list shows its ports")
    raise RefusedError(f"there is no workload {workload} in namespace {namespace}; sidestep list shows those there are")


class _PortObserver:
    """The `laptop.session.SessionObserver` of one port's session."""

    def __init__(self, report: FlowReport) -> None:
        self._report = report
        self._active = False

    def registered(self, hello: Hello) -> None:
        """As SessionObserver.registered."""

    def interrupted(self, reason: str) -> None:
        """As SessionObserver.interrupted."""
        self._report.interrupted(reason)

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """As SessionObserver.handler_refused."""

    def event(self, event: AnyEvent) -> None:
        """As SessionObserver.event."""
        self._report.event(event)
        if isinstance(event, State) and event.active and not self._active:
            self._active = True
            self._report.joined()


class FlowReport:
    """A `foreground.Reporter` that prints requests. `text` is printed once all sessions are active."""

    def __init__(self, writer: LineWriter, text: str, *, output: str) -> None:
        self._writer = writer
        self._text = text
        self._json = output == "json"
        self._said: set[tuple[str, str, str]] = set()
        self._waiting = 0
        self.active = asyncio.Event()

    def observer(self) -> _PortObserver:
        """Return the observer of one session."""
        self._waiting += 1
        return _PortObserver(self)

    def joined(self) -> None:
        """Record that one more session is active."""
        self._waiting -= 1
        if not self._waiting:
            self.active.set()
            self._say(self._text)

    def registered(self, hello: Hello) -> None:
        """As SessionObserver.registered."""

    def interrupted(self, reason: str) -> None:
        """As SessionObserver.interrupted."""
        self._say(f"Interrupted: {reason}.")

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """As SessionObserver.handler_refused."""

    def event(self, event: AnyEvent) -> None:
        """As SessionObserver.event."""
        match event:
            case Request():
                self._request(event)
            case State():
                for each in event.conditions:
                    line = (each.type, each.subject, each.text)
                    if line not in self._said:
                        self._said.add(line)
                        self._say(": ".join(line))
            case Lost() | Dropped():
                self._say(f"{event.count} requests are not shown: they came faster than they could be printed")
            case Ended():
                self._say(f"Ended: {event.reason}.")

    def _request(self, event: Request) -> None:
        if self._json:
            self._writer.line(json_line(event))
        else:
            target = f"{event.authority}{event.path}" if event.path.startswith("/") else event.path
            self._say(f"{clock(event.time)}  {event.method} {target}  from {address(event)}  pod {event.pod}")

    def _say(self, text: str) -> None:
        if self._json:
            self._writer.line(json_line({"event": "note", "text": text}))
        else:
            self._writer.line(harmless(text))


def _may_come(certificate_state: str) -> bool:
    """Whether a certificate may become usable once somebody needs it: it is read on demand, or is not there yet."""
    return certificate_state == NOT_READ or certificate_state.startswith(PENDING)
