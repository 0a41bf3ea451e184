"""Finds the records of an alert in a cluster: the daemon of the pod's node knows the last alerts of its pods.

Which pod an alert is about is not in its id. So this asks the daemons of all workloads of a namespace to which policies
apply, as the statuses of the policies say, by an `Inspection` for each with the alert's id: `node.sessions.registry`
tells such a session what it knows before anything else. The right is that of `sidestep inspect`.

    found       the records of one exchange come together; TOGETHER seconds after the first the search ends
    not there   nothing has come QUIET seconds after all sessions became active, or WHOLE seconds after the beginning
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sidestep.aio.time_limit import time_limit
from sidestep.cli.cluster_policies import inspected_workloads
from sidestep.cli.foreground import run
from sidestep.cli.port_sessions import PortSessionsReport, port_specs
from sidestep.laptop.records import RecordHandler
from sidestep.model.errors import RefusedError
from sidestep.model.filter import Filter
from sidestep.policy.workloads import parse_workload

if TYPE_CHECKING:
    from sidestep.cli.cluster_policies import InspectedWorkloads
    from sidestep.cli.output import LineWriter
    from sidestep.kube.access import ClusterAccess
    from sidestep.protocols.eve_records import Record
    from sidestep.tunnel.messages import SessionSpec

MOST: Final = 32
"""Workloads that are asked about at once."""
MAX_RECORDS: Final = 64
"""Records of one id that are taken."""
TOGETHER: Final = 0.5
QUIET: Final = 4.0
WHOLE: Final = 40.0
STDERR: Final = 2


def search(access: ClusterAccess, alert_id: str, *, namespace: str, workload: str) -> tuple[Record, ...]:
    """Return the records of an alert. `workload` (`name` or `kind/name`) narrows the search; empty: all.

    Raises RefusedError where there is no such alert, ClusterError, and what `foreground.run` raises.
    """
    known = asyncio.run(inspected_workloads(access, namespace))
    specs = specs_of(known, alert_id, namespace=namespace, workload=workload)
    searching = _Search(alert_id)
    run(
        specs,
        backend=access,
        handler=RecordHandler(searching.take),
        report=searching.reporter,
        limit=searching,
        descriptor=STDERR,
    )
    if not searching.records:
        more = " (and there are more than the statuses of the policies name)" if known.is_cut else ""
        raise RefusedError(
            f"{alert_id} is none of the last alerts of the workloads with policies in namespace {namespace}{more}. "
            "Earlier ones stand in the EVE log of the pod's node: --eve FILE"
        )
    return tuple(searching.records)


def specs_of(known: InspectedWorkloads, alert_id: str, *, namespace: str, workload: str) -> list[SessionSpec]:
    """The session of each workload, about one of its ports. Raises RefusedError where there are none, or too many."""
    places = known.places
    if workload:
        wanted = parse_workload(workload)
        places = {name: port for name, port in places.items() if wanted.means(*name.split("/", 1))}
    if not places:
        what = f"{workload} in namespace {namespace}" if workload else f"a workload of namespace {namespace}"
        raise RefusedError(
            f"no inspection policy applies to {what}, as far as you may read them: choose another namespace with -n, "
            "or give records with --eve"
        )
    if len(places) > MOST:
        raise RefusedError(
            f"{len(places)} workloads of namespace {namespace} have policies: choose one with --workload"
        )
    specs = []
    for name, port in places.items():
        specs += port_specs(
            [port], Filter(), namespace=namespace, workload=name, records="alerts", alert=alert_id, egress=not port
        )
    return specs


class _Search:
    """A `foreground.Limit`: see the module."""

    def __init__(self, alert_id: str) -> None:
        self._id = alert_id
        self._found = asyncio.Event()
        self._report: _NoReport | None = None
        self.records: list[Record] = []

    def reporter(self, _writer: LineWriter) -> PortSessionsReport:
        """Return the reporter of the sessions."""
        self._report = _NoReport("")
        return self._report

    async def take(self, record: Record, _line: str) -> None:
        """Take a record of any session."""
        decided = record.sidestep
        if decided is None or decided.id != self._id or record.fileinfo is not None:
            return
        if record not in self.records and len(self.records) < MAX_RECORDS:
            self.records.append(record)
        self._found.set()

    async def reached(self) -> None:
        """As Limit.reached."""
        assert self._report is not None  # noqa: S101 - sessions have a reporter
        try:
            async with time_limit(WHOLE):
                nothing = asyncio.create_task(_after(self._report.active, QUIET), name="quiet")
                found = asyncio.create_task(_after(self._found, TOGETHER), name="found")
                try:
                    await asyncio.wait({nothing, found}, return_when=asyncio.FIRST_COMPLETED)
                    if self._found.is_set():
                        await found
                finally:
                    nothing.cancel()
                    found.cancel()
        except TimeoutError:
            pass

    async def aclose(self) -> None:
        """As Limit.aclose."""


async def _after(event: asyncio.Event, seconds: float) -> None:
    await event.wait()
    await asyncio.sleep(seconds)


class _NoReport(PortSessionsReport):
    """Says nothing: what goes wrong ends the search with an error."""

    def say(self, text: str) -> None:
        """As PortSessionsReport.say."""
