"""Keeps a Suricata alive beside the proxy of one pod, as long as policies of the pod have `ids`.

States

    off         no policy has rules that are in force
    starting    a process is being started, or its feed is being handed to the proxy
    running     the proxy feeds it, its alerts are taken
    pausing     it has ended, or could not be started; the next try comes after a pause that grows (BACKOFF)
    released    the pod is a target no longer: nothing is started any more; what runs ends with its feed

Invariants

  * Other rules mean another process. It is started first, and then takes over new connections; the one before it goes
    on with those that it knows, until they end, for at most as long as the proxy lets it (`proxy.mirror.ids_feeds`). So
    nothing is lost, and memory is held twice for that time. There is at most one such process; a further change ends
    it.
  * Only the first start of a pod is at once. Others, for other rules or because one has ended, take turns with those of
    the node's other pods (`Toolbox.ids_starts`), so that rules that change all the time, or Suricatas that end all the
    time, leave the node its processors. A turn takes the newest rules.
  * The proxy is its only feeder, so a proxy that ends ends it, too; the next one starts with the next proxy, from the
    first packet of a new stream.
  * Rules of several policies share the memory that a Suricata may take. Policies whose rules find no room beside those
    of the policies before them are left out in this pod, and a condition says so with the figure.
  * An IDS never blocks: nobody's request waits for it or fails without it, whatever `failurePolicy` says. While it does
    not run a condition says so, and the proxy counts the connections that it was not fed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from sidestep.aio.tasks import Tasks
from sidestep.aio.time_limit import time_limit
from sidestep.ids import events
from sidestep.ids.rules import render_all
from sidestep.ids.suricata import GROUP_MEMORY, MEMORY, Suricata, memory_of, too_much, version
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import SidestepError
from sidestep.node.proxies.backoff import Backoff, CrashHistory
from sidestep.node.proxies.output import Output, pipe
from sidestep.node.proxy_uids import ids_uid
from sidestep.node.resident_memory import resident_bytes
from sidestep.observability.logs import get_logger
from sidestep.policy.inspection_rows import display_of
from sidestep.protocols.eve_redaction import Redaction
from sidestep.tunnel.views import EngineView

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidestep.aio.process import Process
    from sidestep.ids.rules import RuleSet
    from sidestep.model.pod import Pod
    from sidestep.node.conditions import Statements
    from sidestep.node.pods.toolbox import Toolbox
    from sidestep.snapshots.inspection import PolicySnapshot

ENGINE: Final = "suricata"
PLACING: Final = 5.0
"""Seconds to wait for a memory cgroup."""
BACKOFF: Final = Backoff(first=0.1, longest=3.0, window=30.0, crashes=1000)
"""A start costs some 0.2 s of processor time. It is tried for ever: nothing else of the pod depends on it."""


class _Wanted(msgspec.Struct, frozen=True):
    """What a Suricata is started with: the names of policies and their rules, in one order; what records leave out."""

    policies: tuple[str, ...]
    rules: tuple[RuleSet, ...]
    redaction: Redaction


class _Listening(msgspec.Struct, frozen=True):
    """A process that is fed, and the task that hears it."""

    pid: int
    wanted: _Wanted
    task: asyncio.Task[str]


class PodIds:
    """See the module. `feed` hands the writing end of a pipe to the proxy; it raises SidestepError."""

    def __init__(
        self,
        pod: Pod,
        uid: int,
        tools: Toolbox,
        *,
        statements: Statements,
        feed: Callable[[int], Awaitable[None]],
    ) -> None:
        self._pod = pod
        self._uid = ids_uid(uid)
        self._tools = tools
        self._statements = statements
        self._feed = feed
        self._policies: tuple[PolicySnapshot, ...] = ()
        self._wanted: _Wanted | None = None
        self._changed = asyncio.Event()
        self._history = CrashHistory(BACKOFF)
        self._tasks: Tasks | None = None
        self._listening: list[_Listening] = []
        """The present process and the one before it, the latter first."""
        self._version = ""
        self._restarts = 0
        self._has_turn = True
        """Whether a process may be started now."""
        self._problem = ""
        """Why the one that is wanted does not run."""
        self._is_released = False
        self._log = get_logger("ids").bind(pod=str(pod.key))

    def follow(self, pod: Pod, policies: Iterable[PolicySnapshot]) -> None:
        """These policies apply to ports of the pod now."""
        self._pod = pod
        named = {display_of(each): each for each in policies if each.ids}  # one may be about both directions
        self._policies = tuple(named.values())
        self.look()

    def look(self) -> None:
        """See whether other rules are in force. Never raises."""
        wanted = self._what_is_wanted()
        if wanted == self._wanted or self._is_released:
            return
        self._wanted = wanted
        self._changed.set()
        if self._tasks is None:
            self._tasks = Tasks(f"ids {self._pod.key}", on_crash=self._crashed)
            self._tasks.start(self._keep(), name="keep alive")

    def release(self) -> None:
        """Start nothing any more; what runs ends with its feed. Never raises."""
        self._is_released = True

    async def aclose(self) -> None:
        """End everything now. Never raises."""
        self._is_released = True
        if self._tasks is not None:
            await self._tasks.aclose()

    def engine(self) -> EngineView | None:
        """What is shown of it; None while no policy wants one."""
        if self._wanted is None:
            return None
        present = next((each for each in reversed(self._listening) if not each.task.done()), None)
        known = present.wanted if present is not None else self._wanted
        return EngineView(
            kind=ENGINE,
            state="running" if present is not None else "paused" if self._problem else "starting",
            pid=present.pid if present is not None else 0,
            version=self._version,
            policies=known.policies,
            rules=sum(len(each.rules) for each in known.rules),
            memory=resident_bytes(present.pid) if present is not None else 0,
            memory_limit=MEMORY,
            restarts=self._restarts,
            problem=self._problem,
        )

    def _rules_in_force(self) -> dict[str, RuleSet]:
        """The rules by policy, as far as there is room for them; a condition names the policies that are left out."""
        taken: dict[str, RuleSet] = {}
        conditions = []
        for policy in self._policies:
            name = display_of(policy)
            rules = self._tools.ids_rules.of(name)
            if rules is None:
                continue
            excess = too_much(memory_of([*taken.values(), rules]))
            if taken and excess:
                text = f"the rules of policy {name} find no room beside those of others: {excess}"
                conditions.append(Condition(ConditionType.IDS_RULES_LEFT_OUT, f"pod {self._pod.key}", text))
            else:
                taken[name] = rules
        self._statements.state(None, "ids rules", conditions)
        return taken

    def _what_is_wanted(self) -> _Wanted | None:
        found = self._rules_in_force()
        if not found:
            return None
        headers = frozenset(name.encode() for each in self._policies for name in each.redacted_headers)
        redaction = Redaction(any(each.redacts_queries for each in self._policies), headers)
        return _Wanted(tuple(found), tuple(found.values()), redaction)

    # --- the processes ----------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_over():
            self._changed.clear()
            wanted = self._wanted
            if wanted is None:
                await self._end_all()
                self._state("")
                await self._changed.wait()
                continue
            if not self._has_turn:
                await self._wait_for_turn()
                continue
            self._has_turn = False
            began = loop.time()
            try:
                await self._start(wanted)
            except (SidestepError, OSError) as error:
                reason = str(error)
            else:
                self._state("")
                reason = await self._until_changed()
            if not reason or self._is_over():
                continue
            self._tools.records.ids_ended()
            self._restarts += 1
            self._state(reason)
            verdict = self._history.crashed(loop.time(), lived=loop.time() - began)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), verdict.pause)

    def _is_over(self) -> bool:
        return self._is_released

    async def _start(self, wanted: _Wanted) -> None:
        """Start a process with these rules and have it fed. Raises SidestepError, OSError."""
        assert self._tasks is not None  # noqa: S101 - this runs as one of them
        self._version = await version()
        reading, writing = pipe()
        output = Output(reading, self._say, label=f"{self._pod.key} suricata")
        try:
            found = await Suricata.start(render_all(wanted.rules), uid=self._uid, output=writing, place=self._place)
        except BaseException:
            output.close()
            raise
        finally:
            os.close(writing)
        try:
            with found.give_feed() as fd:
                await self._feed(fd)
        except BaseException:
            await found.aclose()
            output.close()
            raise
        listening = self._tasks.start(self._listen(found, output, wanted), name="listen")
        self._listening.append(_Listening(found.process.pid, wanted, listening))
        while len(self._listening) > 2:
            await _end(self._listening.pop(0).task)
        rules = sum(len(each.rules) for each in wanted.rules)
        self._log.info("ids started", pid=found.process.pid, policies=wanted.policies, rules=rules)

    async def _until_changed(self) -> str:
        """Wait until other rules are wanted, or the present process has ended; returns why it has, "" otherwise."""
        present = self._listening[-1]
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({present.task, changed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        if not present.task.done():
            return ""
        self._listening.remove(present)
        return present.task.result()

    async def _wait_for_turn(self) -> None:
        """Wait until a process may be started, or none is wanted any more."""
        turn = asyncio.ensure_future(self._tools.ids_starts.take())
        try:
            while not turn.done() and self._wanted is not None:
                self._changed.clear()
                changed = asyncio.ensure_future(self._changed.wait())
                try:
                    await asyncio.wait({turn, changed}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
            self._has_turn = turn.done()
        finally:
            turn.cancel()

    async def _place(self, process: Process) -> None:
        """Move a process that becomes a Suricata into a memory cgroup of its own, where there are any."""
        cgroups = self._tools.supervisor.cgroups
        if cgroups is not None:
            with contextlib.suppress(TimeoutError):
                async with time_limit(PLACING):
                    await asyncio.wrap_future(cgroups.enter(process, GROUP_MEMORY))

    async def _listen(self, found: Suricata, output: Output, wanted: _Wanted) -> str:
        try:
            reason = await found.listen(partial(self._take, wanted))
        finally:
            output.close()
            if self._tools.supervisor.cgroups is not None:
                self._tools.supervisor.cgroups.leave(found.process.pid)
        self._log.info("ids ended", pid=found.process.pid, reason=reason)
        return reason

    def _take(self, wanted: _Wanted, line: bytes) -> None:
        event = events.decode(line)
        if event is not None and not event.is_alert:
            return
        self._tools.records.take_alert(
            self._pod,
            lambda kubernetes: (
                None
                if event is None
                else events.record(
                    event,
                    policies=wanted.policies,
                    redaction=wanted.redaction,
                    pod=self._pod.ips,
                    kubernetes=kubernetes,
                    now=time.time_ns(),
                )
            ),
        )

    async def _end_all(self) -> None:
        while self._listening:
            await _end(self._listening.pop().task)

    def _state(self, reason: str) -> None:
        """State why it does not run; "": it does, or it is not wanted."""
        self._problem = reason
        conditions = []
        if reason:
            text = (
                f"its Suricata does not run and is started again: {reason}; requests are not looked at by it meanwhile"
            )
            conditions.append(Condition(ConditionType.IDS_NOT_RUNNING, f"pod {self._pod.key}", text))
        self._statements.state(None, "ids", conditions)

    def _say(self, line: str) -> None:
        self._log.warning("suricata output", line=line)

    def _crashed(self, task: str, error: BaseException) -> None:
        """One of our own tasks crashed: the pod goes on without an IDS; let the event loop report the bug."""
        self._state(f"a bug: {error!r}")
        asyncio.get_running_loop().call_exception_handler({"message": f"{task} crashed", "exception": error})


async def _end(listening: asyncio.Task[str]) -> None:
    """End a process whose task this is. Whoever is cancelled meanwhile leaves the rest to that task."""
    listening.cancel()
    await asyncio.wait({listening})
