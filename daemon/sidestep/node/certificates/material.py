"""Determines where a certificate is read: from a folder of a container, a manifest, or the cluster.

- A path is looked up in the containers that the survey lists, in order; the first with the folder's certificate is
  used. Only containers with a process have a root folder: `Place` holds those, and names the others.
- The location of a Secret depends on the source of inventories (`SecretSources`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from sidestep.config.annotations import SourceKind
from sidestep.model.errors import ConfigurationError
from sidestep.node.certificates.requests import Folder, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidestep.model.inventory import Inventory, Secret
    from sidestep.model.pod import Pod
    from sidestep.node.certificates.reader import ReadError
    from sidestep.policy.survey import WantedCertificate


class SecretSources(Protocol):
    """Locations and versions of Secrets, without their data."""

    def source(self, namespace: str, name: str) -> Source:
        """Return the location of a Secret. Raises ConfigurationError when it is known not to exist."""

    def version(self, namespace: str, name: str) -> str:
        """Return a version that changes with the Secret's data; empty while unknown."""

    def explain(self, namespace: str, name: str, error: ReadError) -> str:
        """Explain why a Secret could not be read, and the remedy, as text for the user."""


class SecretLocator(Protocol):
    """The part of an inventory source that locates Secrets."""

    def secret_source(self, secret: Secret | None, namespace: str, name: str) -> Source:
        """Return where to read a Secret; `secret` is the inventory's entry. Raises ConfigurationError."""

    def explain(self, namespace: str, name: str, error: ReadError) -> str:
        """Explain why a Secret could not be read, and the remedy, as text for the user."""


class InventorySecrets:
    """Secrets of the current inventory and its source. `inventory` returns the current one."""

    def __init__(self, source: SecretLocator, inventory: Callable[[], Inventory]) -> None:
        self._source = source
        self._inventory = inventory

    def source(self, namespace: str, name: str) -> Source:
        """As SecretSources.source."""
        return self._source.secret_source(self._inventory().secret(namespace, name), namespace, name)

    def version(self, namespace: str, name: str) -> str:
        """As SecretSources.version."""
        secret = self._inventory().secret(namespace, name)
        return secret.version if secret is not None else ""

    def explain(self, namespace: str, name: str, error: ReadError) -> str:
        """As SecretSources.explain."""
        return self._source.explain(namespace, name, error)


class NotYetError(ConfigurationError):
    """No container that may hold the path has a process; the pod starts, or the containers are between two runs."""


class Place(msgspec.Struct, frozen=True):
    """Where a path is looked up. It changes when a container is started, restarted or ends.

    `roots` are folders in the order of the search, with the start times of their processes (clock ticks since boot;
    None where unknown). `missing` are containers that may hold the path and have no process. A Secret has an empty
    place.
    """

    roots: tuple[tuple[str, int | None], ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def newest(self) -> int | None:
        """Start time of the process that was started last; None where no start time is known."""
        return max((birth for _, birth in self.roots if birth is not None), default=None)


def place_of(wanted: WantedCertificate, pod: Pod | None) -> Place:
    """Return where a certificate is looked up now."""
    if wanted.source.kind is SourceKind.SECRET or pod is None:
        return Place()
    missing = [name for name in wanted.containers if name not in pod.location.pids] if pod.location.searched else []
    return Place(_roots(pod, wanted.containers), tuple(missing))


def source_of(wanted: WantedCertificate, pod: Pod | None, secrets: SecretSources) -> Source:
    """Return the location to read. Raises NotYetError, ConfigurationError."""
    if wanted.source.kind is SourceKind.SECRET:
        return secrets.source(wanted.namespace, wanted.source.value)
    place = place_of(wanted, pod)
    if place.missing and not place.roots:
        names = ", ".join(place.missing)
        which = f"container {names} has" if len(place.missing) == 1 else f"containers {names} have"
        raise NotYetError(f"{which} no process yet")
    if not place.roots:
        raise ConfigurationError("no container of the pod is known to run here (sidestep.dev/pid or sidestep.dev/root)")
    return Folder(place.roots, wanted.source.value)


def _roots(pod: Pod, containers: tuple[str, ...]) -> tuple[tuple[str, int | None], ...]:
    """Return the root folders to search for a path, in order, with the start times of their processes."""
    location = pod.location
    pids = [location.pids[name] for name in containers if name in location.pids]
    if not pids and "" in location.pids:
        pids = [location.pids[""]]
    roots: list[tuple[str, int | None]] = [(f"/proc/{pid}/root", location.births.get(pid)) for pid in pids]
    # A root given by annotation comes first: it applies to containers without a process on this machine.
    stated: list[tuple[str, int | None]] = [(location.root, None)] if location.root else []
    return tuple(dict.fromkeys([*stated, *roots]))
