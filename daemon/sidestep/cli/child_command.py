"""The child command of an intercept (`-- CMD …`): a process that runs during the session.

It starts when the intercept is active, so that a test runner finds it working, and after START_ANYWAY seconds in any
case, because the command may itself be the handler or create the pods. The session ends when the command ends. When the
session ends first, the command gets SIGTERM, and SIGKILL after GRACE seconds. (Windows ends it at once.)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sidestep.aio.time_limit import time_limit
from sidestep.cli.started_program import started_program
from sidestep.model.errors import ConfigurationError

START_ANYWAY = 5.0
"""Seconds after which the command starts although no pod is active."""
GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL."""


class ChildCommand:
    """One child command. `code` is its exit code as a shell reports it; None until it has ended by itself."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Callable[[], Mapping[str, str]] = dict,
        ready: asyncio.Future[Mapping[str, str]] | None = None,
        folder: Path | None = None,
        stdout: int | None = None,
    ) -> None:
        """`environment` is asked, when the command starts, for variables that it gets beside those of this process;
        `ready` has others, and the command waits for them; `folder` is where it runs; `stdout` is the descriptor that
        it gets in the place of this process's standard output.
        """
        self._stdout = stdout
        self._ready = ready
        self._folder = folder
        self._command = tuple(command)
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._ending = False
        self.code: int | None = None

    async def run(self, active: asyncio.Event) -> int:
        """Wait until the intercept is active, then run the command to its end; returns its exit code.

        Raises ConfigurationError when the command cannot be started (`started_program`).
        """
        try:
            async with time_limit(START_ANYWAY):
                await active.wait()
        except TimeoutError:
            pass
        prepared = {} if self._ready is None else await self._ready
        try:
            variables = {**os.environ, **prepared, **self._environment()}
            words = started_program(self._command, variables, folder=self._folder)
            self._process = await asyncio.create_subprocess_exec(
                *words, env=variables, cwd=self._folder, stdout=self._stdout
            )
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigurationError(
                f"cannot be started: {reason}", subject="command", value=self._command[0]
            ) from error
        status = await self._process.wait()
        code = status if status >= 0 else 128 - status
        if not self._ending:
            self.code = code
        return code

    async def end(self) -> None:
        """Terminate the command if it runs."""
        self._ending = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        _send(process.terminate)
        try:
            async with time_limit(GRACE):
                await process.wait()
        except TimeoutError:
            _send(process.kill)
            await process.wait()


def _send(signal: Callable[[], None]) -> None:
    try:
        signal()
    except ProcessLookupError:
        pass
