"""Settings of a node, from annotations on the Node object (docs/install.md).

An absent annotation means the default. An invalid one is a problem and keeps the previous value, so that a typo neither
starts nor stops anything. Of the networks that are denied, an invalid one denies all where none were denied before.

Globs support `*` and `?`. `kube-system` and Sidestep's own namespace are steered only when a glob without wildcards
names them: `*` means the namespaces of users.
"""

from __future__ import annotations

import enum
import fnmatch
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from typing import TypeVar

import msgspec

from sidestep.config import annotation_names as names
from sidestep.config import proxy_workers
from sidestep.config.annotation_problem import AnnotationProblem
from sidestep.config.durations import parse_duration
from sidestep.config.proxy_workers import Workers
from sidestep.model.errors import ConfigurationError

OWN_NAMESPACE = "sidestep"
"""Namespace that `deploy/daemonset.yaml` creates."""
SYSTEM_NAMESPACES = frozenset({"kube-system"})
DEFAULT_DRAIN_TIMEOUT = 30.0
"""Seconds; the default grace period of Kubernetes."""
MAX_DRAIN_TIMEOUT = 3600.0
"""Seconds."""
MAX_GLOBS = 256
MAX_NETWORKS = 256
EVERYTHING = ("0.0.0.0/0", "::/0")
"""Networks that hold every address."""
MAX_PODS_LIMIT = 10_000
"""Upper bound of `max-pods`; a kubelet runs a few hundred pods at most."""

_T = TypeVar("_T")
_GLOB = re.compile(r"[a-z0-9*?]([-a-z0-9*?]{0,61}[a-z0-9*?])?")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")


class EveOutput(enum.StrEnum):
    """Where a node writes EVE records of inspection. Paths are fixed: who annotates a Node does not choose them."""

    OFF = "off"
    STDOUT = "stdout"
    FILE = "file"
    UNIX = "unix"


class NodeSettings(msgspec.Struct, frozen=True):
    """Settings of one node. `namespaces` are globs; `max_pods` is None for no limit; `drain_timeout` is in seconds;
    `inspection` says whether inspection policies apply; `outbound_deny` are networks (CIDR) to which no session
    may have a pod connect; `proxy_workers` are the processes of a pod proxy unless its pod says fewer, None for as many
    as the pod says."""

    enabled: bool = True
    namespaces: tuple[str, ...] = ("*",)
    max_pods: int | None = None
    drain_timeout: float = DEFAULT_DRAIN_TIMEOUT
    inspection: bool = True
    eve: EveOutput = EveOutput.FILE
    own_namespace: str = OWN_NAMESPACE
    outbound_deny: tuple[str, ...] = ()
    proxy_workers: Workers | None = None

    def allows(self, namespace: str) -> bool:
        """Whether pods of this namespace may be steered on this node."""
        if namespace in SYSTEM_NAMESPACES or namespace == self.own_namespace:
            return namespace in self.namespaces
        return any(fnmatch.fnmatchcase(namespace, glob) for glob in self.namespaces)


def resolve(
    annotations: Mapping[str, str], *, previous: NodeSettings | None = None, node: str = ""
) -> tuple[NodeSettings, tuple[AnnotationProblem, ...]]:
    """Return the settings that the annotations of the Node describe, and problems.

    An invalid annotation keeps the value that `previous` has.
    """
    before = previous or NodeSettings()
    default = NodeSettings(own_namespace=before.own_namespace)
    problems: list[AnnotationProblem] = []

    def read(annotation: str, parse: Callable[[str], _T], kept: _T, absent: _T) -> _T:
        value = annotations.get(annotation)
        if value is None:
            return absent
        try:
            return parse(value)
        except ConfigurationError as error:
            reason = f"{error.reason}; the last good value stays"
            problems.append(AnnotationProblem(annotation, value, reason, f"node {node}" if node else "the node"))
            return kept

    settings = NodeSettings(
        enabled=read(names.ENABLED, _boolean, before.enabled, default.enabled),
        namespaces=read(names.NAMESPACES, _globs, before.namespaces, default.namespaces),
        max_pods=read(names.MAX_PODS, _count, before.max_pods, default.max_pods),
        drain_timeout=read(names.DRAIN_TIMEOUT, _drain_timeout, before.drain_timeout, default.drain_timeout),
        inspection=read(names.INSPECTION, _boolean, before.inspection, default.inspection),
        eve=read(names.EVE, _eve, before.eve, default.eve),
        own_namespace=before.own_namespace,
        proxy_workers=read(names.PROXY_WORKERS, proxy_workers.parse, before.proxy_workers, default.proxy_workers),
        outbound_deny=read(names.OUTBOUND_DENY, _networks, before.outbound_deny or EVERYTHING, default.outbound_deny),
    )
    return settings, tuple(problems)


def _boolean(value: str) -> bool:
    if value not in {"true", "false"}:
        raise ConfigurationError("must be true or false")
    return value == "true"


def _globs(value: str) -> tuple[str, ...]:
    globs = tuple(dict.fromkeys(part.strip(" ") for part in value.split(",")))
    if len(globs) > MAX_GLOBS:
        raise ConfigurationError(f"lists {len(globs)} globs, at most {MAX_GLOBS} are possible")
    for glob in globs:
        if not _GLOB.fullmatch(glob):
            reason = "must be namespace names or globs (with * and ?) separated by commas"
            raise ConfigurationError(f"{glob[:64]!r} is none: {reason}" if glob else reason)
    return globs


def _networks(value: str) -> tuple[str, ...]:
    texts = [part.strip(" ") for part in value.split(",")]
    if len(texts) > MAX_NETWORKS:
        raise ConfigurationError(f"lists {len(texts)} networks, at most {MAX_NETWORKS} are possible")
    found = []
    for text in texts:
        try:
            found.append(str(ip_network(text)))
        except ValueError as error:
            reason = "must be networks like 10.0.0.0/8, separated by commas (where none held before, all are denied)"
            raise ConfigurationError(f"{text[:64]!r} is none: {reason}" if text else reason) from error
    return tuple(dict.fromkeys(found))


def _count(value: str) -> int | None:
    if not _NUMBER.fullmatch(value) or int(value) > MAX_PODS_LIMIT:
        raise ConfigurationError(f"must be a number from 0 to {MAX_PODS_LIMIT}")
    return int(value)


def _eve(value: str) -> EveOutput:
    try:
        return EveOutput(value)
    except ValueError:
        raise ConfigurationError(f"must be one of {', '.join(EveOutput)}") from None


def _drain_timeout(value: str) -> float:
    return parse_duration(value, minimum=1.0, maximum=MAX_DRAIN_TIMEOUT)
