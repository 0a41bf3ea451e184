"""Runs sessions in the foreground until Ctrl-C, until the daemon ends one, or until a child command ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import click

from sidestep.aio.interrupts import interrupts
from sidestep.cli.backend import Backend, session
from sidestep.cli.child_command import ChildCommand
from sidestep.cli.command import Command
from sidestep.cli.output import LineWriter
from sidestep.laptop.handler import Handler
from sidestep.laptop.session import Outcome, SessionObserver
from sidestep.model.errors import RefusedError
from sidestep.tunnel.messages import SessionSpec

STDOUT, STDERR = 1, 2


class Reporter(SessionObserver, Protocol):
    """Presents the events of sessions. `active` is set once connections of a pod reach the session."""

    active: asyncio.Event

    def handler_absent(self, reason: str) -> None:
        """Nobody listens where the handler is to be, now that requests may come."""


@runtime_checkable
class SplitReporter(Protocol):
    """A reporter that uses a separate observer for each session."""

    def observer(self) -> SessionObserver:
        """Return the observer of one more session."""


@runtime_checkable
class Closing(Protocol):
    """A reporter that has something left to print when the sessions are over."""

    def close(self) -> None:
        """Print it."""


class Limit(Protocol):
    """What ends sessions of its own accord, and has work to do after them."""

    async def reached(self) -> None:
        """Return when the sessions are to end."""

    async def aclose(self) -> None:
        """The sessions are over."""


class Page(Protocol):
    """What shows the events of sessions elsewhere, too, while they run."""

    async def begin(self) -> None:
        """Start, and say where on standard error. Raises SidestepError."""

    def observer(self, spec: SessionSpec, inner: SessionObserver) -> SessionObserver:
        """The observer of one more session, which tells `inner` first."""

    async def aclose(self) -> None:
        """The sessions are over."""


class World(Protocol):
    """What a command behind `--` gets of a pod's world."""

    async def run(self, ready: asyncio.Future[Mapping[str, str]]) -> None:
        """Fetch it, set `ready` with the command's variables, and keep it until cancelled. Raises SidestepError."""


class DashedCommand(Command):
    """Accepts a command line only after `--`, so that a misplaced word is an error instead of being run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click.Command.parse_args."""
        dashed = "--" in args
        rest = super().parse_args(ctx, args)
        if ctx.params.get("command") and not dashed:
            raise click.UsageError(f"unexpected argument {ctx.params['command'][0]!r}; a command comes after --", ctx)
        return rest


def claimed_owner() -> str:
    """Return the user behind sudo; "" without one."""
    return os.environ.get("SUDO_USER", "")[:64]


def run(
    specs: Sequence[SessionSpec],
    *,
    backend: Backend,
    handler: Handler,
    report: Callable[[LineWriter], Reporter],
    command: tuple[str, ...] = (),
    limit: Limit | None = None,
    page: Page | None = None,
    world: World | None = None,
    descriptor: int = STDOUT,
) -> int:
    """Run these sessions; returns the exit code. Raises SidestepError when a session cannot begin or was ended.

    `limit` may end the sessions in order; `page` shows their events, too; `world` is fetched before the command starts;
    `descriptor` is where lines are printed.
    """
    return asyncio.run(_run(specs, backend, handler, report, command, limit, page, world, descriptor))


async def _run(
    specs: Sequence[SessionSpec],
    backend: Backend,
    handler: Handler,
    make_report: Callable[[LineWriter], Reporter],
    command: tuple[str, ...],
    limit: Limit | None,
    page: Page | None,
    world: World | None,
    descriptor: int,
) -> int:
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()

    def nobody_reads() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has already ended
            loop.call_soon_threadsafe(interrupted.set)

    sys.stdout.flush()
    writer = LineWriter(descriptor, on_closed=nobody_reads, encoding=sys.stdout.encoding)
    report = make_report(writer)
    if page is not None:
        await page.begin()
    sessions = [session(backend, spec=spec, handler=handler, observer=_observer(report, page, spec)) for spec in specs]
    with interrupts(interrupted.set):
        ready: asyncio.Future[Mapping[str, str]] = loop.create_future()
        child = None
        if command:
            child = ChildCommand(command, environment=lambda: session_variables(specs[0], handler), ready=ready)
        running = [asyncio.create_task(each.run(), name="session") for each in sessions]
        waiting = asyncio.create_task(interrupted.wait(), name="interrupted")
        tasks: set[asyncio.Task[Any]] = {*running, waiting}
        looking = asyncio.create_task(_look_for(handler, report, specs, child), name="handler")
        if limit is not None:
            tasks.add(asyncio.create_task(_until(limit, interrupted), name="limit"))
        if world is not None:
            tasks.add(asyncio.create_task(world.run(ready), name="world"))
        else:
            ready.set_result({})
        if child is not None:
            tasks.add(asyncio.create_task(child.run(report.active), name="command"))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if child is not None:
                await child.end()
            for each in sessions:
                each.stop()
            first = next((task for task in running if task in done), running[0])
            outcome = await first
            await asyncio.gather(*running)
            for task in done - set(running):
                task.result()
            return _exit_code(outcome, child, interrupted=interrupted.is_set())
        finally:
            for task in (*tasks, looking):
                task.cancel()
            await asyncio.gather(*tasks, looking, return_exceptions=True)
            if limit is not None:
                await limit.aclose()
            if page is not None:
                await page.aclose()
            if isinstance(report, Closing):
                report.close()
            writer.close()


def session_variables(spec: SessionSpec, handler: Handler) -> dict[str, str]:
    """What a command finds in its environment. SIDESTEP_INTERCEPT is known once the session is registered."""
    return {
        "SIDESTEP_KIND": spec.kind,
        "SIDESTEP_INTERCEPT": handler.intercept,
        "SIDESTEP_NAMESPACE": spec.namespace,
        "SIDESTEP_WORKLOAD": spec.workload,
        "SIDESTEP_WORKLOAD_PORT": spec.port,
        "SIDESTEP_ADDRESS": handler.settings.address,
        "SIDESTEP_PORT": str(handler.settings.port),
    }


async def _look_for(
    handler: Handler, report: Reporter, specs: Sequence[SessionSpec], child: ChildCommand | None
) -> None:
    """Warn where nobody listens when requests may come. A child command may be the handler; UDP tells nothing."""
    if child is None and all(spec.transport == "tcp" for spec in specs):
        await report.active.wait()
        if absent := await handler.absent():
            report.handler_absent(absent)


def _observer(report: Reporter, page: Page | None, spec: SessionSpec) -> SessionObserver:
    """Return the observer of one more session."""
    observer = report.observer() if isinstance(report, SplitReporter) else report
    return observer if page is None else page.observer(spec, observer)


async def _until(limit: Limit, interrupted: asyncio.Event) -> None:
    """Wait until the sessions are to end, which is no failure of theirs."""
    await limit.reached()
    interrupted.set()


def _exit_code(outcome: Outcome, child: ChildCommand | None, *, interrupted: bool) -> int:
    if interrupted:
        return 0
    if child is not None and child.code is not None:
        return child.code
    if outcome.error is not None:
        raise outcome.error
    if outcome.ended is None:
        raise RefusedError("the node daemon closed the session; sidestep status may tell why")
    if outcome.ended.failed:
        raise RefusedError(f"the node daemon ended the session: {outcome.ended.reason}")
    return 0
