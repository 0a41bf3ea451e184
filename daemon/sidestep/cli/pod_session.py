"""Sessions with access to pods: one for as long as some work takes, and what `sidestep intercept` does with one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click
import msgspec

from sidestep.aio.interrupts import interrupts
from sidestep.cli import transparent as proxychains
from sidestep.cli import variables
from sidestep.cli.backend import Backend, session
from sidestep.cli.command import CONTAINER_NAME, FilePath
from sidestep.cli.copied_files import check_paths, copy_files
from sidestep.cli.foreground import claimed_owner
from sidestep.cli.output import tell
from sidestep.laptop.capture_target import CaptureTarget
from sidestep.laptop.file_snapshot import FileSnapshot
from sidestep.laptop.pod_access import CutOffError, PodAccess
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.tunnel.access import DEFAULT_FILES
from sidestep.tunnel.errors import StreamResetError, TunnelClosedError
from sidestep.tunnel.messages import AnyEvent, Hello, SessionSpec, State
from sidestep.tunnel.opening import StreamOpening

if TYPE_CHECKING:
    from sidestep.laptop.outbound.server import Urls

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

Allowed = Literal["environment", "network", "files"]
LAST_WORD: Final = 5.0
"""Seconds for which what was cut off waits for the reason of it."""
_CUT_OFF = (StreamResetError, TunnelClosedError, CutOffError)


def access_spec(
    namespace: str, workload: str, *allow: Allowed, pod: str = "", container: str = "", allow_loopback: bool = False
) -> SessionSpec:
    """Return the session that has this access to pods of a workload."""
    return SessionSpec(
        namespace=namespace,
        workload=workload,
        port="",
        kind="wiretap",
        pod=pod,
        allow=allow,
        container=container,
        allow_loopback=allow_loopback,
        claimed_owner=claimed_owner(),
    )


class _Observer:
    """The `laptop.session.SessionObserver` of an access: it keeps the last reason why no pod can be used, and tells of
    each interruption, and of its end, once a pod can be used again."""

    def __init__(self, workload: str) -> None:
        self.reason = ""
        self._workload = workload
        self._is_interrupted = False

    def registered(self, hello: Hello) -> None:
        """As SessionObserver.registered."""

    def interrupted(self, reason: str) -> None:
        """As SessionObserver.interrupted."""
        self.reason = reason
        if not self._is_interrupted:
            self._is_interrupted = True
            effect = "Nothing goes through a pod until it is back."
            tell(f"The access to {self._workload} is interrupted: {reason}. {effect}")

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """As SessionObserver.handler_refused."""

    def note(self, text: str) -> None:
        """As SessionObserver.note."""
        tell(text)

    def event(self, event: AnyEvent) -> None:
        """As SessionObserver.event."""
        if isinstance(event, State):
            self.reason = next((f"pod {each.pod}: {each.detail}" for each in event.pods if each.detail), "")
            if not event.pods:
                self.reason = "it has no pod that a node daemon serves"
            if self._is_interrupted and event.active:
                self._is_interrupted = False
                tell(f"The access to {self._workload} is back.")


async def during(backend: Backend, spec: SessionSpec, work: Callable[[PodAccess], Awaitable[T]]) -> T:
    """Have access to pods for as long as the work takes; returns its result. Raises SidestepError."""
    access, observer = PodAccess(), _Observer(spec.workload)
    held = session(backend, spec=spec, handler=access, observer=observer)
    running = asyncio.create_task(held.run(), name="access")
    working = asyncio.ensure_future(work(access))
    try:
        await asyncio.wait({running, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done() and isinstance(working.exception(), _CUT_OFF):
            await asyncio.wait({running}, timeout=LAST_WORD)  # the session learns the reason a moment later
        if running.done() and not (working.done() and working.exception() is None):
            outcome = running.result()
            if outcome.error is not None:
                raise outcome.error
            ended = outcome.ended.reason if outcome.ended is not None else "the node daemon closed it"
            raise RefusedError(f"the access to {spec.workload} has ended: {ended.removeprefix('was ended: ')}")
        try:
            return working.result()
        except RefusedError as error:
            raise RefusedError(f"{error} ({observer.reason})" if observer.reason else str(error)) from error
    finally:
        held.stop()
        working.cancel()
        await asyncio.gather(running, working, return_exceptions=True)


async def or_interrupted(work: Awaitable[T]) -> T:
    """Await this, and cancel it for whoever wants the program to end, so that it leaves nothing. Raises click.Abort."""
    working = asyncio.ensure_future(work)
    interrupted = asyncio.Event()

    def stop() -> None:
        interrupted.set()
        working.cancel()

    with interrupts(stop):
        try:
            return await working
        except asyncio.CancelledError:
            if interrupted.is_set():
                raise click.Abort from None
            raise


def tell_left_out(names: tuple[str, ...], syntax: str) -> None:
    """Say which variables a text does not have."""
    if names:
        tell(f"Not in it, because {syntax} has no way to write them: {', '.join(names)}")


def write_private(path: Path, text: str, *, option: str) -> None:
    """Write a file that only its owner may read, in the place of another of that name. Raises ConfigurationError."""
    target = CaptureTarget(path, standard_output=sys.stdout.fileno(), option=option)
    with os.fdopen(target.open(), "wb") as file:
        file.write(text.encode())


class Wanted(msgspec.Struct, frozen=True):
    """What of the pod's world a command is to find on this machine. Nothing: it finds none of it."""

    inherit: bool = False
    """The command inherits the variables."""
    dotenv: Path | None = None
    json: Path | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    container: str = ""
    copies: bool = False
    """The command finds a copy of files."""
    paths: tuple[str, ...] = ()
    folder: Path | None = None
    """Where the copy is; None: in a folder that is removed in the end."""
    outbound: bool = False
    """Connections through the pod."""
    allow_loopback: bool = False
    """Also to the pod's own loopback."""
    transparent: bool = False
    """The command makes no others."""

    @property
    def files(self) -> bool:
        """Whether files are wanted."""
        return self.copies or bool(self.paths) or self.folder is not None

    @property
    def environment(self) -> bool:
        """Whether variables are wanted."""
        return self.inherit or self.dotenv is not None or self.json is not None

    @property
    def allow(self) -> tuple[Allowed, ...]:
        """The rights that it takes."""
        environment: tuple[Allowed, ...] = ("environment",) if self.environment else ()
        files: tuple[Allowed, ...] = ("files",) if self.files else ()
        network: tuple[Allowed, ...] = ("network",) if self.outbound else ()
        return (*environment, *files, *network)

    def check(self) -> None:
        """Raise click.UsageError for options without the one that they belong to, ConfigurationError for files."""
        if not self.environment and (self.include or self.exclude):
            raise click.UsageError("--env-include and --env-exclude belong to --env, --env-file or --env-json")
        if not self.allow and self.container:
            raise click.UsageError("--container belongs to --env, --env-file, --env-json, --files or --outbound")
        if self.allow_loopback and not self.outbound:
            raise click.UsageError("--allow-loopback belongs to --outbound")
        if self.transparent:
            if not self.outbound:
                raise click.UsageError("--transparent belongs to --outbound")
            proxychains.check()
        check_paths(self.paths)
        if self.files:
            self.snapshot(self.folder or Path(tempfile.gettempdir()) / secrets.token_hex(8)).check()
        for option, path in (("--env-file", self.dotenv), ("--env-json", self.json)):
            if path is not None:
                if str(path) == "-":
                    reason = "standard output has what the session tells; name a file, or use sidestep env"
                    raise ConfigurationError(reason, subject=option, value="-")
                CaptureTarget(path, standard_output=1, option=option).check()

    def snapshot(self, folder: Path) -> FileSnapshot:
        """Return a snapshot to write there: into the folder of --files-to, or into one for temporary files."""
        if self.folder is not None:
            return FileSnapshot(folder, DEFAULT_FILES)
        return FileSnapshot(folder, DEFAULT_FILES, advice="give --files-to, or set TMPDIR to a folder of yours")


