"""The regression tests of the Core Rule Set that is installed, from Debian's source package, as requests.

They are written for FTW (a framework that is no longer kept), whose treatment of what a test leaves out is done here.

All are asked of all rules in `test_regression` alone. Where something else is tested (the way through the proxy, the
rules of another version) a case names in one more field the file of rules that it is about (`told_apart`), and with
NARROW an engine leaves out the rules of other files that judge requests. That takes a third of the time: 2.5 ms of CPU
instead of 8 for version 4.
"""

from __future__ import annotations

import base64
import functools
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode

import yaml

from tests.debian import cache, mirror

PACKAGE = "modsecurity-crs"
RECIPE = 1
"""To be raised when the way in which the source is unpacked changes."""
SETTINGS = (
    'SecAction "id:900005,phase:1,nolog,pass,ctl:ruleEngine=DetectionOnly,setvar:tx.crs_validate_utf8_encoding=1,'
    "setvar:tx.arg_name_length=100,setvar:tx.arg_length=400,setvar:'tx.allowed_methods=GET HEAD POST OPTIONS'\"\n"
)
"""What tests/regression/README.md asks for, beside paranoia level 4."""
FILE = "X-File"
"""The field that names a file of rules by its number."""
FILES = (911, 913, 920, 921, 922, 930, 931, 932, 933, 934, 941, 942, 943, 944)
"""Those that judge requests: a lower number makes settings, 949 adds up."""
NARROW = "".join(
    f'SecRule REQUEST_HEADERS:{FILE} "@streq {number}" "id:98{number},phase:1,t:none,nolog,pass,'
    f'ctl:ruleRemoveById=910000-{number - 1}999,ctl:ruleRemoveById={number + 1}000-948999"\n'
    for number in FILES
)
"""SecLang for the end of crs-setup.conf, or in front of it. Ids below 100000 are the users'."""
KNOWN = (
    dict.fromkeys(
        ("920460-1/0", "920460-2/0", "920460-3/0", "920460-4/0", "941330-1/0"),
        "the backslashes of this rule's regex mean something else in ModSecurity 3's configuration",
    )
    | dict.fromkeys(
        ("920420-12/0", "920420-13/0"), "CRS 3.3.4 allows multipart/related, which ModSecurity does not parse"
    )
    | dict.fromkeys(("920420-19/0", "920420-20/0"), "CRS 3.3.7 refuses CloudEvents, which are parsed as JSON here")
)
"""Tests that may fail with our rules, whatever asks them, with reasons; of several versions of CRS."""


@dataclass(frozen=True)
class Case:
    """One stage of a test: the request, ids of which rules have to match, and which must not."""

    title: str
    method: str
    uri: str
    version: str
    fields: tuple[tuple[str, str], ...]
    body: bytes
    wanted: frozenset[int]
    unwanted: frozenset[int]
    status: tuple[int, ...] = ()
    raw: bytes | None = None

    @property
    def file(self) -> str:
        """The number of the file that has its rules."""
        return self.title[:3]


def told_apart(case: Case) -> tuple[tuple[str, str], ...]:
    """The fields of a case, and FILE."""
    return (*case.fields, (FILE, case.file))


@functools.cache
def askable() -> tuple[Case, ...]:
    """The cases that are about rules.

    What is sent as raw bytes, and what only a status is expected of, is about the server's parser.
    """
    return tuple(each for each in cases(source()) if each.raw is None and (each.wanted or each.unwanted))


def source() -> Path:
    """The unpacked source of the package that is installed, fetched once. Raises BuildError."""
    show = ["dpkg-query", "-W", "-f", "${source:Upstream-Version}", PACKAGE]
    version = subprocess.run(show, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    return cache.entry("core-rule-set", cache.digest(str(RECIPE), version), lambda made: _unpack(made, version))


def _unpack(made: Path, version: str) -> None:
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    lists, sources = made / "lists", made / "sources.list"
    (lists / "partial").mkdir(parents=True)
    sources.write_text(f"deb-src {mirror.mirror()} {suite} main\n")
    options = [
        "-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=/dev/null",
        "-o", f"Dir::State::Lists={lists}", "-o", "APT::Sandbox::User=root", "-qq",
    ]  # fmt: skip
    for what in (["--error-on=any", "update"], ["source", "--tar-only", "--download-only", PACKAGE]):
        cache.step(
            f"fetching Debian's source of {PACKAGE} (1 MB)", ["apt-get", *options, *what], log=made / "log",
            within=300, attempts=cache.ATTEMPTS, cwd=made,
        )  # fmt: skip
    (archive,) = made.glob(f"{PACKAGE}_{version}.orig.tar.*")
    unpack = ["tar", "-xf", archive, "--strip-components=1", "-C", made]
    cache.step("unpacking it", unpack, log=made / "log", within=60)


def cases(folder: Path) -> Iterator[Case]:
    """All stages of all tests in a source."""
    for path in sorted((folder / "tests/regression/tests").rglob("*.yaml")):
        document = yaml.load(path.read_text(), yaml.CSafeLoader)
        if not document["meta"].get("enabled", True):
            continue
        for test in document["tests"]:
            for number, stage in enumerate(test["stages"]):
                yield _case(f"{test['test_title']}/{number}", stage["stage"])


def _case(title: str, stage: dict) -> Case:
    read, told = stage["input"], stage.get("output", {})
    fields = {str(name): str(value) for name, value in (read.get("headers") or {}).items()}
    data = read.get("data", "")
    data = "\r\n".join(data) if isinstance(data, list) else str(data)
    if data and not read.get("stop_magic"):
        data = _as_ftw_sends(fields, data)
    raw = read.get("encoded_request")
    status = told.get("status", [])
    return Case(
        title=title,
        method=str(read.get("method", "GET")),
        uri=str(read.get("uri", "/")),
        version=str(read.get("version", "HTTP/1.1")),
        fields=tuple(fields.items()),
        body=data.encode("utf-8"),
        wanted=_ids(told.get("log_contains")),
        unwanted=_ids(told.get("no_log_contains")),
        status=tuple(map(int, status if isinstance(status, list) else [status])),
        raw=base64.b64decode(raw) if raw else None,
    )


def _as_ftw_sends(fields: dict[str, str], data: str) -> str:
    """Add what FTW adds to a request with a body."""
    fields.setdefault("Content-Type", "application/x-www-form-urlencoded")
    if fields["Content-Type"] == "application/x-www-form-urlencoded" and unquote(data) == data:
        data = urlencode(parse_qsl(data)) or data
    fields.setdefault("Content-Length", str(len(data.encode())))
    return data


def _ids(text: str | None) -> frozenset[int]:
    return frozenset(map(int, re.findall(r'id "(\d+)"', text or "")))
