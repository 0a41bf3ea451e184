"""`sidestep intercept`: a session in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from sidestep.cli.companion import Companion
from sidestep.cli.options import PortMapping, PortType, namespace_option, output_option
from sidestep.cli.output import LineWriter
from sidestep.cli.report import JsonReport, Report
from sidestep.cli.where import Where, namespace_of, session, where_options
from sidestep.config.filters import describe_filter, parse_filter
from sidestep.laptop.handler import Handler, HandlerSettings
from sidestep.laptop.session import Outcome
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.filter import Filter
from sidestep.policy.matching import compile_filter
from sidestep.tunnel.messages import HeaderSpec, PathSpec, SessionSpec


class _DashedCommand(click.Command):
    """Takes a command line only after `--`, so that a forgotten option is an error and is not run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click.Command.parse_args."""
        dashed = "--" in args
        rest = super().parse_args(ctx, args)
        if ctx.params.get("command") and not dashed:
            raise click.UsageError(f"unexpected argument {ctx.params['command'][0]!r}; a command comes after --", ctx)
        return rest


@dataclass(frozen=True, slots=True)
class _Plan:
    """A command line, understood."""

    spec: SessionSpec
    handler: HandlerSettings
    where: Where
    output: str
    command: tuple[str, ...]
    description: str


@click.command(cls=_DashedCommand, short_help="Divert matching requests to a handler on this machine.")
@click.argument("workload")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD ...]")
@click.option("--port", "-p", type=PortType(), required=True, help="Handler's port here, and the workload's port.")
@click.option("--http-header", "headers", multiple=True, metavar="NAME[=VALUE|=~REGEX]", help="Only with this header.")
@click.option("--http-method", "methods", multiple=True, metavar="METHOD", help="Only this method; more are OR-ed.")
@click.option("--http-path-equal", "path_equal", multiple=True, metavar="PATH", help="Only this path; paths are OR-ed.")
@click.option("--http-path-prefix", "path_prefix", multiple=True, metavar="PREFIX", help="Only paths that begin so.")
@click.option("--http-path-regex", "path_regex", multiple=True, metavar="REGEX", help="Only paths that match (RE2).")
@click.option("--plaintext", is_flag=True, help="Talk to the handler in clear, also when the client used TLS.")
@namespace_option
@click.option("--name", default="", metavar="NAME", help="Name of the intercept. [default: the workload's]")
@click.option("--pod", default="", metavar="POD", help="Only this pod of the workload.")
@click.option("--address", default="127.0.0.1", show_default=True, metavar="HOST", help="Where the handler listens.")
@click.option(
    "--handler-ca",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Verify the handler's certificate against this CA (PEM). [default: not verified]",
)
@click.option("--divert-probes", is_flag=True, help="Divert kubelet probes too, which otherwise never match.")
@output_option
@where_options
def intercept(
    workload: str,
    command: tuple[str, ...],
    port: PortMapping,
    namespace: str | None,
    where: Where,
    output: str,
    address: str,
    handler_ca: Path | None,
    plaintext: bool,
    **rest: Any,
) -> int:
    """Divert matching requests of WORKLOAD (`name` or `kind/name`) to a handler on this machine, until Ctrl-C.

    A request is diverted when all headers match, and the method is one of those given, and the path fits one of those
    given. Without any filter the whole port is diverted. All other requests are answered by the workload. PORT is a
    service or container port, name or number; it defaults to LOCAL. The handler is spoken to as the client spoke: over
    TLS with the client's server name, or in clear.

    With `-- CMD …` the command runs once the intercept is active and ends it; its exit code becomes this one's.

    \b
    Your own requests, marked by a header, to a TLS server on port 9443:
      sidestep intercept orders -n shop --port 9443:https --http-header x-dev=ada
    The same to a server without TLS:
      sidestep intercept orders -n shop --port 8080:https --http-header x-dev=ada --plaintext
    Two ways to write to one part of the API:
      sidestep intercept deploy/orders --port 9443:8443 --http-method POST --http-method PUT \\
          --http-path-prefix /api/v2/
    Everything, for as long as the tests run:
      sidestep intercept orders --port 8080:http -- pytest tests/contract
    """
    try:
        wanted = _filter(rest)
        handler = HandlerSettings(port=port.local, address=address, plaintext=plaintext, ca=handler_ca)
        prepared = Handler(handler)
    except (ConfigurationError, RefusedError) as error:
        raise click.UsageError(str(error)) from error
    spec = SessionSpec(
        namespace=namespace_of(where, namespace),
        workload=workload,
        port=port.remote,
        transport="udp" if port.transport == "udp" else "tcp",
        name=rest["name"],
        headers=tuple(HeaderSpec(each.name, each.test.value, each.value) for each in wanted.headers),
        methods=wanted.methods,
        paths=tuple(PathSpec(each.test.value, each.value) for each in wanted.paths),
        pod=rest["pod"],
        claimed_owner=os.environ.get("SUDO_USER", "")[:64],
        plaintext=plaintext,
        divert_probes=rest["divert_probes"],
    )
    description = f"{describe_filter(wanted)} of {workload} port {port.remote} goes to {handler}"
    plan = _Plan(spec, handler, where, output, command, description + (" in clear" if plaintext else ""))
    return asyncio.run(_run(plan, prepared))


def _filter(values: dict[str, Any]) -> Filter:
    wanted = parse_filter(
        headers=values["headers"],
        methods=values["methods"],
        path_equal=values["path_equal"],
        path_prefix=values["path_prefix"],
        path_regex=values["path_regex"],
    )
    compile_filter(wanted)  # a regex that does not compile is best told here
    return wanted


async def _run(plan: _Plan, handler: Handler) -> int:
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()

    def nobody_reads() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(interrupted.set)

    writer = LineWriter(sys.stdout, on_closed=nobody_reads)
    report = JsonReport(writer) if plan.output == "json" else Report(writer, description=plan.description)
    running_session = session(plan.where, spec=plan.spec, handler=handler, listener=report)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupted.set)
    companion = Companion(plan.command) if plan.command else None
    running = asyncio.create_task(running_session.run(), name="session")
    waiting = asyncio.create_task(interrupted.wait(), name="interrupted")
    tasks: set[asyncio.Task[Any]] = {running, waiting}
    if companion is not None:
        tasks.add(asyncio.create_task(companion.run(report.active), name="command"))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if companion is not None:
            await companion.end()
        running_session.stop()
        outcome = await running
        for task in done - {running}:
            task.result()
        return _exit_code(outcome, companion, interrupted=interrupted.is_set())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()


def _exit_code(outcome: Outcome, companion: Companion | None, *, interrupted: bool) -> int:
    if interrupted:
        return 0
    if companion is not None and companion.code is not None:
        return companion.code
    if outcome.error is not None:
        raise outcome.error
    if outcome.ended is None:
        raise RefusedError("the node daemon closed the session; sidestep status may tell why")
    if outcome.ended.failed:
        raise RefusedError(f"the node daemon ended the session: {outcome.ended.reason}")
    return 0