@dataclass(slots=True)
class World:
    """The pod's world for a command: a `foreground.World`."""

    backend: Backend
    spec: SessionSpec
    wanted: Wanted

    async def run(self, ready: asyncio.Future[Mapping[str, str]]) -> None:
        """As foreground.World.run. The access ends once everything has been fetched, unless connections need it."""
        with folder_for(self.wanted) as folder:
            if self.wanted.outbound:
                await during(self.backend, self.spec, lambda access: self._hold(access, folder, ready))
                return
            found = await during(self.backend, self.spec, lambda access: fetch_world(access, self.wanted, folder))
            if not ready.done():
                ready.set_result(found)
            await asyncio.Event().wait()

    async def _hold(self, access: PodAccess, folder: Path | None, ready: asyncio.Future[Mapping[str, str]]) -> None:
        """Let the command connect through the pod until cancelled."""
        from sidestep.laptop.outbound.server import OutboundProxy  # most intercepts do without

        found = await fetch_world(access, self.wanted, folder)
        async with OutboundProxy(access, tell=tell) as proxy:
            tell(f"Connections through 127.0.0.1:{proxy.urls.port} are made by pod {await access.pod()}.")
            with through(proxy.urls, self.wanted) as urls:
                if not ready.done():
                    ready.set_result(found | urls)
                await proxy.failed()


