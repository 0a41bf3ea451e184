"""Where a certificate is to be read, as the reader is asked: a folder of a container, a manifest, the cluster.

- A path belongs to the containers that the survey lists, in order; the first that has the folder's certificate is it.
- A Secret is where the source of inventories keeps it (`SecretSources`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

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
    """Where Secrets are, without their data."""

    def source(self, namespace: str, name: str) -> Source:
        """Where to read a Secret. Raises ConfigurationError when it is known that there is none."""

    def version(self, namespace: str, name: str) -> str:
        """What changes with its data; empty while nothing is known."""

    def explain(self, namespace: str, name: str, error: ReadError) -> str:
        """Why it could not be read, and what to do, for people."""


class SecretLocator(Protocol):
    """What is needed of an `InventorySource`."""

    def secret_source(self, secret: Secret | None, namespace: str, name: str) -> Source:
        """Where to read a Secret; `secret` is what the inventory knows. Raises ConfigurationError."""

    def explain(self, namespace: str, name: str, error: ReadError) -> str:
        """Why a Secret could not be read, and what to do."""


class InventorySecrets:
    """Secrets as the present inventory and its source know them. `inventory` gives the present one."""

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


def source_of(wanted: WantedCertificate, pod: Pod | None, secrets: SecretSources) -> Source:
    """What the reader is to read. Raises ConfigurationError."""
    if wanted.source.kind is SourceKind.SECRET:
        return secrets.source(wanted.key.pod.namespace, wanted.source.value)
    roots = _roots(pod, wanted.containers) if pod is not None else ()
    if not roots:
        raise ConfigurationError("no container of the pod is known to run here (sidestep.dev/pid or sidestep.dev/root)")
    return Folder(roots, wanted.source.value)


def _roots(pod: Pod, containers: tuple[str, ...]) -> tuple[tuple[str, int | None], ...]:
    """Root folders in which a path may lie, in order, with the start times of their processes."""
    location = pod.location
    pids = [location.pids[name] for name in containers if name in location.pids]
    if not pids and "" in location.pids:
        pids = [location.pids[""]]
    roots: list[tuple[str, int | None]] = [(f"/proc/{pid}/root", location.births.get(pid)) for pid in pids]
    # A stated root stands for containers that have no process here, or is stated on purpose: it comes first.
    stated: list[tuple[str, int | None]] = [(location.root, None)] if location.root else []
    return tuple(dict.fromkeys([*stated, *roots]))
