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
_END = "\n--end--\n"


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
    command = ["curl", *_transfer(url, *options, address=address, ca=ca, headers=headers, within=within)]
    done = subprocess.run(netns.enter(command), capture_output=True, timeout=within + 10, check=False)
    return _answer(done.stdout, done.returncode, done.stderr)


def curl_in_turn(
    netns: Netns,
    requests: Sequence[tuple[str, Sequence[str]]],
    *options: str | Path,
    address: str | None = None,
    ca: Path | None = None,
    within: float = 30.0,
) -> list[Answer]:
    """One run of curl for several requests, (URL, header lines) each, over one connection while both sides keep it."""
    command: list[str | Path] = ["curl"]
    for url, headers in requests:
        command += ["--next"] if len(command) > 1 else []
        command += _transfer(url, *options, address=address, ca=ca, headers=headers, within=within, end=_END)
    done = subprocess.run(netns.enter(command), capture_output=True, timeout=within + 10, check=False)
    answers = done.stdout.split(_END.encode())[:-1]
    return [_answer(output, done.returncode, done.stderr) for output in answers]


def _transfer(
    url: str,
    *options: str | Path,
    address: str | None,
    ca: Path | None,
    headers: Sequence[str],
    within: float,
    end: str = "",
) -> list[str | Path]:
    command: list[str | Path] = ["-sS", "--max-time", str(within)]
    command += ["-w", _MARK + "%{json}" + _MARK + "%{header_json}" + end]
    if address is not None:
        host, _, port = url.partition("//")[2].partition("/")[0].rpartition(":")
        quoted = f"[{address}]" if ":" in address else address
        command += ["--resolve", f"{host}:{port}:{quoted}"]
    if ca is not None:
        command += ["--cacert", ca]
    for line in headers:
        command += ["-H", line]
    return [*command, *options, url]


def _answer(output: bytes, code: int, errors: bytes) -> Answer:
    body, _, rest = output.rpartition(_MARK.encode())[0].rpartition(_MARK.encode())
    information = json.loads(rest or b"{}")
    shown = output.rpartition(_MARK.encode())[2]
    return Answer(
        code=code,
        status=information.get("http_code", 0),
        body=body,
        errors=errors.decode(errors="replace"),
        info=information,
        headers=json.loads(shown) if shown.strip() else {},
    )
