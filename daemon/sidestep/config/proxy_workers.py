"""How many processes the proxy of a pod is to have: annotation `sidestep.dev/proxy-workers` (docs/performance.md).

A number, or `auto`: as many as its load needs (`node.proxies.load`). The nearest one counts: of the pod, of what owns
it, of its namespace, of its node. That of the node is also the most that pods get there. An invalid one is a problem,
and counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from sidestep.config.annotation_names import PROXY_WORKERS
from sidestep.config.annotation_problem import AnnotationProblem, origins
from sidestep.model.errors import ConfigurationError

if TYPE_CHECKING:
    from sidestep.model.pod import Pod

MOST = 16
"""Processes of one pod proxy."""
AUTO = "auto"

_NUMBER = re.compile(r"[1-9][0-9]?")


class Workers(msgspec.Struct, frozen=True):
    """So many processes; if `automatic` as many as the load needs, from one to that number."""

    most: int
    automatic: bool = False


ONE = Workers(1)


def parse(value: str) -> Workers:
    """Return the number. Raises ConfigurationError."""
    if value == AUTO:
        return Workers(MOST, automatic=True)
    if not _NUMBER.fullmatch(value) or int(value) > MOST:
        raise ConfigurationError(f"must be {AUTO}, or a number from 1 to {MOST}")
    return Workers(int(value))


def resolve(pod: Pod, namespace_annotations: Mapping[str, str]) -> tuple[Workers | None, tuple[AnnotationProblem, ...]]:
    """Return what is set nearest to the pod, None if none but the node may say it, and problems."""
    problems: list[AnnotationProblem] = []
    for origin, written in (*origins(pod), (f"namespace {pod.key.namespace}", namespace_annotations)):
        value = written.get(PROXY_WORKERS)
        if value is None:
            continue
        try:
            return parse(value), tuple(problems)
        except ConfigurationError as error:
            problems.append(AnnotationProblem(PROXY_WORKERS, value, error.reason, f"pod {pod.key}", origin))
    return None, tuple(problems)
