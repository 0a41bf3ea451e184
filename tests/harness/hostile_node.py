"""`python -m tests.harness.hostile_node FILE SIDESTEP node …`: the daemon, some of whose proxies were taken over.

It also listens at the port that the kubelet asks in a cluster; its number is written to FILE.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidestep.cli import main
from sidestep.cli.standard_streams import open_standard_streams
from sidestep.node.api.health import HealthServer
from sidestep.node.proxies.supervisor import ProxySupervisor, ZygoteSettings

ROOT = str(Path(__file__).parents[2])
WORKER = "tests.harness.hostile_proxy:run"


def _crashed(task: str, error: BaseException) -> None:
    raise AssertionError(f"{task}: {error!r}")


def _note(file: Path, port: int) -> None:
    file.write_text(f"{port}")


def _taken_over(file: Path) -> None:
    start: Callable[..., Any] = ProxySupervisor.start

    async def start_hostile(**options: Any) -> ProxySupervisor:
        health = HealthServer(port=0, on_crash=_crashed)
        await health.start()
        _note(file, health.port)
        supervisor: ProxySupervisor = await start(**options, zygote=ZygoteSettings(worker=WORKER, path=ROOT))
        closing = supervisor.aclose

        async def aclose() -> None:
            await asyncio.gather(health.aclose(), closing())

        supervisor.aclose = aclose  # type: ignore[method-assign]
        return supervisor

    ProxySupervisor.start = start_hostile  # type: ignore[method-assign]


if __name__ == "__main__":
    _taken_over(Path(sys.argv[1]))
    open_standard_streams()
    sys.exit(main.run(sys.argv[3:]))
