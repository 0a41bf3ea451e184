"""What a policy says of its web application firewall: settings of the Core Rule Set, rules of its own, limits.

Values only. `config.waf` parses them, `policy.waf` joins those of several policies of a port.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from sidestep.model.config_map_key import ConfigMapKey
from sidestep.model.filter import PathCondition

REQUEST_LINE_OF_CRS: Final = 921110
"""A rule that in CRS 3.3 takes any line that ends like `budget ok` for a request line of HTTP/0.9 ..."""
REQUEST_LINE: Final = 9_900_011
"""... and the rule of ours that stands in its place at paranoia level 1. Who excludes the one excludes the other."""


FIRST_CUSTOM: Final = 10_000_000
"""What is added to the ids of custom rules where they are loaded: beyond those of CRS ..."""
CUSTOM_PLACE: Final = 100_000
"""... and this for each further policy of a port."""

MAX_EXEMPTIONS: Final = 256
"""Exceptions of a policy, and of all of a port: each a rule, a path and an argument ..."""
MAX_EXEMPTION_BYTES: Final = 16 * 1024
"""... and the bytes of their paths and arguments."""


class OverLimit(enum.StrEnum):
    """What becomes of a request that exceeds a limit, and so is not judged as a whole."""

    BLOCK = "Block"
    PASS = "Pass"  # noqa: S105 - it lets pass


class WafLimits(msgspec.Struct, frozen=True):
    """What is judged of a request, and for how long.

    body_bytes        bytes of the decoded body
    fields            arguments of query and body together
    verdict_seconds   until there must be a verdict
    """

    body_bytes: int = 65536
    fields: int = 256
    verdict_seconds: float = 0.25
    over_limit: OverLimit = OverLimit.BLOCK


class WafException(msgspec.Struct, frozen=True):
    """Rules of CRS that do not look at some requests, by their paths, or at some arguments of requests, by their names.

    Without paths it is about all requests, without parameters about requests as a whole; one of both there is. Paths
    are literal: EQUAL or PREFIX.
    """

    rules: tuple[int, ...]
    paths: tuple[PathCondition, ...] = ()
    parameters: tuple[str, ...] = ()


class Waf(msgspec.Struct, frozen=True):
    """Settings of one policy: paranoia level (1 to 4) and anomaly threshold of CRS, ids of rules that are left out."""

    paranoia: int = 1
    threshold: int = 5
    excluded: tuple[int, ...] = ()
    rules_from: ConfigMapKey | None = None
    limits: WafLimits = msgspec.field(default_factory=WafLimits)
    responses: bool = False
    """Whether responses are judged, too."""
    exceptions: tuple[WafException, ...] = ()
