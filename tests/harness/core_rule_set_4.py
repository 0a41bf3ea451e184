"""A Core Rule Set in the layout, and with the names of settings and scores, that version 4 has: of Debian's 3.3 files.

Debian has no version 4. What differs there, from its files REQUEST-901, 949, RESPONSE-959 and the release's folders:

    levels      tx.blocking_paranoia_level, tx.detection_paranoia_level, for tx.paranoia_level and tx.executing_...
    scores      tx.inbound_anomaly_score_plN for tx.anomaly_score_plN; the sums are tx.blocking_inbound_anomaly_score
                and tx.blocking_outbound_anomaly_score
    files       only crs-setup.conf.example; a folder of plugins, and examples of exclusions, that are not read; no 903,
                910 and 912; 934 has another name

The rules themselves are those of 3.3.
"""

from __future__ import annotations

import re
from pathlib import Path

from sidestep.inspector.rules import DEBIAN

VERSION = "4.13.0"
_NAMES = (
    (r"\bexecuting_paranoia_level\b", "detection_paranoia_level"),
    (r"(?<!_)\bparanoia_level\b", "blocking_paranoia_level"),
    (r"\banomaly_score_pl([1-4])\b", r"inbound_anomaly_score_pl\1"),
    (r"\boutbound_anomaly_score\b", "blocking_outbound_anomaly_score"),
    (r"\banomaly_score\b", "blocking_inbound_anomaly_score"),
)
_VARIABLE = re.compile(r"(?i)(\btx[.:])([a-z0-9_]+)")
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


def _renamed(text: str) -> str:
    text = re.sub(r"OWASP_CRS/3\.[0-9.]+", f"OWASP_CRS/{VERSION}", text)
    return _VARIABLE.sub(lambda found: found[1] + _variable(found[2].lower()), text)


def _variable(name: str) -> str:
    for pattern, other in _NAMES:
        renamed, count = re.subn(rf"\A{pattern}\Z", other, name)
        if count:
            return renamed
    return name
