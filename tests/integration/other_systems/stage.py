"""What the commands meet: an API server, a daemon's cluster side and a handler in the test, and a kubeconfig in a file.

The command line runs as a process of its own, under `preamble`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sidestep.aio.time_limit import time_limit
from tests.harness.cli import Result
from tests.harness.fake_api import FakeApi
from tests.harness.waiting import SLACK
from tests.integration.kube.cluster import Daemon, daemon

ROOT = Path(__file__).parents[3]
WITHIN = 30.0
"""Seconds for a command on an idle machine."""
CERTAINLY_WITHIN = WITHIN * SLACK


class Running:
    """A command that runs until Ctrl-C."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def until(self, text: str) -> str:
        """Read lines until one has the text; it is returned."""
        assert self.process.stdout is not None
        async with time_limit(CERTAINLY_WITHIN):
            while line := (await self.process.stdout.readline()).decode():
                self.lines.append(line)
                if text in line:
                    return line
        raise AssertionError(f"no line with {text!r} in:\n{''.join(self.lines)}")

    async def interrupt(self) -> Result:
        """Press Ctrl-C, and wait for the end."""
        self.process.send_signal(signal.SIGINT)
        return await self.ended()

    async def ended(self) -> Result:
        """Wait for the end."""
        async with time_limit(CERTAINLY_WITHIN):
            out, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return Result(self.process.returncode, "".join(self.lines) + out.decode(errors="replace"), errors.decode())


class Stage:
    """One system. `folder` is the developer's home."""

    def __init__(self, system: str, folder: Path, api: FakeApi, node: Daemon) -> None:
        self.system = system
        self.folder = folder
        self.api = api
        self.node = node
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("KUBE", "SUDO", "SIDESTEP"))},
            "HOME": str(folder),
            "KUBECONFIG": str(_kubeconfig(folder, api)),
            "PYTHONPATH": str(ROOT),
        }

    @contextlib.asynccontextmanager
    async def starting(self, *words: str | Path, **environment: str) -> AsyncIterator[Running]:
        """Start a command; it is killed at the end if it still runs."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.other_systems.preamble", self.system, *map(str, words),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd=self.folder, env={**self.environment, **environment},
        )  # fmt: skip
        try:
            yield Running(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def run(self, *words: str | Path, **environment: str) -> Result:
        """Run a command to its end."""
        async with self.starting(*words, **environment) as running:
            return await running.ended()


@contextlib.asynccontextmanager
async def stage(system: str, folder: Path, api: FakeApi) -> AsyncIterator[Stage]:
    """A cluster with pod `shop/orders-1`, and a developer's machine of this system."""
    pod: dict[str, Any] = {
        "metadata": {"name": "orders-1", "namespace": "shop"},
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "app", "ports": [{"containerPort": 8443, "name": "https"}]}],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]},
    }
    await api.put("/api/v1", "pods", pod)
    await api.put("/api/v1", "namespaces", {"metadata": {"name": "shop"}})
    async with daemon(api) as node:
        yield Stage(system, folder, api, node)


def _kubeconfig(folder: Path, api: FakeApi) -> Path:
    path = folder / "config"
    value = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "ada", "namespace": "shop"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{api.port}"}}],
        "users": [{"name": "ada", "user": {}}],
    }
    path.write_text(json.dumps(value))
    return path
