"""A watch: list, then follow changes, without end (https://kubernetes.io/docs/reference/using-api/api-concepts/,
"Efficient detection of changes").

A `Sink` receives one `replace` per list (all objects; others are gone) and one `apply` or `remove` per later change.
The resourceVersion advances with every event and bookmark, so that a broken watch resumes where it ended; 410 Gone
starts a new list. While the API server is unreachable the sink keeps its objects.

`paths` are alternatives, newest version first: after a 404 the next one is used. When access is forbidden, or no path
exists, `problem` is set and attempts continue slowly; a sink that has received nothing yet gets an empty `replace`.
That no path of an `optional` collection exists is no problem: its definition is not installed. If it was there before,
the sink gets an empty `replace` after `WatchLimits.absent`: an API server that starts may not know it at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from sidestep.config.schema_fault import fault_of
from sidestep.kube.api import JSON, Api
from sidestep.kube.errors import ApiError, UnreachableClusterError
from sidestep.model.errors import ClusterError
from sidestep.observability.logs import get_logger

METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

KubeObject = Mapping[str, Any]


class WatchLimits(msgspec.Struct, frozen=True):
    """Parameters of a watch, in seconds unless noted otherwise."""

    page: int = 500
    """Objects per page of a list."""
    duration: float = 300.0
    """The server ends a watch after this time, extended by up to half of it; the next watch resumes it."""
    first_pause: float = 0.2
    last_pause: float = 10.0
    """Longest pause between attempts while the server is unreachable; pauses double, with jitter."""
    first_refused_pause: float = 1.0
    refused_pause: float = 15.0
    """Longest pause between attempts while access is forbidden or the resource does not exist. Both can change
    later."""
    absent_pause: float = 30.0
    """Longest pause between looks for an optional collection that is absent, on each node of the cluster."""
    absent: float = 30.0
    """Time for which an optional collection has to be absent before its objects are taken as gone."""


class Sink(Protocol):
    """Receives the objects of a watch. Must not raise."""

    def replace(self, objects: list[KubeObject], /) -> None:
        """Replace everything by these objects."""

    def apply(self, value: KubeObject, /) -> None:
        """Add or update an object."""

    def remove(self, value: KubeObject, /) -> None:
        """Remove an object."""


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[dict[str, Any]] | None = None
    rows: list[dict[str, Any]] | None = None
    """Rows of a Table."""


class _Event(msgspec.Struct):
    type: str
    object: dict[str, Any]


class _Expired(Exception):  # noqa: N818 - a step of the algorithm, not an error of anybody
    """The resourceVersion has expired."""


_LISTS = msgspec.json.Decoder(_List)
_EVENTS = msgspec.json.Decoder(_Event)


@dataclass(slots=True)
class Watch:
    """A watch of one collection. `run` never ends; calls `on_state` when `synced`, `connected` or `problem` changes."""

    api: Api
    paths: tuple[str, ...]
    sink: Sink
    query: Mapping[str, str] = field(default_factory=dict)
    metadata_only: bool = False
    as_table: bool = False
    """Request a Table without objects (`includeObject=None`), which contains only what `kubectl get` prints. The sink
    receives rows from a list, and a Table with one row from an event."""
    optional: bool = False
    """Whether the collection may be absent."""
    on_state: Callable[[], None] = lambda: None
    limits: WatchLimits = field(default_factory=WatchLimits)
    synced: bool = False
    """Whether the sink has received a list, or an empty one because nothing can be read."""
    connected: bool = False
    """Whether changes are being received."""
    problem: ApiError | None = None
    """The API server's refusal when nothing can be read."""
    _version: str = ""
    _path: int = 0
    _pause: float = 0.0
    _refused_pause: float = 0.0
    _absent_since: float | None = None
    """Event loop's time since which an optional collection is absent; None while it is there."""

    async def run(self) -> None:
        """List and follow until cancelled."""
        log = get_logger("watch").bind(path=self.paths[self._path], **self.query)
        self._pause = self.limits.first_pause
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._follow()
            except _Expired:
                self._version = ""
                pause = self.limits.first_pause
            except ApiError as error:
                if self.optional and error.status == 404:
                    pause = self._absent()
                else:
                    pause = self._refused(error)
                    log.warning("watch refused", status=error.status, reason=str(error))
            except UnreachableClusterError as error:
                pause, self._pause = self._pause, min(2 * self._pause, self.limits.last_pause)
                if self.connected or not self.synced:
                    log.warning("watch broken", reason=str(error))
            else:
                continue  # the server ended the watch after the requested time
            self._state(connected=False)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, no secret

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _list(self) -> None:
        found: list[KubeObject] = []
        version, token = "", ""
        accept = TABLE if self.as_table else METADATA_LIST if self.metadata_only else JSON
        while True:
            query: dict[str, str | int] = {**self._query(), "limit": self.limits.page}
            if token:
                query["continue"] = token
            try:
                page = _decoded(_LISTS, await self.api.get(self.paths[self._path], query, accept=accept))
            except ApiError as error:
                if error.gone:
                    raise _Expired from error
                if error.status == 404 and self._path + 1 < len(self.paths):
                    self._path += 1
                    continue
                raise
            found += page.items or page.rows or ()
            version, token = page.metadata.resource_version, page.metadata.continue_
            if not token:
                break
        self._version = version
        self._absent_since = None
        self.sink.replace(found)
        self._refused_pause = 0.0
        self._state(connected=True, synced=True, problem=None)

    async def _follow(self) -> None:
        duration = int(self.limits.duration * random.uniform(1.0, 1.5)) or 1  # noqa: S311 - jitter, no secret
        query: dict[str, str | int] = {
            **self._query(),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": duration,
        }
        accept = TABLE if self.as_table else METADATA if self.metadata_only else JSON
        try:
            async with self.api.stream(self.paths[self._path], query, accept=accept) as lines:
                self._state(connected=True, synced=True, problem=None)
                async for line in lines:
                    self._event(_decoded(_EVENTS, line))
                    self._pause = self.limits.first_pause
        except ApiError as error:
            if error.gone:
                raise _Expired from error
            raise

    def _query(self) -> Mapping[str, str]:
        return {**self.query, "includeObject": "None"} if self.as_table else self.query

    def _event(self, event: _Event) -> None:
        if event.type == "ERROR":
            code = event.object.get("code")
            if code == 410:
                raise _Expired
            message = str(event.object.get("message", "the watch failed"))
            raise ApiError(code if isinstance(code, int) else 500, str(event.object.get("reason", "")), message)
        version = (event.object.get("metadata") or {}).get("resourceVersion")
        match event.type:
            case "ADDED" | "MODIFIED":
                self.sink.apply(event.object)
            case "DELETED":
                self.sink.remove(event.object)
            case _:
                pass  # a bookmark contains only a version
        if isinstance(version, str) and version:
            self._version = version

    def _absent(self) -> float:
        """The optional collection does not exist (any more)."""
        now = asyncio.get_running_loop().time()
        if self._absent_since is None:
            self._absent_since = now
        gone = self.synced and now - self._absent_since >= self.limits.absent
        unknown = not self.synced
        self._version, self._path = "", 0
        self._state(connected=False, synced=True, problem=None)
        if unknown or gone:
            self._absent_since = now
            self.sink.replace([])
        return self._slowly(self.limits.absent_pause)

    def _refused(self, error: ApiError) -> float:
        if not error.forbidden and error.status != 404:
            pause, self._pause = self._pause, min(2 * self._pause, self.limits.last_pause)
            return pause
        self._version, self._path = "", 0
        unknown = not self.synced
        self._state(connected=False, synced=True, problem=error)
        if unknown:
            self.sink.replace([])
        return self._slowly(self.limits.refused_pause)

    def _slowly(self, longest: float) -> float:
        """The next pause, twice as long as the one before it."""
        pause = max(self._refused_pause, self.limits.first_refused_pause)
        self._refused_pause = min(2 * pause, longest)
        return min(pause, longest)

    def _state(self, *, connected: bool, synced: bool | None = None, problem: ApiError | None = None) -> None:
        before = (self.connected, self.synced, self.problem)
        self.connected = connected
        if synced is not None:
            self.synced, self.problem = synced, problem
        if before != (self.connected, self.synced, self.problem):
            self.on_state()


def _decoded(decoder: msgspec.json.Decoder[Any], data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreachableClusterError(f"the API server's answer cannot be read: {fault_of(error)}") from error


def decode(data: bytes, kind: type[Any]) -> Any:
    """Decode JSON of the API server into a struct. Raises ClusterError."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ClusterError(f"the API server's answer cannot be read: {fault_of(error)}") from error
