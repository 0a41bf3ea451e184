"""How many processes the proxy of a pod is to have: annotation `sidestep.dev/proxy-workers` (docs/performance.md).

The nearest one counts: of the pod, of what owns it, of its namespace, of its node. That of the node is also the most
that pods get there. An invalid one is a problem, and counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sidestep.config.annotation_names import PROXY_WORKERS
from sidestep.config.annotation_problem import AnnotationProblem, origins
from sidestep.model.errors import ConfigurationError

if TYPE_CHECKING:
    from sidestep.model.pod import Pod

MOST = 16
"""Processes of one pod proxy."""

_NUMBER = re.compile(r"[1-9][0-9]?")


def parse(value: str) -> int:
    """Return the number. Raises ConfigurationError."""
    if not _NUMBER.fullmatch(value) or int(value) > MOST:
        raise ConfigurationError(f"must be a number from 1 to {MOST}")
    return int(value)


def resolve(pod: Pod, namespace_annotations: Mapping[str, str]) -> tuple[int | None, tuple[AnnotationProblem, ...]]:
    """Return the number that is set nearest to the pod, None if none but the node may say one, and problems."""
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
