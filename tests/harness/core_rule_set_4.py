"""Version 4 of the Core Rule Set, which no Debian has: its layout, made of Debian's 3.3 files, and its own rules.

`core_rule_set_4` has the layout, and the names of settings and scores. What differs there, from its files REQUEST-901,
949, RESPONSE-959 and the release's folders:

    levels      tx.blocking_paranoia_level, tx.detection_paranoia_level, for tx.paranoia_level and tx.executing_...
    scores      tx.inbound_anomaly_score_plN for tx.anomaly_score_plN; the sums are tx.blocking_inbound_anomaly_score
                and tx.blocking_outbound_anomaly_score
    files       only crs-setup.conf.example; a folder of plugins, and examples of exclusions, that are not read; no 903,
                910 and 912; 934 has another name

The rules themselves are those of 3.3.

`rules_of_version_4` has the rules of version 4, which PyPI has as test data of a parser that the same project writes.
The lists of words that they name are not there: Debian's are used, and of three that 3.3 does not have one word each.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sidestep.inspector.rules import DEBIAN
from tests.debian import cache

VERSION = "4.13.0"
_NAMES = (
    (r"\bexecuting_paranoia_level\b", "detection_paranoia_level"),
    (r"(?<!_)\bparanoia_level\b", "blocking_paranoia_level"),
    (r"\banomaly_score_pl([1-4])\b", r"inbound_anomaly_score_pl\1"),
    (r"\boutbound_anomaly_score\b", "blocking_outbound_anomaly_score"),
    (r"\banomaly_score\b", "blocking_inbound_anomaly_score"),
)
_VARIABLE = re.compile(r"(?i)(\btx[.:])([a-z0-9_]+)")
RELEASED = "4.0.1-dev"
"""What the rules of `rules_of_version_4` say of themselves."""
LEFT_OUT = (920600, 922110, 934170)
"""Rules whose regexes PCRE2 cannot compile."""
CHANGED = {
    920100: "CONNECT to a name is allowed",
    920120: "3.3.7 looks for backslashes in names of files, too",
    920121: "the same",
    920181: "the test expects a server that refuses two lengths before CRS sees them",
    920420: "the test allows multipart/related, which ModSecurity does not parse",
    920430: "HTTP/3.0 is allowed",
    920450: "Accept-Charset is for 920451",
    921110: "a version has to stand behind the request line",
    933160: "fewer functions are in its list",
    933210: "`);` has to stand at the end; 933211 wants none",
    941350: "it decodes percent signs once less",
    942130: "numbers are for 942131",
    942150: "functions are for 942151",
    942190: "`union` needs `all`, `distinct` or `select`",
    942260: "`union select` is not in it any more",
    942310: "`and =` is not in it any more",
    942360: "aliases are for 942362",
}
"""Rules that find less or other than those of 3.3 with the same number: their tests may fail."""
_ARCHIVE = "seclang-parser==0.3.2 --hash=sha256:5ff065189e49f24fef425b97fffdde790558f1df8d04cd9bd1fe8cf3d1ef7223\n"
_RECIPE = 1
"""To be raised when the way in which it is unpacked changes."""
_WITHIN = 400.0
"""Seconds: pip asks the package's build for its name, and fetches what builds it."""
_WORDS = {"ssrf.data": "169.254.169.254", "php-errors-pl2.data": "Invalid date", "web-shells-php.data": "r57shell"}
_GONE = ("REQUEST-903", "REQUEST-910", "REQUEST-912")


def core_rule_set_4(folder: Path) -> Path:
    """Make it in this folder, which is not there yet."""
    setup, rules = map(Path, DEBIAN)
    (folder / "rules").mkdir(parents=True)
    (folder / "plugins").mkdir()
    for name in ("empty-config.conf", "broken-before.conf"):
        (folder / "plugins" / name).write_text("SecNothing On\n")
    for name in ("REQUEST-900-EXCLUSION-RULES-BEFORE-CRS", "RESPONSE-999-EXCLUSION-RULES-AFTER-CRS"):
        (folder / "rules" / f"{name}.conf.example").write_text("SecNothing On\n")
    (folder / "crs-setup.conf.example").write_text(_renamed(setup.read_text()))
    for path in rules.iterdir():
        if path.suffix == ".data":
            (folder / "rules" / path.name).write_bytes(path.read_bytes())
        elif path.suffix == ".conf" and not path.name.startswith(_GONE):
            name = path.name.replace("934-APPLICATION-ATTACK-NODEJS", "934-APPLICATION-ATTACK-GENERIC")
            (folder / "rules" / name).write_text(_renamed(path.read_text()))
    return folder


def rules_of_version_4() -> Path:
    """The folder, fetched once. Raises BuildError."""
    return cache.entry("core-rule-set-4", cache.digest(str(_RECIPE), _ARCHIVE), _fetch) / "made"


def _fetch(work: Path) -> None:
    wanted, log = work / "requirements.txt", work / "log"
    wanted.write_text(_ARCHIVE)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", "--no-deps"]
    command += ["--require-hashes", "--no-binary=seclang-parser", "-d", str(work), "-r", str(wanted)]
    cache.step("fetching rules of CRS 4 (0.3 MB)", command, log=log, within=_WITHIN, attempts=cache.ATTEMPTS)
    (archive,) = work.glob("*.tar.gz")
    cache.step("unpacking them", ["tar", "-xf", archive, "--strip-components=1", "-C", work], log=log, within=60)
    found, rules = work / "testdata", work / "made" / "rules"
    rules.mkdir(parents=True)
    (found / "crs-setup.conf").rename(rules.parent / "crs-setup.conf.example")
    for path in (found / "crs").glob("*.conf"):
        path.rename(rules / path.name)
    for path in Path(DEBIAN[1]).glob("*.data"):
        (rules / path.name).write_bytes(path.read_bytes())
    for name, word in _WORDS.items():
        (rules / name).write_text(f"{word}\n")


def _renamed(text: str) -> str:
    text = re.sub(r"OWASP_CRS/3\.[0-9.]+", f"OWASP_CRS/{VERSION}", text)
    return _VARIABLE.sub(lambda found: found[1] + _variable(found[2].lower()), text)


def _variable(name: str) -> str:
    for pattern, other in _NAMES:
        renamed, count = re.subn(rf"\A{pattern}\Z", other, name)
        if count:
            return renamed
    return name
