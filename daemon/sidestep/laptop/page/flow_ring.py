"""The requests that the page shows: the newest `CAPACITY` of all sessions, in memory, for as long as the command runs.

A flow is added when its request is told, and changed when more becomes known (its answer, or that it was lost). Every
addition and every change gives it the next *version*, a number that only grows. A reader asks for what has a version
above the last one it has seen, and thus needs no queue of its own: a slow reader skips what was replaced meanwhile, and
a reader that comes back continues where it was.

Bodies are kept beside that, in BODIES bytes: `_bodies` has the ids of flows with one, in the order in which they came.

Invariants: at most `CAPACITY` flows, none with an id below `_first`; versions are unique; `_by_version` has one entry
per flow, in ascending order of its version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from sidestep.laptop.recorded_body import Body
from sidestep.tunnel.messages import Request, TlsFacts

CAPACITY: Final = 10_000
"""Flows that are kept; the oldest go first. What is kept of one is bounded by the tunnel's message, 64 KiB."""
BODY: Final = 64 * 1024
"""Bytes of a body that are kept."""
BODIES: Final = 32 * 1024 * 1024
"""Bytes of all bodies that are kept, with their trailers; the oldest go first."""
BATCH: Final = 500
"""Flows that a reader gets at once."""

Fields = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class ShownFlow:
    """One request, with its answer once there is one. All texts of it are from the network."""

    id: int
    session: str
    """What shows it: `flows orders:8443`."""
    request: Request
    body: Body | None = None
    """The request's body, at most BODY bytes of it; None where it was not recorded, or is kept no longer."""


class ShownRow(msgspec.Struct, omit_defaults=True):
    """What the table of the page has of a flow: all that it can be searched for.

    `time` is in seconds since 1970, by the node's clock; `status` 0: there is no answer, or it is not known;
    `seconds` from the request's head to the end of the answer; `received` are bytes of the answer's body.
    """

    id: int
    time: float
    session: str
    pod: str
    port: int
    client: str
    method: str
    path: str
    authority: str
    copied: bool = False
    lost: str = ""
    fields: Fields = ()
    status: int = 0
    seconds: float = 0.0
    received: int = -1
    by: str = ""
    """Who answered: `app`, `handler`, `sidestep`; empty while it is not known."""
    handler: str = ""
    ended: str = ""
    """How it ended, if not in order."""
    trace: str = ""


class ShownDetails(ShownRow, omit_defaults=True):
    """What the page has of the flow that is open."""

    client_port: int = 0
    server: str = ""
    protocol: str = ""
    tls: bool = False
    tls_facts: TlsFacts | None = None
    sent: int = -1
    """Bytes of the request's body."""
    answer: Fields = ()
    """Fields of the answer's head."""
    body: bytes | None = None
    """The bytes of `ShownFlow.body`; in JSON they are base64."""


_OF_REQUEST: Final = (
    "time", "pod", "port", "client", "method", "path", "authority", "copied", "lost", "fields", "trace",
)  # fmt: skip


class Changes(msgspec.Struct):
    """What a reader has not seen. `oldest`: flows with a lower id are gone. `cleared` changes when all were removed."""

    version: int
    oldest: int
    cleared: int
    rows: list[ShownRow]


class FlowRing:
    """See the module."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._flows: dict[int, ShownFlow] = {}
        """By id, which is the order in which they came."""
        self._versions: dict[int, int] = {}
        """By id."""
        self._by_version: dict[int, int] = {}
        """Ids by version, ascending."""
        self._next_id = 1
        self._first = 1
        """Flows with a lower id are gone."""
        self._version = 0
        self._cleared = 0
        self._bodies: dict[int, None] = {}
        """The flows that have one, in the order in which these came."""
        self._size = 0
        """Of the bodies of flows in `_bodies`, with their trailers."""

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[ShownFlow]:
        return iter(self._flows.values())

    def new_id(self) -> int:
        """The id for the next flow."""
        found = self._next_id
        self._next_id += 1
        return found

    def get(self, number: int) -> ShownFlow | None:
        """The flow with this id; None when there is none, or no longer."""
        return self._flows.get(number)

    def put(self, flow: ShownFlow) -> None:
        """Add a flow with an id from `new_id`, or tell that one has changed. One that is gone stays gone."""
        if flow.id < self._first:
            return
        if flow.id not in self._flows:
            self._flows[flow.id] = flow
            if len(self._flows) > self._capacity:
                self._forget(next(iter(self._flows)))
        self._by_version.pop(self._versions.get(flow.id, 0), None)
        self._version += 1
        self._versions[flow.id] = self._version
        self._by_version[self._version] = flow.id

    def put_body(self, flow: ShownFlow, body: Body) -> None:
        """Keep the beginning of a flow's body, if the flow is kept and has none yet, and tell that it has changed."""
        if flow.id not in self._flows or flow.body is not None:
            return
        flow.body = body.beginning(BODY)
        self._bodies[flow.id] = None
        self._size += flow.body.size
        while self._size > BODIES:
            self._drop_body(self._flows[next(iter(self._bodies))])
        self.put(flow)

    def clear(self) -> None:
        """Forget all flows. Answers of requests before it are not shown."""
        self._first = self._next_id
        self._bodies.clear()
        self._size = 0
        self._flows.clear()
        self._versions.clear()
        self._by_version.clear()
        self._version += 1
        self._cleared += 1

    def changes(self, after: int) -> Changes:
        """What has a version above `after`, oldest first, at most BATCH; `version` is where to go on."""
        found: list[int] = []
        for version in reversed(self._by_version):
            if version <= after:
                break
            found.append(version)
        found.reverse()
        chosen = found[:BATCH]
        return Changes(
            version=chosen[-1] if len(chosen) < len(found) else self._version,
            oldest=self._first,
            cleared=self._cleared,
            rows=[_row(self._flows[self._by_version[version]]) for version in chosen],
        )

    @property
    def version(self) -> int:
        """The version of the last change."""
        return self._version

    def _forget(self, number: int) -> None:
        self._first = number + 1
        self._drop_body(self._flows.pop(number))
        self._by_version.pop(self._versions.pop(number, 0), None)

    def _drop_body(self, flow: ShownFlow) -> None:
        self._bodies.pop(flow.id, None)
        if flow.body is not None:
            self._size -= flow.body.size
            flow.body = None


def details(flow: ShownFlow) -> ShownDetails:
    """All that is known of a flow."""
    request, answer = flow.request, flow.request.answer
    return ShownDetails(
        **_known(flow),
        client_port=request.client_port,
        server=request.server,
        protocol=request.protocol,
        tls=request.tls,
        tls_facts=request.tls_facts,
        sent=-1 if answer is None else answer.sent,
        answer=() if answer is None else tuple(_fields(answer.head)),
        body=None if flow.body is None else flow.body.data,
    )


def _row(flow: ShownFlow) -> ShownRow:
    return ShownRow(**_known(flow))


def _known(flow: ShownFlow) -> dict[str, Any]:
    """The values of a row."""
    request, answer = flow.request, flow.request.answer
    known: dict[str, Any] = {name: getattr(request, name) for name in _OF_REQUEST}
    known |= {"id": flow.id, "session": flow.session}
    if answer is not None:
        known |= {
            "status": answer.status,
            "seconds": answer.seconds,
            "received": answer.received,
            "by": answer.by,
            "handler": answer.handler,
            "ended": "" if answer.whole and answer.status else "broke off" if answer.status else "no answer",
        }
    return known


def _fields(head: str) -> Iterator[tuple[str, str]]:
    """The field lines of an answer, which are separated by CR LF."""
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        if name:
            yield name, value.strip()
