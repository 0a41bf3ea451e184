"""`sidestep inspect`: what inspection finds in a workload, as it happens, and one record of every request.

It runs a session for each port: a wiretap that gets records (`laptop.records`) and no copies. What a record may show is
decided in the pod (`protocols.eve_redaction`).
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import click

from sidestep.cli.backend import Backend, backend_options, namespace_for
from sidestep.cli.command import POD_NAME, Command, WorkloadType
from sidestep.cli.filtering import filter_of, filter_options
from sidestep.cli.foreground import run
from sidestep.cli.options import PortNameType, egress_option, namespace_option
from sidestep.cli.output import LineWriter, json_line
from sidestep.cli.port_sessions import PortSessionsReport, port_specs
from sidestep.cli.readable_ports import listened_ports, places
from sidestep.cli.record_text import RecordText
from sidestep.cli.service_workloads import resolve_service
from sidestep.config.durations import parse_duration
from sidestep.config.filters import describe_filter
from sidestep.laptop.records import RecordHandler
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.text import harmless, harmless_json
from sidestep.protocols.eve_records import Record
from sidestep.tunnel.messages import AnyEvent, Dropped, Lost

STDERR = 2
LONGEST = 24 * 3600.0
"""Seconds."""
_WHY = {
    "budget": "recording has used its share of the pod proxy's time",
    "connection": "one connection has too many",
    "rate": "the pod has too many",
    "room": "too many wait in the pod proxy",
    "size": "too large",
    "daemon": "the node daemon is busy",
    "node": "the node has too many",
    "reader": "they came faster than they were read",
    "refused": "the pod proxy may not send them",
}


@click.command(cls=Command, short_help="Show alerts and requests of a workload as they come.")
@click.argument("workload", type=WorkloadType())
@click.option("--port", "-p", type=PortNameType(), default="", metavar="PORT", help="Only this port. [default: all]")
@egress_option
@filter_options
@click.option("--alerts", is_flag=True, help="Only alerts, and what is not inspected.")
@click.option("--for", "duration", default="", metavar="TIME", help="End after this time, like 60s. [default: Ctrl-C]")
@click.option("--reset-existing", is_flag=True, help="Close existing connections, so that their clients connect again.")
@namespace_option
@click.option("--pod", type=POD_NAME, default="", metavar="POD", help="Only this pod of the workload.")
@click.option(
    "--output",
    "-o",
    type=click.Choice(["text", "json", "eve"]),
    default="text",
    show_default=True,
    help="text for people, eve: records alone, json: with notes.",
)
@backend_options
def inspect(
    workload: str,
    port: str,
    egress: bool,
    alerts: bool,
    duration: str,
    reset_existing: bool,
    namespace: str | None,
    pod: str,
    output: str,
    backend: Backend,
    **filters: Any,
) -> int:
    """Show what inspection finds in WORKLOAD (`name` or `kind/name`) as it comes, until Ctrl-C.

    One line for each alert of an inspection policy, for what is not inspected, for each TLS connection, and for each
    request that matches, with the status of its answer. Requests are shown whether or not a policy applies to the port.
    Bodies, credentials, values of queries, and what a policy redacts are never shown.

    --output eve prints records as Suricata writes them, one JSON object on a line, and notes on standard error.

    With --egress, of the connections that the pods make: alerts, what is not inspected, each TLS connection with the
    name of its server, and each request in clear, whether or not a policy is about them. While it lasts, connections to
    external addresses pass the pod's proxy.

    In a cluster it needs ClusterRole sidestep-auditor in the namespace.

    \b
      sidestep inspect orders -n shop
      sidestep inspect orders -n shop --egress
      sidestep inspect orders -n shop --alerts --output eve >> alerts.json
    """
    try:
        wanted = filter_of(filters)
        seconds = parse_duration(duration, minimum=0.1, maximum=LONGEST, subject="--for") if duration else 0.0
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
        records="alerts" if alerts else "all",
        pod=pod,
        reset_existing=reset_existing,
        egress=egress,
    )
    what = "Alerts" if alerts else "Alerts and requests"
    text = f"{what} ({describe_filter(wanted)}) of {workload}, {places(ports)}. Ctrl-C ends it."
    inspection = LiveInspection(text, output=output, seconds=seconds)
    return run(
        specs,
        backend=backend,
        handler=RecordHandler(inspection.take),
        report=inspection.reporter,
        limit=inspection,
    )


class LiveInspection:
    """Prints records and notes. A `foreground.Limit`, reached `seconds` after the beginning (0: never)."""

    def __init__(self, text: str, *, output: str, seconds: float) -> None:
        self._text = text
        self._output = output
        self._seconds = seconds
        self._shown = RecordText(colour=output == "text" and has_colour())
        self._writer: LineWriter | None = None
        self._notes: LineWriter | None = None
        self._report: InspectionReport | None = None
        self._records = 0

    def reporter(self, writer: LineWriter) -> InspectionReport:
        """Return the reporter of the sessions."""
        self._writer = self._notes = writer
        if self._output == "eve":
            self._notes = LineWriter(STDERR, on_closed=lambda: None)
        self._report = InspectionReport(self._notes, self._text, as_json=self._output == "json")
        return self._report

    async def take(self, record: Record, line: str) -> None:
        """Print a record; waits while the output has no room."""
        assert self._writer is not None  # noqa: S101 - sessions have a reporter
        text = self._shown.line(record) if self._output == "text" else harmless_json(line)
        if text:
            self._records += 1
            await self._writer.room()
            self._writer.line(text)

    async def reached(self) -> None:
        """As Limit.reached."""
        assert self._report is not None  # noqa: S101 - sessions have a reporter
        await self._report.active.wait()
        if self._seconds:
            await asyncio.sleep(self._seconds)
        else:
            await asyncio.Event().wait()

    async def aclose(self) -> None:
        """As Limit.aclose."""
        if self._report is not None:
            lost = self._report.lost
            self._report.say(f"{self._records} records" + (f"; {lost} more were not shown." if lost else "."))
        if self._notes is not None and self._notes is not self._writer:
            self._notes.close()


class InspectionReport(PortSessionsReport):
    """It says what is not shown."""

    def __init__(self, writer: LineWriter, text: str, *, as_json: bool) -> None:
        super().__init__(text)
        self._writer = writer
        self._json = as_json
        self.lost = 0
        """Records that are not shown."""

    def event(self, event: AnyEvent) -> None:
        """As SessionObserver.event."""
        super().event(event)
        match event:
            case Lost():
                self.lost += event.count
                if self._json:
                    self._writer.line(json_line(event))
                else:
                    self.say(f"{event.count} records of pod {event.pod} are not shown: {_why(event.reason)}")
            case Dropped():
                self.say(f"{event.count} notes are not shown: they came faster than they could be printed")

    def say(self, text: str) -> None:
        """Print a line, in JSON as a note."""
        self._writer.line(json_line({"event": "note", "text": text}) if self._json else harmless(text))


def _why(reason: str) -> str:
    return _WHY.get(reason, reason)


def has_colour() -> bool:
    """Whether standard output is a terminal on which colours are wanted (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
