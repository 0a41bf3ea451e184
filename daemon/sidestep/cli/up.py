"""`sidestep up`: the intercepts and wiretaps of a file, with the commands that handle what they bring.

All of them run in this process and end together: by Ctrl-C, with the first handler that ends, or with the first session
that is refused or ended. The exit code is that of this handler; 0 after Ctrl-C; 1 for a session.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from sidestep.aio.interrupts import interrupts
from sidestep.aio.named_file import read_named
from sidestep.cli.backend import Backend, backend_options, namespace_for, session
from sidestep.cli.child_command import ChildCommand
from sidestep.cli.command import NAMESPACE, POD_NAME, SESSION_NAME, Command, FilePath, WorkloadType
from sidestep.cli.filtering import filter_of, filter_spec
from sidestep.cli.foreground import STDERR, STDOUT, claimed_owner, session_variables
from sidestep.cli.options import PortType, output_option
from sidestep.cli.output import LineWriter, json_line
from sidestep.cli.report import JsonReport, Report
from sidestep.cli.service_workloads import resolve_service
from sidestep.config.filters import describe_filter
from sidestep.config.session_file import MAX_FILE, HandlerEntry, InterceptEntry, WiretapEntry, read_session_file
from sidestep.laptop.handler import Handler, HandlerSettings
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.text import harmless
from sidestep.policy.workloads import parse_workload
from sidestep.tunnel.messages import SessionSpec
from sidestep.tunnel.session_names import base_name

if TYPE_CHECKING:
    from sidestep.laptop.session import Outcome

DEFAULT = Path("sidestep.yaml")
PATIENCE = 10.0
"""Seconds that the handlers of a file have, from when their session is active, until it is told that nobody listens."""
AGAIN = 0.5
"""Seconds between two looks."""


class Planned(msgspec.Struct, frozen=True):
    """A session that is to run: what it asks for, its handler, and how it is described."""

    spec: SessionSpec
    handler: Handler
    description: str


class _Prefixed:
    """A writer of lines that say first which session they are of."""

    def __init__(self, writer: LineWriter, prefix: str, *, replaced: int = 0) -> None:
        self._writer = writer
        self._prefix = prefix
        self._replaced = replaced
        """Characters of a line that the prefix stands for."""

    def line(self, text: str) -> None:
        """As LineWriter.line."""
        self._writer.line(self._prefix + text[self._replaced :])


@click.command(cls=Command, short_help="Run the sessions and handlers of a file.")
@click.option(
    "--file", "-f", type=FilePath(), default=DEFAULT, show_default=True, metavar="FILE", help="File with the sessions."
)
@output_option
@backend_options
def up(file: Path, backend: Backend, output: str) -> int:
    """Run the intercepts and wiretaps of FILE, and the commands that handle what they bring, until Ctrl-C.

    Their fields are named as the options of `sidestep intercept`; paths are relative to FILE. Handlers are started
    first. When one ends, or a session is refused or ended, everything ends.

    A handler finds SIDESTEP_PORT and the other variables of `sidestep intercept -- CMD` but SIDESTEP_INTERCEPT, about
    the session that has its name or whose workload has it, or else about the only one; its `environment` wins.

    With `--output json` each line of a session is an object as `sidestep intercept` prints it, and `session` in it is
    KIND/NAME of the session in FILE. What handlers print on standard output goes to standard error then.

    \b
      namespace: shop
      intercepts:
      - {workload: deployment/orders, port: "9443:https", headers: [x-dev=ada]}
      handlers:
        orders: {command: [npm, run, dev]}
    """
    text = read_named(file, subject="--file", limit=MAX_FILE)
    try:
        found = read_session_file(text.decode())
        planned = [
            _planned(entry, f"{kind}s[{index}]", kind, backend, found.namespace, file.parent)
            for kind, entries in (("intercept", found.intercepts), ("wiretap", found.wiretaps))
            for index, entry in enumerate(entries)
        ]
    except UnicodeDecodeError as error:
        raise ConfigurationError("is no UTF-8 text", subject=str(file)) from error
    except ConfigurationError as error:
        raise ConfigurationError(str(error), subject=str(file)) from error
    return asyncio.run(_run(planned, found.handlers, file.parent, backend, is_json=output == "json"))


def _planned(
    entry: InterceptEntry | WiretapEntry, where: str, kind: str, backend: Backend, namespace: str, folder: Path
) -> Planned:
    """Check an entry as the options of the command are checked. Raises ConfigurationError, RefusedError."""
    space = entry.namespace or namespace
    try:
        port = PortType().convert(entry.port, None, None)
        for text, type_ in ((space, NAMESPACE), (entry.name, SESSION_NAME), (entry.pod, POD_NAME)):
            type_.convert(text, None, None)
        workload = WorkloadType().convert(entry.workload, None, None)
        words = {
            name: getattr(entry, name) for name in ("headers", "methods", "path_equal", "path_prefix", "path_regex")
        }
        wanted = filter_of(words)
        ca = folder / entry.handler_ca if entry.handler_ca else None
        handler = Handler(HandlerSettings(port.local, entry.address, plaintext=entry.plaintext, ca=ca))
    except click.UsageError as error:
        raise ConfigurationError(error.message, subject=where) from error
    except (ConfigurationError, RefusedError) as error:
        raise ConfigurationError(str(error), subject=where) from error
    space = namespace_for(backend, space or None)
    workload = resolve_service(backend, space, workload)
    spec = SessionSpec(
        namespace=space,
        workload=workload,
        port=port.remote,
        kind="wiretap" if kind == "wiretap" else "intercept",
        transport="udp" if port.transport == "udp" else "tcp",
        name=entry.name,
        pod=entry.pod,
        claimed_owner=claimed_owner(),
        plaintext=entry.plaintext,
        divert_probes=isinstance(entry, InterceptEntry) and entry.divert_probes,
        reset_existing=isinstance(entry, InterceptEntry) and entry.reset_existing,
        **filter_spec(wanted),
    )
    goes = "is copied" if kind == "wiretap" else "goes"
    text = f"{describe_filter(wanted)} of {workload} port {port.remote} {goes} to {handler.settings}"
    return Planned(spec, handler, text)


async def _run(
    planned: Sequence[Planned], handlers: dict[str, HandlerEntry], folder: Path, backend: Backend, *, is_json: bool
) -> int:
    loop = asyncio.get_running_loop()
    interrupted, started = asyncio.Event(), asyncio.Event()
    started.set()

    def nobody_reads() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has already ended
            loop.call_soon_threadsafe(interrupted.set)

    writer = LineWriter(STDOUT, on_closed=nobody_reads, encoding=sys.stdout.encoding)
    reports = [_json_report(each, writer) if is_json else _report(each, writer) for each in planned]
    sessions = [
        session(backend, spec=each.spec, handler=each.handler, observer=report)
        for each, report in zip(planned, reports, strict=True)
    ]
    children = {
        name: ChildCommand(
            each.command,
            environment=partial(handler_variables, name, each, planned),
            folder=folder / each.directory,
            stdout=STDERR if is_json else None,
        )
        for name, each in handlers.items()
    }
    looking = [
        asyncio.create_task(look_for(each, report, PATIENCE if handlers else 0.0), name="handler's port")
        for each, report in zip(planned, reports, strict=True)
    ]
    with interrupts(interrupted.set):
        waiting = asyncio.create_task(interrupted.wait(), name="interrupted")
        commands = {
            name: asyncio.create_task(child.run(started), name=f"handler {name}") for name, child in children.items()
        }
        running = [asyncio.create_task(each.run(), name="session") for each in sessions]
        tasks: set[asyncio.Task[Any]] = {waiting, *commands.values(), *running}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for each in sessions:
                each.stop()
            outcomes = await asyncio.gather(*running)
            first = next((name for name, task in commands.items() if task in done), None)
            if interrupted.is_set():
                return 0
            if first is not None:
                code = commands[first].result()
                if is_json:
                    writer.line(json_line({"event": "handler_ended", "handler": first, "code": code}))
                else:
                    writer.line(harmless(f"Handler {first} has ended with {code}."))
                return code
            return _end(outcomes, [task in done for task in running])
        finally:
            await asyncio.gather(*(child.end() for child in children.values()))
            for task in (*tasks, *looking):
                task.cancel()
            await asyncio.gather(*tasks, *looking, return_exceptions=True)
            for report in reports:
                report.close()
            writer.close()


def _json_report(planned: Planned, writer: LineWriter) -> JsonReport:
    spec = planned.spec
    begin = json_line({"session": f"{spec.kind}/{spec.name or base_name(spec)}"})
    named = _Prefixed(writer, begin.removesuffix("}") + ",", replaced=len("{"))
    return JsonReport(named)  # type: ignore[arg-type]  # all that a report uses of a writer


def _report(planned: Planned, writer: LineWriter) -> Report:
    spec = planned.spec
    named = _Prefixed(writer, f"{harmless(spec.name or base_name(spec))}: ")
    return Report(
        named,  # type: ignore[arg-type]  # as above
        description=planned.description,
        noun=spec.kind.capitalize(),
        expected=spec.name or base_name(spec),
    )


def handler_variables(name: str, entry: HandlerEntry, planned: Sequence[Planned]) -> dict[str, str]:
    """What a handler finds in its environment beside what this command has: as a command behind `--` about its session,
    but for the session's name, which is not known yet; then what the file says.

    Its session is the first one that has its name, or whose workload has; otherwise the only one of the file.
    """
    session = next(
        (each for each in planned if name in (each.spec.name, parse_workload(each.spec.workload).name)),
        planned[0] if len(planned) == 1 else None,
    )
    found = {} if session is None else session_variables(session.spec, session.handler)
    found.pop("SIDESTEP_INTERCEPT", None)
    return found | entry.environment


async def look_for(planned: Planned, report: Report | JsonReport, seconds: float) -> None:
    """Warn where nobody listens `seconds` after the session is active."""
    if planned.spec.transport != "tcp":
        return
    await report.active.wait()
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while absent := await planned.handler.absent():
        if loop.time() >= until:
            report.handler_absent(absent)
            return
        await asyncio.sleep(AGAIN)


def _end(outcomes: Sequence[Outcome], ended: Sequence[bool]) -> int:
    """Return the exit code after a session has ended by itself. Raises its error."""
    for outcome, is_over in zip(outcomes, ended, strict=True):
        if is_over and outcome.error is not None:
            raise outcome.error
        if is_over and outcome.ended is not None and outcome.ended.failed:
            raise RefusedError(f"the node daemon ended a session: {outcome.ended.reason}")
    return 0
