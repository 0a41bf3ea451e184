"""The name of a session that was given none: that of its workload, with what it is unless it takes or copies requests.

`sidestep flows orders` is `orders-flows`, so that the intercept that somebody begins beside it is `orders`. Where the
name is taken, a number follows: `orders-2`.
"""

from __future__ import annotations

import re

from sidestep.policy.workloads import parse_workload
from sidestep.tunnel.messages import SessionSpec

_OTHER = re.compile(r"[^a-z0-9.-]")
_LONGEST = 200
"""Characters of the workload's name; a resource's name has at most 253."""


def base_name(spec: SessionSpec) -> str:
    """Return the name that a session gets first."""
    name = _OTHER.sub("-", parse_workload(spec.workload).name.lower())[:_LONGEST]
    return f"{name}{_suffix(spec)}"


def _suffix(spec: SessionSpec) -> str:
    if spec.allow:
        return "-access"
    if spec.capture:
        return "-capture"
    if spec.records:
        return "-inspect"
    return "-flows" if spec.heads_only else ""
