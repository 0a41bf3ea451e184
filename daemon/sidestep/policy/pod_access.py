"""What a session may use of a pod's world: the rules of a PodAccess, and the container and process that it means. Pure.

A PodAccess is a right of its own, as strong as `pods/exec`: no other kind of session has the field `allow`. It is about
no port, so it conflicts with nothing and steers nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.intercept import Allow, Intercept, Kind
from sidestep.policy.names import is_label
from sidestep.policy.pod_ports import listed

if TYPE_CHECKING:
    from sidestep.model.pod import Pod

DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
"""Annotation of a pod: the container that is meant where none is named
(kubernetes.io/docs/reference/labels-annotations-taints)."""


def check_access(intercept: Intercept) -> None:
    """Raise ConfigurationError or RefusedError for a session that asks for what an access cannot be."""
    if not intercept.allow:
        if intercept.container or intercept.allow_loopback:
            raise RefusedError("only an access is about a container or its loopback")
        return
    gets_traffic = intercept.egress or intercept.capture or intercept.records or intercept.heads_only
    if intercept.kind is not Kind.WIRETAP or intercept.port or gets_traffic or not intercept.filter.is_global:
        raise RefusedError("an access to pods is about no port and gets no traffic; use a session of its own for that")
    if intercept.reset_existing:
        raise RefusedError("an access to pods resets no connections")
    if intercept.container and not is_label(intercept.container):
        raise ConfigurationError("is no container's name", subject="container", value=intercept.container[:100])
    if intercept.allow_loopback and Allow.NETWORK not in intercept.allow:
        raise RefusedError("allowLoopback is about connections; allow Network, too")


def container_of(access: Intercept, pod: Pod, wanted: str = "") -> str:
    """Return the container that is meant: `wanted`, else the one of the access, else the pod's default.

    Raises RefusedError where the access is about another container, and where the pod has no such container.
    """
    if wanted and access.container and wanted != access.container:
        raise RefusedError(f"{access.leave_name} is about container {access.container}, not {wanted[:63]}")
    chosen = wanted or access.container
    if not chosen:
        default = pod.annotations.get(DEFAULT_CONTAINER, "")
        chosen = default if default in pod.containers else next(iter(pod.containers), "")
    if chosen not in pod.containers:
        there = listed(list(pod.containers))
        raise RefusedError(f"pod {pod.key} has no container {chosen[:63] or 'at all'} (it has: {there})")
    return chosen


def process_of(pod: Pod, container: str) -> int | None:
    """Return the id of the container's main process; None where there is none, or none is stated."""
    pids = pod.location.pids
    return pids.get(container, pids.get("") if not pod.location.searched else None)


def why_unusable(access: Intercept, pod: Pod) -> str:
    """Return why a pod's container cannot be used at all, in one line; empty when it can, now or later."""
    try:
        container = container_of(access, pod)
    except RefusedError as error:
        return str(error)
    if pod.location.searched or process_of(pod, container) is not None or Allow.NETWORK in access.allow:
        return ""
    if Allow.FILES in access.allow and pod.location.root is not None:
        return ""
    return f"pod {pod.key} has no process here that its manifest names (annotation sidestep.dev/pid)"


def why_not_yet(access: Intercept, pod: Pod) -> str:
    """Return why a container that can be used cannot be used yet, in one line; empty when it can be now."""
    if not pod.started:
        return "the pod has not been started yet"
    container = container_of(access, pod)
    if pod.location.searched and process_of(pod, container) is None:
        return f"container {container} does not run"
    return ""
