"""The certificates of ports that are to be opened: read on demand, watched for changes. Keys never enter this process.

In: what the plan wants (one side of one port of one pod, by path or by Secret). Out: `facts`, the names of usable
credentials for the planner; `entry`, for `sidestep list`; conditions; and a `credential` per name, whose source a
one-shot child *reads again* whenever a pod proxy needs it.

Holders of a private key: the one-shot child (`one_shot`), from reading the file to writing the memfd; the kernel, as
the memfd, while its descriptor passes through this process; the pod's proxy, while a port needs the key. This process
receives public facts and descriptors; it neither reads nor maps the latter (docs/design.md, "Keys").

States of a certificate, and what leads from one to another:

    wanted     nobody has looked for it; it has no facts, and its pod waits
               -> pending, usable or unusable by the first look, which follows at once
    pending    it is not there yet: no container that may hold the folder has a process, or the folder is missing and
               may still be made. Its facts say so; there is no condition
               -> usable or unusable when its place moves, or its folder appears
               -> unusable when the folder is still missing `STARTING` seconds after all those containers were started,
               or `LACKING` seconds after they were seen without it first: some crash earlier, and are started again
    usable     it has an identity or a CA; read again when its stamp (a folder), version (a Secret) or place changes
               -> unusable when the source is at fault; a condition says why, the last usable certificate stays in use
               -> pending when its place is empty; the last usable certificate stays in use, until a new proxy needs it
    unusable   a condition says why; read again as a usable one
               -> usable; or pending, when its place is empty, and what was said of it stays
    forgotten  neither wanted nor expected for `RETAIN` seconds; its conditions are removed

The *place* of a path (`material.Place`) is the root folders of the containers that have a process, and the names of
those that have none. It moves when a container is started, restarted (another process) or ends. Each plan brings the
pods along, so a move is seen with the plan that it causes, without polling.

Looks at a pending certificate are bounded: none while its place has no folder; else one every `LOOK` seconds for
`STARTING` seconds after the place moved, without opening the folder, and the common poll from then on.

Invariants:

- A source is read only when an intercept, wiretap or policy wants its port, or is about to (`prepare`).
- Reading never delays the plan: `want` returns at once, and `on_change` reports changed facts.
- Every problem is one condition with annotation, value and reason. The last usable certificate stays in use: facts
  change only when a usable one replaces it, or when its source can no longer deliver it to a new proxy.
- A folder is stamped every `POLL` seconds without being opened (a rotation is served within 5 s). Secrets that could
  not be read are retried with one growing pause per namespace.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from msgspec.structs import replace

from sidestep.aio.tasks import Tasks
from sidestep.config.annotation_problem import AnnotationProblem
from sidestep.config.annotations import SourceKind
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import BugError, ConfigurationError, KernelError, SidestepError
from sidestep.model.pod import Pod, PodKey
from sidestep.node.certificates.material import NotYetError, Place, SecretSources, place_of, source_of
from sidestep.node.certificates.reader import ReadError
from sidestep.node.certificates.requests import Absence, Folder, IdentityFacts, ReadRequest, Summary, TrustFacts
from sidestep.node.conditions import Conditions, Source
from sidestep.node.planning.plan import CertificateFacts
from sidestep.node.proxies.desired import CredentialSource
from sidestep.policy.survey import CertificateKey, Side, WantedCertificate

POLL = 3.0
"""Seconds between two polls of the folders."""

STARTING = 10.0
"""Seconds after the start of a container in which what it lacks is not held against it: it may write its own files."""

LACKING = 60.0
"""Seconds after which what was missing whenever the containers ran is held against them, however young they are."""

LOOK = 0.5
"""Seconds between two looks at the folder of a pending certificate whose containers have just been started."""

TICKS = os.sysconf("SC_CLK_TCK")
"""Clock ticks in a second; start times of processes are in ticks."""

RETAIN = 60.0
"""Seconds for which results are kept for an intercept that may never begin."""

FIRST_RETRY, LAST_RETRY = 3.0, 60.0
"""Seconds before unreadable Secrets of a namespace are retried; doubled from the first to the last."""


class CertificateReader(Protocol):
    """The operations of `Reader` that the store uses."""

    async def stamp(self, source: Folder) -> str:
        """Return a stamp that changes with the files. Raises ConfigurationError, KernelError."""

    async def read(self, request: ReadRequest) -> tuple[Summary, int | None]:
        """Return a summary of a source, and the memfd of the requested credential. Raises ReadError, KernelError."""


class CertificateEntry(msgspec.Struct, frozen=True):
    """What is known about one certificate. `identity` and `trust` are the last usable ones."""

    wanted: WantedCertificate
    pod_uid: str
    place: Place = msgspec.field(default_factory=Place)
    read: bool = False
    stamp: str = ""
    version: str = ""
    identity: IdentityFacts | None = None
    trust: TrustFacts | None = None
    problems: tuple[str, ...] = ()
    unread: bool = False
    """Whether the last attempt to read failed, so that another may succeed."""
    pending: str = ""
    """Why it is not there yet; empty once it has been read. What was found before stays."""
    judged_at: float = math.inf
    """Time (that of `uptime`) at which a pending certificate is judged in any case."""
    lacking_since: float = math.inf
    """Time (that of `uptime`) at which all containers that may hold it ran without it first, since it was there."""

    @property
    def facts(self) -> CertificateFacts:
        """The facts that the planner uses."""
        usable = self.identity is not None or (self.trust is not None and self.wanted.key.side is Side.UPSTREAM)
        return CertificateFacts(
            identity=self.identity.name if self.identity is not None else "",
            trust=self.trust.name if self.trust is not None else "",
            dns_name=self.identity.dns_name if self.identity is not None else "",
            problem="; ".join(self.problems),
            pending="" if usable or self.problems else self.pending,
        )


@dataclass(slots=True)
class _Pause:
    """Time of the next attempt for Secrets of a namespace (loop time), and the current pause in seconds."""

    until: float
    seconds: float


@dataclass(slots=True)
class _Contents:
    """Entries, running reads, and certificates that are expected to be wanted."""

    entries: dict[CertificateKey, CertificateEntry] = field(default_factory=dict)
    reading: dict[CertificateKey, asyncio.Task[None]] = field(default_factory=dict)
    starting: dict[CertificateKey, asyncio.Task[None]] = field(default_factory=dict)
    """Tasks that look at the folders of containers which have just been started."""
    expected: dict[CertificateKey, int] = field(default_factory=dict)
    pods: Mapping[PodKey, Pod] = field(default_factory=dict)
    pauses: dict[str, _Pause] = field(default_factory=dict)


class CertificateStore:
    """The store. Calls `on_change` whenever facts change; `aclose` cancels running reads."""

    def __init__(
        self,
        *,
        reader: CertificateReader,
        secrets: SecretSources,
        conditions: Conditions,
        on_change: Callable[[], None],
        on_crash: Callable[[str, BaseException], None] | None = None,
        uptime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        """Create a store without certificates. `uptime` returns seconds since boot, as start times of processes do."""
        self._uptime = uptime
        self._reader = reader
        self._secrets = secrets
        self._conditions = conditions
        self._on_change = on_change
        self._tasks = Tasks("certificates", on_crash=on_crash)
        self._all = _Contents()

    def facts(self) -> dict[CertificateKey, CertificateFacts]:
        """Return the facts of every certificate that was looked for: usable, unusable or pending."""
        return {key: entry.facts for key, entry in self._all.entries.items() if entry.read}

    def entry(self, key: CertificateKey) -> CertificateEntry | None:
        """Return what is known about one certificate; None until it was looked for."""
        entry = self._all.entries.get(key)
        return entry if entry is not None and entry.read else None

    def want(self, wanted: Iterable[WantedCertificate], pods: Mapping[PodKey, Pod]) -> None:
        """Set the wanted certificates. Starts reading those that are new, changed or moved; forgets all others."""
        self._all.pods = pods
        keys = set(self._all.expected)
        for each in wanted:
            keys.add(each.key)
            self._want(each)
        for gone in self._all.entries.keys() - keys:
            self._forget(gone)

    def expect(self, wanted: Iterable[WantedCertificate], pods: Mapping[PodKey, Pod]) -> None:
        """Read certificates that are about to be wanted, and keep the results for `RETAIN` seconds.

        An intercept refused for its certificate thus leaves the reason in `sidestep status`.
        """
        self._all.pods = pods
        keys = []
        for each in wanted:
            self._all.expected[each.key] = self._all.expected.get(each.key, 0) + 1
            self._want(each)
            keys.append(each.key)
        if keys:
            asyncio.get_running_loop().call_later(RETAIN, self._release, keys)

    async def prepare(self, wanted: Iterable[WantedCertificate], pods: Mapping[PodKey, Pod]) -> None:
        """As `expect`; returns when all of them have facts."""
        found = tuple(wanted)
        self.expect(found, pods)
        tasks = [self._all.reading[each.key] for each in found if each.key in self._all.reading]
        if tasks:
            await asyncio.wait(tasks)

    async def poll(self) -> None:
        """Poll folders and retry unreadable sources until cancelled."""
        while True:
            await asyncio.sleep(POLL)
            for key, entry in list(self._all.entries.items()):
                if key in self._all.reading or not entry.read:
                    continue
                if await self._due(entry) and self._all.entries.get(key) is entry:
                    self._start(key)
                else:
                    self._state(entry)

    def credential(self, pod: PodKey, name: str) -> CredentialSource:
        """Return the source from which a pod proxy of this pod gets the credential.

        When it raises, the certificate is no longer used.
        """

        async def read() -> int:
            for key, entry in self._all.entries.items():
                if key.pod == pod and entry.identity is not None and entry.identity.name == name:
                    return await self._deliver(entry, name, lost=replace(entry, identity=None, stamp=""))
                if key.pod == pod and entry.trust is not None and entry.trust.name == name:
                    return await self._deliver(entry, name, lost=replace(entry, trust=None, stamp=""))
            raise ConfigurationError("is no longer wanted", subject="certificate", value=name)

        about = [
            _text(entry.wanted, "").rstrip(": ")
            for key, entry in self._all.entries.items()
            if key.pod == pod and name in (entry.facts.identity, entry.facts.trust)
        ]
        return CredentialSource(read, about=about[0] if about else "")

    async def aclose(self) -> None:
        """Cancel all reads."""
        await self._tasks.aclose()

    def _release(self, keys: Iterable[CertificateKey]) -> None:
        """Undo one `expect` of these certificates."""
        for key in keys:
            self._all.expected[key] -= 1
            if not self._all.expected[key]:
                del self._all.expected[key]
        self._on_change()

    # --- reading ----------------------------------------------------------------------------------------------------

    def _want(self, wanted: WantedCertificate) -> None:
        key = wanted.key
        pod = self._all.pods.get(key.pod)
        uid = pod.uid if pod is not None else ""
        old = self._all.entries.get(key)
        if old is not None and (old.pod_uid, _location(old.wanted)) != (uid, _location(wanted)):
            self._forget(key)
            old = None
        place = place_of(wanted, pod)
        if old is None:
            self._all.entries[key] = CertificateEntry(wanted, uid, place)
            self._start(key)
        elif (old.wanted, old.place) != (wanted, place) or (old.read and old.version != self._version(wanted)):
            self._all.entries[key] = replace(old, wanted=wanted, place=place)
            self._start(key)

    def _start(self, key: CertificateKey) -> None:
        before = self._all.reading.get(key)
        if before is not None:
            before.cancel()
        self._all.reading[key] = self._tasks.start(self._read_source(key), name=f"read {key.subject} {key.side}")

    def _forget(self, key: CertificateKey) -> None:
        del self._all.entries[key]
        for tasks in (self._all.reading, self._all.starting):
            task = tasks.pop(key, None)
            if task is not None:
                task.cancel()
        self._conditions.state(_source(key), ())

    async def _read_source(self, key: CertificateKey) -> None:
        """Read a source and record the result. A usable part replaces the previous one; a fault is added as a problem,
        unless it may pass: then the certificate is pending.
        """
        entry = self._all.entries[key]
        version, stamp = self._version(entry.wanted), ""
        try:
            request = self._request(entry.wanted)
            if isinstance(request.source, Folder):
                stamp = await self._reader.stamp(request.source)
            summary, _ = await self._reader.read(request)
        except SidestepError as error:
            new = self._failed(entry, error)
        else:
            found = _with_summary(entry, summary, dt.datetime.now(dt.UTC).timestamp())
            since = min(entry.lacking_since, self._uptime()) if found.problems else math.inf
            new = self._judged(replace(entry, lacking_since=since), replace(found, lacking_since=since), passes=False)
        new = replace(new, read=True, version=version, stamp=stamp)
        self._all.reading.pop(key, None)
        self._all.entries[key] = new
        self._pause(new)
        self._state(new)
        if new.pending and new.place.roots and key not in self._all.starting:
            self._all.starting[key] = self._tasks.start(self._follow_start(key), name=f"start of {key.subject}")
        if not entry.read or new.facts != entry.facts:
            self._on_change()

    def _failed(self, entry: CertificateEntry, error: SidestepError) -> CertificateEntry:
        """Return the entry after a read that failed."""
        now, reason, since = self._uptime(), self._reason(entry.wanted, error), math.inf
        if _is_absent(error):
            runs = bool(entry.place.roots) and not entry.place.missing
            since = min(entry.lacking_since, now) if runs else entry.lacking_since
        if lacked := now >= since + LACKING:
            reason = f"{reason}; it was not there either when the pod's containers ran before"
        before = replace(entry, lacking_since=since)
        new = replace(before, problems=(reason,), unread=True, pending="", judged_at=math.inf)
        # What has been said stays while no container runs: the text does not change with each start.
        passes = _passes(entry.place, error) and not (lacked and not entry.problems)
        return self._judged(before, new, passes=passes)

    def _judged(self, before: CertificateEntry, new: CertificateEntry, *, passes: bool) -> CertificateEntry:
        """Return `new`; or `before`, pending, while its problems may pass or are those of a container's start."""
        if not new.problems:
            return new
        judged_at = min(_started(before.place) + STARTING, before.lacking_since + LACKING)
        if passes or self._uptime() < judged_at:
            return replace(before, pending="; ".join(new.problems), judged_at=math.inf if passes else judged_at)
        return new

    async def _follow_start(self, key: CertificateKey) -> None:
        """Look at the folder of a pending certificate every `LOOK` seconds, for `STARTING` seconds at most."""
        try:
            for _ in range(int(STARTING / LOOK) + 1):
                await asyncio.sleep(LOOK)
                entry = self._all.entries.get(key)
                if entry is None or not entry.pending:
                    return
                if key not in self._all.reading and await self._due(entry) and self._all.entries.get(key) is entry:
                    self._start(key)
        finally:
            if self._all.starting.get(key) is asyncio.current_task():
                del self._all.starting[key]

    async def _due(self, entry: CertificateEntry) -> bool:
        """Whether a certificate should be read again."""
        if entry.wanted.source.kind is SourceKind.SECRET:
            pause = self._all.pauses.get(entry.wanted.namespace)
            return entry.unread and (pause is None or asyncio.get_running_loop().time() >= pause.until)
        try:
            source = source_of(entry.wanted, self._all.pods.get(entry.wanted.key.pod), self._secrets)
            stamp = await self._reader.stamp(source) if isinstance(source, Folder) else ""
        except NotYetError:
            return not entry.pending  # nothing to look at; `want` tells when that changes
        except SidestepError as error:
            # The previous result stays; a different reason is a new problem to report.
            return (self._reason(entry.wanted, error),) != entry.problems
        return not stamp or stamp != entry.stamp or (entry.pending != "" and self._uptime() >= entry.judged_at)

    def _pause(self, entry: CertificateEntry) -> None:
        if entry.wanted.source.kind is not SourceKind.SECRET:
            return
        namespace = entry.wanted.namespace
        if not entry.unread:
            self._all.pauses.pop(namespace, None)
            return
        now = asyncio.get_running_loop().time()
        pause = self._all.pauses.setdefault(namespace, _Pause(0.0, FIRST_RETRY))
        if now >= pause.until:
            pause.until = now + pause.seconds
            pause.seconds = min(2 * pause.seconds, LAST_RETRY)

    async def _deliver(self, entry: CertificateEntry, name: str, *, lost: CertificateEntry) -> int:
        key = entry.wanted.key
        try:
            _, fd = await self._reader.read(msgspec.structs.replace(self._request(entry.wanted), deliver=name))
        except SidestepError as error:
            if self._all.entries.get(key) is entry:
                self._all.entries[key] = lost
                self._start(key)
                self._on_change()
            raise ConfigurationError(self._reason(entry.wanted, error)) from error
        if fd is None:
            raise BugError("the reader does not hand over a credential")
        return fd

    def _request(self, wanted: WantedCertificate) -> ReadRequest:
        source = source_of(wanted, self._all.pods.get(wanted.key.pod), self._secrets)
        return ReadRequest(source, ca_alone=wanted.key.side is Side.UPSTREAM)

    def _version(self, wanted: WantedCertificate) -> str:
        if wanted.source.kind is not SourceKind.SECRET:
            return ""
        return self._secrets.version(wanted.namespace, wanted.source.value)

    def _reason(self, wanted: WantedCertificate, error: SidestepError) -> str:
        if isinstance(error, ReadError) and error.status and wanted.source.kind is SourceKind.SECRET:
            return self._secrets.explain(wanted.namespace, wanted.source.value, error)
        return f"cannot be read: {error}" if isinstance(error, KernelError) else str(error)

    def _state(self, entry: CertificateEntry) -> None:
        problems = list(entry.problems)
        if entry.identity is not None and not problems and _past(entry.identity.not_after):
            problems.append(f"the certificate expired on {_date(entry.identity.not_after)}; it is still used")
        conditions = [
            Condition(ConditionType.CERTIFICATE_INVALID, entry.wanted.key.subject, _text(entry.wanted, text))
            for text in problems
        ]
        self._conditions.state(_source(entry.wanted.key), conditions)


