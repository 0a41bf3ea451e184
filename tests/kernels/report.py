"""What a guest reports, line by line, and the table that is made of it.

A guest writes JSON objects, one a line, to a serial port that nothing else writes to. The first names the kernel, then
each step has one, and the last is `{"end": true}`. The guest runs the tests' own code and may be broken in any way, so
a line is accepted only as exactly that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

MAX_LINE = 64 * 1024
"""Characters of a line; a step's result has a few hundred."""


class ReportError(Exception):
    """A line that no guest writes, or one in the wrong place; the text says which."""


@dataclass(frozen=True)
class Outcome:
    """One step on one kernel."""

    step: str
    status: int | None
    """The exit status; None when it was not done in time and was ended."""
    seconds: float
    """Of the guest's time."""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    names: list[str] = field(default_factory=list)
    """What failed."""
    absent: list[str] = field(default_factory=list)
    """What doctor calls missing although nothing essential depends on it."""

    @property
    def good(self) -> bool:
        """Whether all of it ran and passed."""
        return self.status == 0 and not self.failed and self.passed > 0

    def cell(self) -> str:
        """Its cell of the table, in Markdown."""
        parts = [f"{self.passed} passed"] if self.passed else []
        parts += [f"**{self.failed} failed**"] if self.failed else []
        parts += [f"{self.skipped} skipped"] if self.skipped else []
        if self.status is None:
            parts.append("**not done in time**")
        elif not self.good and not self.failed:
            parts.append(f"**exit status {self.status}**")
        parts += [f"without {', '.join(self.absent)}"] if self.absent else []
        return ", ".join(parts)


@dataclass
class Report:
    """What one guest has said so far."""

    release: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    ended: bool = False
    _begun: str = ""
    """A line whose end has not been read."""

    def feed(self, text: str) -> list[Outcome]:
        """Take what was read next, however it is cut into pieces, and return the outcomes in it. Raises ReportError."""
        *lines, self._begun = (self._begun + text).split("\n")
        # The serial port is a terminal, which writes both characters at the end of a line.
        heard = [self._hear(line.removesuffix("\r")) for line in lines]
        if len(self._begun) > MAX_LINE:
            raise ReportError(f"a line of more than {MAX_LINE} characters")
        return [outcome for outcome in heard if outcome is not None]

    def _hear(self, line: str) -> Outcome | None:
        said = _parsed(line)
        if self.ended:
            raise ReportError(f"a line after the last: {line!r}")
        if not self.release:
            if set(said) != {"release"} or not isinstance(said["release"], str) or not said["release"]:
                raise ReportError(f"the first line does not name the kernel: {line!r}")
            self.release = said["release"]
            return None
        if said == {"end": True}:
            self.ended = True
            return None
        outcome = _outcome(said, line)
        if outcome.step in [each.step for each in self.outcomes]:
            raise ReportError(f"a second result of {outcome.step!r}")
        self.outcomes.append(outcome)
        return outcome


def spoken(outcome: Outcome) -> str:
    """The line by which a guest reports it."""
    return json.dumps(asdict(outcome))


def _parsed(line: str) -> dict[str, object]:
    if len(line) > MAX_LINE:
        raise ReportError(f"a line of {len(line)} characters")
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        raise ReportError(f"no JSON: {line[:200]!r}") from None
    if not isinstance(said, dict):
        raise ReportError(f"no object: {line[:200]!r}")
    return said


def _outcome(said: Mapping[str, object], line: str) -> Outcome:
    if set(said) != {each.name for each in fields(Outcome)}:
        raise ReportError(f"not the fields of a result: {line[:200]!r}")
    status, lists = said["status"], [said["names"], said["absent"]]
    right = (
        isinstance(said["step"], str)
        and (status is None or _is_count(status, least=-64))
        and (_is_count(said["seconds"]) or isinstance(said["seconds"], float))
        and all(_is_count(said[name]) for name in ("passed", "failed", "skipped"))
        and all(isinstance(each, list) and all(isinstance(name, str) for name in each) for each in lists)
    )
    if not right:
        raise ReportError(f"not the types of a result: {line[:200]!r}")
    return Outcome(**said)  # type: ignore[arg-type]  # checked above


def _is_count(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def table(reports: Mapping[str, Report], steps: Mapping[str, str]) -> str:
    """A row for each step, whose titles are given by name, and a column for each kernel, in Markdown."""
    releases = [report.release or name for name, report in reports.items()]
    rows = [["", *releases], ["---"] * (len(releases) + 1)]
    for step, title in steps.items():
        found = [
            [each.cell() for each in report.outcomes if each.step == step] or ["not run"] for report in reports.values()
        ]
        rows.append([title, *(cells[0] for cells in found)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


_SUMMARY = re.compile(r"^(?:=+ )?((?:\d+ [a-z]+, )*\d+ [a-z]+) in [\d.]+s\b.*$", re.MULTILINE)
_OBSERVED = re.compile(r"^All (\d+) statements were observed", re.MULTILINE)
_MISSED = re.compile(r"^(\d+) of (\d+) statements were NOT observed:", re.MULTILINE)


def tests(output: str) -> dict[str, object]:
    """Counts of what pytest printed; nothing when it printed no summary."""
    summaries = _SUMMARY.findall(output)
    counts = {word.rstrip("s"): int(count) for count, word in re.findall(r"(\d+) ([a-z]+)", "".join(summaries[-1:]))}
    return {
        "passed": counts.get("passed", 0),
        "failed": counts.get("failed", 0) + counts.get("error", 0),
        "skipped": counts.get("skipped", 0),
        "names": re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)[:100],
    }


def statements(output: str) -> dict[str, object]:
    """Counts of what the demo printed."""
    if observed := _OBSERVED.search(output):
        return {"passed": int(observed[1])}
    if missed := _MISSED.search(output):
        failed, whole = int(missed[1]), int(missed[2])
        return {"passed": whole - failed, "failed": failed}
    return {}


def checks(output: str) -> dict[str, object]:
    """Counts of what `sidestep doctor --output json` printed. Raises ReportError.

    The node daemon is left out: none runs on the guest.
    """
    found = [_parsed(line) for line in output.splitlines() if line.startswith("{")]
    missing = [each for each in found if each.get("state") == "missing" and each.get("check") != "node daemon"]
    return {
        "passed": sum(each.get("state") == "ok" for each in found),
        "failed": sum(each.get("essential") is True for each in missing),
        "names": [str(each.get("check")) for each in missing if each.get("essential") is True],
        "absent": [str(each.get("check")) for each in missing if each.get("essential") is not True],
    }


COUNTED = {"tests": tests, "statements": statements, "checks": checks}
"""How a step's output is counted, by the name that the step has for it."""
