"""`sidestep capture`: decrypted traffic of a workload as packets, in a pcapng file or a pipe.

It runs a session for each port: a wiretap whose connections come as frames (`laptop.capture`). What is left out, and
which values are redacted, is decided in the pod.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from sidestep.aio.time_limit import time_limit
from sidestep.cli.backend import Backend, backend_options, namespace_for
from sidestep.cli.command import POD_NAME, Command, FilePath, WorkloadType
from sidestep.cli.filtering import filter_of, filter_options
from sidestep.cli.foreground import run
from sidestep.cli.options import PortNameType, egress_option, namespace_option
from sidestep.cli.output import LineWriter
from sidestep.cli.port_sessions import PortSessionsReport, port_specs
from sidestep.cli.readable_ports import listened_ports, places
from sidestep.cli.service_workloads import resolve_service
from sidestep.config.capture import DEFAULT_BYTES, DEFAULT_DURATION, MAX_BYTES, duration_of
from sidestep.config.filters import describe_filter
from sidestep.laptop.capture import CaptureFile, CaptureHandler
from sidestep.laptop.capture_target import CaptureTarget
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.text import harmless
from sidestep.tunnel.messages import AnyEvent, Lost

STDERR = 2
MIB = 1024 * 1024


@click.command(cls=Command, short_help="Write decrypted traffic of a workload as packets.")
@click.argument("workload", type=WorkloadType())
@click.option(
    "--write",
    "-w",
    "target",
    type=FilePath(),
    required=True,
    metavar="FILE",
    help="File to write (pcapng), - for standard output.",
)
@click.option(
    "--for",
    "duration",
    default=DEFAULT_DURATION,
    show_default=True,
    metavar="TIME",
    help="End after this time, like 60s.",
)
@click.option(
    "--max-size",
    type=click.IntRange(1, MAX_BYTES // MIB),
    default=DEFAULT_BYTES // MIB,
    show_default=True,
    metavar="MIB",
    help="End at this size of the file.",
)
@click.option(
    "--snap",
    type=click.Choice(["heads", "all"]),
    default="heads",
    show_default=True,
    help="heads: no bodies, secrets redacted. all: every byte.",
)
@click.option("--port", "-p", type=PortNameType(), default="", metavar="PORT", help="Only this port. [default: all]")
@egress_option
@filter_options
@click.option("--reset-existing", is_flag=True, help="Close existing connections, so that their clients connect again.")
@namespace_option
@click.option("--pod", type=POD_NAME, default="", metavar="POD", help="Only this pod of the workload.")
@backend_options
def capture(
    workload: str,
    target: Path,
    duration: str,
    max_size: int,
    snap: str,
    port: str,
    egress: bool,
    reset_existing: bool,
    namespace: str | None,
    pod: str,
    backend: Backend,
    **filters: Any,
) -> int:
    """Capture decrypted traffic of WORKLOAD (`name` or `kind/name`) until Ctrl-C.

    The file has the bytes that clients and app exchange as TCP packets in clear text, one interface for each pod. They
    are made up from what the pod's proxy relays: addresses, ports and order are the real ones, segments are not. Only
    connections that begin after the capture are in it.

    With --snap heads (the default) messages have no bodies, and the values of authorization, cookie, set-cookie,
    proxy-authorization, of queries, and of fields that a policy redacts are replaced in the pod. With --snap all
    nothing is left out or replaced: the file holds passwords, tokens and personal data. Without a filter it has every
    connection as it is, of any protocol; with one, the requests that match and their responses.

    A capture never delays the workload. What finds no room is left out: a gap in the sequence numbers, and counted.
    The node daemons end it after --for, and where --max-size is reached, at the latest. FILE is made when the capture
    begins, readable by its owner only; it takes the place of a file of that name.

    With --egress, of the connections that the pods make, as they pass: what a pod encrypts stays encrypted. It needs
    --snap all and no filter. While it lasts, connections to external addresses pass the pod's proxy.

    In a cluster it needs ClusterRole sidestep-capturer in the namespace, where an Event tells of it.

    \b
      sidestep capture orders -n shop -w heads.pcapng --for 60s
      sidestep capture orders -n shop -p https --snap all -w - | tshark -r - -d tcp.port==8443,http2
    """
    try:
        wanted = filter_of(filters)
        seconds = duration_of(duration, subject="--for")
    except (ConfigurationError, RefusedError) as error:
        raise click.UsageError(str(error)) from error
    place = CaptureTarget(target, standard_output=sys.stdout.fileno())
    place.check()
    namespace = namespace_for(backend, namespace)
    workload = resolve_service(backend, namespace, workload)
    whole = snap == "all" and wanted.is_global
    ports = listened_ports(backend, namespace, workload, port, egress=egress, whole=whole)
    specs = port_specs(
        ports,
        wanted,
        namespace=namespace,
        workload=workload,
        capture="all" if snap == "all" else "heads",
        duration=seconds,
        max_bytes=max_size * MIB,
        pod=pod,
        reset_existing=reset_existing,
        egress=egress,
    )
    text = f"Capturing {snap} ({describe_filter(wanted)}) of {workload}, {places(ports)}. Ctrl-C ends it."
    file = CaptureFile(place, max_bytes=max_size * MIB, comment=f"{namespace}/{workload}, {snap}")
    limit = CaptureLimit(file, seconds, text)
    return run(
        specs,
        backend=backend,
        handler=CaptureHandler(file),
        report=limit.reporter,
        limit=limit,
        descriptor=STDERR,
    )


class CaptureLimit:
    """Begins the file once a session is active; ends the capture `seconds` after all are, or when the file takes no
    more. The node daemons end it, too; this also ends it where none answers any more. A `foreground.Limit`.
    """

    def __init__(self, file: CaptureFile, seconds: float, text: str) -> None:
        self._file = file
        self._seconds = seconds
        self._text = text
        """Said when the capture has begun."""
        self._report: CaptureReport | None = None

    def reporter(self, writer: LineWriter) -> CaptureReport:
        """Return the reporter of the sessions."""
        self._report = CaptureReport(writer, self._file)
        return self._report

    async def reached(self) -> None:
        """As Limit.reached."""
        assert self._report is not None  # noqa: S101 - sessions have a reporter
        await self._report.begun.wait()
        await self._file.begin()
        await self._report.active.wait()
        self._report.say(self._text)
        try:
            async with time_limit(self._seconds):
                await self._file.full.wait()
        except TimeoutError:
            return
        self._report.say(f"Ended: {self._file.reason}.")

    async def aclose(self) -> None:
        """As Limit.aclose."""
        await self._file.aclose()
        if self._report is not None and self._file.has_begun:
            self._report.conclude()


class CaptureReport(PortSessionsReport):
    """It says how the capture goes."""

    def __init__(self, writer: LineWriter, file: CaptureFile) -> None:
        super().__init__("")
        self._writer = writer
        self._file = file
        self.begun = asyncio.Event()
        """Set once a session is active."""

    def joined(self) -> None:
        """As PortSessionsReport.joined."""
        self.begun.set()
        super().joined()

    def event(self, event: AnyEvent) -> None:
        """As SessionObserver.event."""
        super().event(event)
        if isinstance(event, Lost):
            self._file.lost[event.pod] += event.count

    def conclude(self) -> None:
        """Say what was captured, and what was not."""
        file = self._file
        self.say(f"{file.packets.total()} packets of {file.connections} connections, {file.size} bytes.")
        if file.lost_bytes or file.lost:
            self.say(
                f"Not captured, because there was no room: {file.lost_bytes} bytes of them, and "
                f"{file.lost.total()} requests, connections or their rest."
            )

    def say(self, text: str) -> None:
        """Print a line."""
        self._writer.line(harmless(text))