def _with_summary(entry: CertificateEntry, summary: Summary, now: float) -> CertificateEntry:
    problems = list(summary.problems)
    identity, trust = entry.identity, entry.trust
    if summary.no_identity:
        identity = None
    elif summary.identity is not None:
        found = summary.identity
        if found.not_after <= now:
            problems.append(f"the certificate expired on {_date(found.not_after)}")
        elif found.not_before > now:
            problems.append(f"the certificate is not valid before {_date(found.not_before)}")
        else:
            identity = found
    if summary.trust is not None:
        trust = summary.trust
    elif summary.no_trust and not problems:
        trust = None
    return replace(
        entry,
        identity=identity,
        trust=trust,
        problems=tuple(problems),
        unread=False,
        pending="",
        judged_at=math.inf,
    )


def _is_absent(error: SidestepError) -> bool:
    """Whether nothing is there that could be at fault."""
    return isinstance(error, NotYetError) or (isinstance(error, ReadError) and error.absent is not Absence.NOTHING)


def _passes(place: Place, error: SidestepError) -> bool:
    """Whether a failure passes once a container is started, without anybody mending anything."""
    if isinstance(error, ReadError) and error.absent is Absence.FOLDER:
        return bool(place.missing)
    return _is_absent(error)


def _started(place: Place) -> float:
    """When the newest process of a place was started, in seconds since boot; long ago where that is unknown."""
    return -math.inf if place.newest is None else place.newest / TICKS


def _past(seconds: float) -> bool:
    return seconds <= dt.datetime.now(dt.UTC).timestamp()


def _date(seconds: float) -> str:
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M} UTC"


def _location(wanted: WantedCertificate) -> tuple[SourceKind, str, str]:
    """Return what identifies the source. After a change of source nothing of the previous one is kept."""
    return wanted.source.kind, wanted.namespace, wanted.source.value


def _source(key: CertificateKey) -> Source:
    return Source("certificate", key.pod, key.port, f"{key.side.value} {key.secret}".rstrip())


def _text(wanted: WantedCertificate, reason: str) -> str:
    source = wanted.source
    if wanted.key.secret:
        return f"{source.annotation} {wanted.key.secret} of {source.origin}: {reason}"
    return AnnotationProblem(source.annotation, source.value, reason, f"pod {wanted.key.pod}", source.origin).text
