"""What a session may ask about alerts that a daemon knows already, and which of them are its own. Pure.

A session sees what `sidestep inspect` of the same workload would have shown: alerts of pods of its workload in its
namespace. The id alone opens nothing, because clients are told it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.intercept import Live

if TYPE_CHECKING:
    from sidestep.model.intercept import Intercept

ID: Final = re.compile(r"[0-9a-f]{8}-[0-9]{1,19}")
"""An exchange's id, as a refused client is told it."""


def check_alert(intercept: Intercept) -> None:
    """Raise ConfigurationError or RefusedError for a session that asks for alerts that it cannot get."""
    if not intercept.alert:
        return
    if not ID.fullmatch(intercept.alert):
        raise ConfigurationError("is no id of an alert", subject="alert", value=intercept.alert[:100])
    if intercept.records is not Live.ALERTS:
        raise RefusedError("only a session that gets alerts, and nothing else, is told of an earlier one")


def is_of(intercept: Intercept, *, namespace: str, pod: str, workload: str | None) -> bool:
    """Whether an alert of this pod is the session's. `workload` is the pod's as `kind/name`, None without one."""
    wanted = intercept.workload
    kind, _, name = (workload or f"pod/{pod}").partition("/")
    is_wanted = wanted.means(kind, name) or wanted.means("pod", pod)
    return namespace == intercept.namespace and is_wanted and intercept.pod in {None, pod}
