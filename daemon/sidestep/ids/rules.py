"""Reads the Suricata rules of a policy, and writes those of all policies of a pod for its Suricata. Pure.

Rules come from whoever may write a ConfigMap, and those of several policies share one process. Therefore

  * a rule alerts and does nothing else: `pass`, `drop`, `reject` and `config` rules are refused. A `pass` rule of one
    policy would silence the alerts of another;
  * `bypass` is refused: it ends the inspection of a connection for all rules. So are keywords that name files, hosts
    or scripts (`FORBIDDEN`), none of which Suricata could reach where it runs;
  * `gid` is ours: each policy has the number of its place, so that an alert says whose rule it was, and two policies
    may use the same `sid`. The names of `flowbits` get that number, too, so that no policy clears another's.

Whether a rule means anything is Suricata's to say (`suricata -T`); here only its form is read ("Rules Format" of
Suricata's documentation): an action, a header, and options in parentheses, each ended by `;`, in which `\\;` is a
character of a value. A backslash at the end of a line continues the rule.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from sidestep.model.errors import ConfigurationError

MAX_TEXT: Final = 1024 * 1024
"""Bytes of the rules of one policy: what a ConfigMap holds."""
MAX_RULES: Final = 8192
"""Rules of one policy. How many of them a Suricata has room for is measured (`ids.suricata.check`)."""
MAX_RULE: Final = 8192
"""Characters of one rule, as Suricata's own bound."""
FORBIDDEN: Final = frozenset(
    (
        "bypass", "dataset", "datarep", "filemd5", "filesha1", "filesha256", "filestore", "geoip", "gid", "hostbits",
        "ipopts-file", "iprep", "lua", "luajit", "luaxform", "replace", "tag", "xbits",
    )
)  # fmt: skip
"""Keywords that a rule may not have."""

_RULE: Final = re.compile(r"(?P<action>\S+)\s+(?P<header>[^()]*?)\s*\((?P<options>.*)\)\s*", re.DOTALL)
_OPTION: Final = re.compile(r"(?:[^;\\]|\\.)*;", re.DOTALL)
_SID: Final = re.compile(r"[0-9]{1,9}")


class IdsRule(msgspec.Struct, frozen=True):
    """One rule: its `sid`, what stands before the options, and the options as (keyword, value or None)."""

    sid: int
    header: str
    options: tuple[tuple[str, str | None], ...]

    def render(self, gid: int) -> str:
        """The rule as a line for Suricata, for the policy with this number."""
        parts = []
        for keyword, value in self.options:
            if value is None:
                parts.append(f"{keyword}; ")
            else:
                parts.append(f"{keyword}:{_own_flowbits(value, gid) if keyword == 'flowbits' else value}; ")
        return f"alert {self.header} ({''.join(parts)}gid:{gid};)"


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules of one policy. `digest` tells one from another."""

    rules: tuple[IdsRule, ...]
    digest: str
    memory: int = field(default=0, compare=False)
    """Bytes that a Suricata with them alone takes; 0 as long as that is not known."""

    def render(self, gid: int) -> str:
        """All of them as a file for Suricata, for the policy with this number."""
        return "".join(f"{rule.render(gid)}\n" for rule in self.rules)


def parse(text: str) -> RuleSet:
    """Read rules. Raises ConfigurationError, which names the line."""
    if (size := len(text.encode("utf-8", "replace"))) > MAX_TEXT:
        raise ConfigurationError(f"the rules have more than {MAX_TEXT // 1024} KiB: {-(-size // 1024)}")
    rules: list[IdsRule] = []
    lines: dict[int, int] = {}
    for number, line in _lines(text):
        if len(rules) == MAX_RULES:
            there_are = sum(1 for _ in _lines(text))
            raise ConfigurationError(f"line {number}: more than {MAX_RULES} rules: {there_are}")
        try:
            rule = _parse_rule(line)
        except ConfigurationError as error:
            raise ConfigurationError(f"line {number}: {error.reason}") from None
        if rule.sid in lines:
            raise ConfigurationError(f"line {number}: sid {rule.sid} is that of the rule in line {lines[rule.sid]}")
        lines[rule.sid] = number
        rules.append(rule)
    if not rules:
        raise ConfigurationError("there is no rule")
    return RuleSet(tuple(rules), hashlib.sha256(text.encode()).hexdigest())


def render_all(sets: Sequence[RuleSet]) -> str:
    """The rules of all policies of a pod as one file: the first policy has gid 1."""
    return "".join(each.render(gid) for gid, each in enumerate(sets, 1))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The rules, each with the number of its first line, continued lines joined."""
    begun, parts = 0, list[str]()
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if not parts and (not stripped or stripped.startswith("#")):
            continue
        begun = begun if parts else number
        if stripped.endswith("\\"):
            parts.append(stripped[:-1])
        else:
            yield begun, " ".join([*parts, stripped])
            parts = []
    if parts:
        yield begun, " ".join(parts)


def _parse_rule(line: str) -> IdsRule:
    if len(line) > MAX_RULE:
        raise ConfigurationError(f"a rule of more than {MAX_RULE} characters")
    if not line.isprintable():
        raise ConfigurationError("a character that cannot be printed (write it as |hex|)")
    found = _RULE.fullmatch(line)
    if found is None:
        raise ConfigurationError("no rule: write ACTION PROTOCOL SOURCE PORT -> DESTINATION PORT (OPTIONS;)")
    if found["action"] != "alert":
        raise ConfigurationError(f"the action {found['action'][:32]} is not possible, only alert is")
    options = _options(found["options"])
    sids = [value for keyword, value in options if keyword == "sid"]
    if len(sids) != 1 or sids[0] is None or not _SID.fullmatch(sids[0]) or int(sids[0]) == 0:
        raise ConfigurationError("a rule needs exactly one sid, a number from 1 to 999999999")
    return IdsRule(int(sids[0]), found["header"], options)


def _options(text: str) -> tuple[tuple[str, str | None], ...]:
    options: list[tuple[str, str | None]] = []
    at = 0
    while text[at:].strip():
        found = _OPTION.match(text, at)
        if found is None:
            raise ConfigurationError("the options do not end in ';'")
        at = found.end()
        keyword, colon, value = found[0][:-1].strip().partition(":")
        keyword = keyword.strip()
        if keyword.lower() in FORBIDDEN:
            raise ConfigurationError(f"the keyword {keyword} is not possible here")
        options.append((keyword, value.strip() if colon else None))
    return tuple(options)


def _own_flowbits(value: str, gid: int) -> str:
    """`set,name` as `set,NUMBER.name`; several names are joined by `|`."""
    command, comma, names = value.partition(",")
    if not comma:
        return value
    return f"{command},{'|'.join(f'p{gid}.{name.strip()}' for name in names.split('|'))}"
