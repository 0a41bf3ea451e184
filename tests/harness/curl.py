"""curl, run inside the client's namespace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.namespaces import Netns

_MARK = "\n--curl--\n"


@dataclass(frozen=True)
class Answer:
    """What curl saw. `code` is curl's exit status (0 done, 7 refused, 52 empty answer, 56 reset, 60 untrusted)."""

    code: int
    status: int
    body: bytes
    errors: str
    info: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    @property
    def served_by(self) -> str:
        """The value of X-Served-By."""
        return ", ".join(self.headers.get("x-served-by", []))


def curl(
    netns: Netns,
    url: str,
    *options: str | Path,
    address: str | None = None,
    ca: Path | None = None,
    headers: Sequence[str] = (),
    within: float = 15.0,
) -> Answer:
    """Run curl once. `address` is where the host of `url` is found; `ca` the file to trust instead of the system's."""
    command: list[str | Path] = [
        "curl",
        "-sS",
        "--max-time",
        str(within),
        "-w",
        _MARK + "%{json}" + _MARK + "%{header_json}",
    ]
    if address is not None:
        host, _, port = url.partition("//")[2].partition("/")[0].rpartition(":")
        quoted = f"[{address}]" if ":" in address else address
        command += ["--resolve", f"{host}:{port}:{quoted}"]
    if ca is not None:
        command += ["--cacert", ca]
    for line in headers:
        command += ["-H", line]
    done = subprocess.run(netns.enter([*command, *options, url]), capture_output=True, timeout=within + 10, check=False)
    body, _, rest = done.stdout.rpartition(_MARK.encode())[0].rpartition(_MARK.encode())
    information = json.loads(rest or b"{}")
    shown = done.stdout.rpartition(_MARK.encode())[2]
    return Answer(
        code=done.returncode,
        status=information.get("http_code", 0),
        body=body,
        errors=done.stderr.decode(errors="replace"),
        info=information,
        headers=json.loads(shown) if shown.strip() else {},
    )