@contextlib.contextmanager
def through(urls: Urls, wanted: Wanted) -> Iterator[dict[str, str]]:
    """The variables by which a command connects through the pod, as long as it runs."""
    if not wanted.transparent:
        yield urls.variables()
        return
    with proxychains.configuration(urls) as found:
        yield urls.variables() | found


@contextlib.contextmanager
def folder_for(wanted: Wanted) -> Iterator[Path | None]:
    """Where a copy of files is as long as a command runs; None when none is wanted."""
    if not wanted.files or wanted.folder is not None:
        yield wanted.folder
        return
    with tempfile.TemporaryDirectory(prefix="sidestep-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


async def fetch_world(access: PodAccess, wanted: Wanted, folder: Path | None) -> dict[str, str]:
    """Fetch what is wanted, and write the files; returns variables for a command."""
    found = await _fetch_variables(access, wanted)
    if folder is not None:
        await copy_files(access, wanted.paths, wanted.snapshot(folder))
        found["SIDESTEP_ROOT"] = str(folder)
    return found


async def _fetch_variables(access: PodAccess, wanted: Wanted) -> dict[str, str]:
    if not wanted.environment:
        return {}
    found = variables.parse(await access.environment())
    found = variables.chosen(found, wanted.include, wanted.exclude)
    for path, syntax, option in ((wanted.dotenv, "dotenv", "--env-file"), (wanted.json, "json", "--env-json")):
        if path is not None:
            text, left_out = variables.written(found, syntax)
            write_private(path, text, option=option)
            tell_left_out(left_out, syntax)
    inherited = variables.for_a_command(found, wanted.include)
    return {os.fsdecode(name): os.fsdecode(value) for name, value in inherited.items()}


def world_options(command: F, *, connects: bool = False) -> F:
    """Add the options of `Wanted`; the command receives one `world`. `connects`: it has connections in any case."""

    def choosing(
        *arguments: Any,
        env: bool,
        env_file: Path | None,
        env_json: Path | None,
        env_include: tuple[str, ...],
        env_exclude: tuple[str, ...],
        container: str,
        files: bool,
        files_path: tuple[str, ...],
        files_to: Path | None,
        allow_loopback: bool,
        transparent: bool,
        outbound: bool = connects,
        **rest: Any,
    ) -> Any:
        kept = files_to.absolute() if files_to is not None else None
        wanted = Wanted(
            env,
            env_file,
            env_json,
            env_include,
            env_exclude,
            container,
            files,
            files_path,
            kept,
            outbound,
            allow_loopback,
            transparent,
        )
        wanted.check()
        if transparent:
            if not rest["command"]:
                raise click.UsageError("--transparent belongs to a command behind --")
            rest["command"] = proxychains.wrapped(rest["command"])
        return command(*arguments, world=wanted, **rest)

    choosing.__name__, choosing.__doc__ = command.__name__, command.__doc__
    choosing.__click_params__ = list(getattr(command, "__click_params__", ()))  # type: ignore[attr-defined]
    through_pod = click.option("--outbound", is_flag=True, help="CMD connects through the pod (PodAccess).")
    for option in (
        container_option,
        click.option("--transparent", is_flag=True, help="CMD needs no proxy settings (proxychains4, on Linux only)."),
        click.option("--allow-loopback", is_flag=True, help="Connections to the pod's own loopback, too."),
        *(() if connects else (through_pod,)),
        click.option(
            "--files-to", type=FilePath(), metavar="DIR", help="Copy files to this new folder, which is not removed."
        ),
        click.option(
            "--files-path",
            multiple=True,
            metavar="PATH",
            help="Copy this file or folder of the container, not volumes.",
        ),
        click.option(
            "--files", is_flag=True, help="CMD finds a copy of the pod's volumes in SIDESTEP_ROOT (PodAccess)."
        ),
        *glob_options,
        click.option("--env-json", type=FilePath(), metavar="FILE", help="The same, as a JSON object."),
        click.option(
            "--env-file",
            type=FilePath(),
            metavar="FILE",
            help="Write the pod's variables to a file (dotenv); CMD has them.",
        ),
        click.option("--env", is_flag=True, help="CMD inherits the variables of the pod's container (PodAccess)."),
    ):
        choosing = option(choosing)
    return choosing  # type: ignore[return-value]  # the same function but for the options it takes


container_option = click.option(
    "--container",
    "-c",
    type=CONTAINER_NAME,
    default="",
    metavar="NAME",
    help="Container of the pod. [default: kubectl's default container]",
)
glob_options = (
    click.option("--env-exclude", multiple=True, metavar="GLOB", help="Not the variables of these names, like AWS_*."),
    click.option("--env-include", multiple=True, metavar="GLOB", help="Only the variables of these names, like DB_*."),
)
