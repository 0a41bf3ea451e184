"""The EVE log of a node: takes records of pod proxies, checks and bounds them, and has them written.

Where they go is a setting of the node (`sidestep.dev/eve`), or in local mode a path of the command line. A sink is
opened when the first record comes, so a node on which no policy finds anything has no log. Nothing here ever waits:
what finds no room, and what cannot be written, is counted by reason in `counts`, and the counts stand in a record of
type `stats` every STATS seconds in which anything happened.

    received            records that proxies sent
    refused             ... of them, those that a proxy may not send (`checking`)
    dropped_node        ... those above RATE bytes a second for the whole node
    dropped_full        ... those that found no room beside others that wait to be written (`writer`)
    dropped_output      ... those that could not be written: a full disk, a reader that is absent or does not read
    dropped_REASON      records that proxies did not send (`proxy.control.record_queue`; `connection`: too many of one)
    ids_alerts          lines that Suricatas said; of them `ids_refused` were no alerts of a rule of the pod
    ids_restarts        Suricatas that ended and were started again: what came meanwhile was not seen by one
    written             lines that were written
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sidestep.aio.token_bucket import TokenBucket
from sidestep.config.node_settings import EveOutput
from sidestep.node.records.alert_notes import AlertNotes
from sidestep.node.records.checking import checked, decode, whose
from sidestep.node.records.recent_alerts import RecentAlerts
from sidestep.node.records.sinks import DescriptorSink, FileSink, Sink, SocketSink
from sidestep.node.records.writer import FAREWELL, Writer
from sidestep.observability.logs import get_logger
from sidestep.protocols import eve
from sidestep.protocols.eve_records import Kubernetes, Record, RecordedAction

if TYPE_CHECKING:
    from sidestep.model.pod import Pod, PodKey
    from sidestep.node.records.checking import Rules
    from sidestep.node.records.presence import Absence
    from sidestep.proxy.control.messages import Records

FILE: Final = Path("/var/log/sidestep/eve.json")
SOCKET: Final = Path("/run/sidestep/eve.sock")
STDOUT: Final = "-"
"""The path that stands for standard output."""
RATE: Final = 16 * 1024 * 1024
"""Bytes of lines a second, of all pods together ..."""
BURST: Final = 16 * 1024 * 1024
"""... and at once."""
STATS: Final = 30.0
"""Seconds between two records of type `stats`."""
LOOK: Final = 2.0
"""Seconds between two looks at whether lines are written."""
_REASONS: Final = frozenset(("connection", "rate", "room", "size", "daemon"))
_MOST: Final = 1 << 32
"""Records that a proxy may say at once that it did not send."""


class EveLog:
    """See the module. `path` is where local mode has records written, whatever the node's setting says.

    `on_problem` is called when records cannot be written, with the reason, and with "" once they can. `names` returns
    what rules of the Core Rule Set say, by id.
    """

    def __init__(
        self,
        *,
        node: str,
        path: Path | None = None,
        on_problem: Callable[[str], None] = lambda _text: None,
        names: Callable[[], Mapping[int, str]] = dict,
    ) -> None:
        self._names = names
        self._node = node
        self._on_problem = on_problem
        self._path = path
        self._output = EveOutput.OFF
        self._writer: Writer | None = None
        self._bucket = TokenBucket(rate=RATE, burst=BURST, now=time.monotonic())
        self._began = time.monotonic()
        self._told: dict[str, int] = {}
        self._problem = ""
        self._log = get_logger("records")
        self.alerts = AlertNotes()
        """What Events tell of alerts; who posts none never asks."""
        self.recent = RecentAlerts()
        """The last ones; sessions that get records note theirs, too (`records.live`)."""
        self.counts: Counter[str] = Counter(written=0, dropped_output=0)
        """See the module. The thread of the writer counts under these two, too."""

    @property
    def wanted(self) -> bool:
        """Whether anybody reads records, so that pod proxies should make them."""
        return self._path is not None or self._output is not EveOutput.OFF

    def use(self, output: EveOutput) -> None:
        """Write to this from now on."""
        if output is self._output:
            return
        self._output = output
        if self._path is None and self._writer is not None:
            self._writer.finish()
            self._writer = None

    def take(self, pod: Pod, message: Records, rules: Rules) -> None:
        """Take records of a pod's proxy. Raises PeerError for what is no record."""
        for reason, count in message.dropped.items():
            if 0 < count < _MOST:
                self.counts[f"dropped_{reason if reason in _REASONS else 'other'}"] += count
        self.counts["received"] += len(message.records)
        now = time.time_ns()
        kubernetes, names = self._kubernetes(pod), self._names()
        lines = []
        try:
            for data in message.records:
                made = checked(decode(data), rules=rules, kubernetes=kubernetes, now=now, names=names)
                if made is None:
                    self.counts["refused"] += 1
                else:
                    line = eve.encode(made)
                    self._note(pod.key, made)
                    self.recent.note(made, line)
                    lines.append(line)
        finally:
            self._write(*lines)

    def missed(self, pod: Pod, ports: tuple[int, ...], absence: Absence) -> None:
        """Record the time for which nobody inspected these ports of a pod."""
        self._log.warning(
            "no daemon ran: ports were not inspected", pod=str(pod.key), ports=ports, seconds=round(absence.seconds, 3)
        )
        if self.wanted:
            self._write(eve.encode(eve.gap(self._kubernetes(pod), ports, absence.start, absence.end)))

    def take_alert(self, pod: Pod, make: Callable[[Kubernetes], Record | None]) -> None:
        """Take what the IDS of a pod says. `make` gets whose it is; it returns None for what is no alert, which counts
        as refused."""
        made = make(self._kubernetes(pod)) if self.wanted else None
        self.counts["ids_alerts"] += 1
        if made is None:
            self.counts["ids_refused"] += self.wanted
        else:
            self._note(pod.key, made)
            self._write(eve.encode(made))

    def ids_ended(self) -> None:
        """An IDS has ended that should run, or could not be started."""
        self.counts["ids_restarts"] += 1

    def _kubernetes(self, pod: Pod) -> Kubernetes:
        return whose(pod, self._node)

    async def run(self) -> None:
        """Tell what was counted, and of lines that are not written, until cancelled."""
        due = time.monotonic() + STATS
        while True:
            await asyncio.sleep(LOOK)
            self._tell_problem()
            if time.monotonic() >= due:
                due = time.monotonic() + STATS
                self._tell_counts()

    async def aclose(self) -> None:
        """Have what waits written, within a bounded time."""
        if self._writer is None:
            return
        self._tell_counts()
        self._writer.finish()
        deadline = time.monotonic() + FAREWELL
        while self._writer.is_alive and time.monotonic() < deadline:  # noqa: ASYNC110 - a thread, under a deadline
            await asyncio.sleep(0.01)

    def _note(self, pod: PodKey, record: Record) -> None:
        decided = record.sidestep
        if record.alert is not None and decided is not None and decided.policy and decided.rule and decided.action:
            self.alerts.note(pod, decided.policy, decided.rule, RecordedAction(decided.action))

    def _write(self, *lines: bytes) -> None:
        now = time.monotonic()
        written = [line for line in lines if len(line) <= eve.MAX_RECORD and self._bucket.take(now, len(line))]
        if len(written) < len(lines):
            self.counts["dropped_node"] += len(lines) - len(written)
        if not written:
            return
        if self._writer is None:
            sink = self._sink()
            if sink is None:
                return
            self._writer = Writer(sink, self.counts)
        self._writer.put(written)

    def _sink(self) -> Sink | None:
        if self._path is not None:
            return DescriptorSink(1) if str(self._path) == STDOUT else FileSink(self._path)
        match self._output:
            case EveOutput.FILE:
                return FileSink(FILE)
            case EveOutput.UNIX:
                return SocketSink(SOCKET)
            case EveOutput.STDOUT:
                return DescriptorSink(1)
            case _:
                return None

    def _tell_counts(self) -> None:
        counted = {name: count for name, count in self.counts.items() if name != "written"}
        if self.wanted and counted != self._told and any(counted.values()):
            self._told = counted
            shown = {f"records.{name}": count for name, count in sorted(self.counts.items())}
            uptime = {"uptime": int(time.monotonic() - self._began)}
            self._write(eve.encode(eve.stats(time.time_ns(), Kubernetes(node=self._node), uptime | shown)))

    def _tell_problem(self) -> None:
        problem = "" if self._writer is None else self._writer.problem
        if problem == self._problem:
            return
        self._problem = problem
        self._on_problem(problem)
        if problem:
            self._log.warning("records are not written", reason=problem)
        else:
            self._log.info("records are written again")
