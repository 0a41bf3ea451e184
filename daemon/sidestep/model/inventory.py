"""Everything the node daemon knows about the cluster, or the manifests that stand for one, as one immutable value.

Local mode builds an `Inventory` from manifests, the cluster adapter from watches; planner, status and tests cannot tell
them apart. Lookups that several readers need (which Services select a pod, whose annotations apply) are methods here,
so that each has one answer. An inventory is never changed, only replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from sidestep.model.inspection import InspectionPolicy
from sidestep.model.inventory_index import InventoryIndex
from sidestep.model.pod import Pod, PodKey, Service
from sidestep.model.workload import Workload, WorkloadKey

NAME_LABEL = "kubernetes.io/metadata.name"
"""Label of a namespace that holds its name (Kubernetes: well-known labels)."""
DEFAULT_NAMESPACE = "default"
"""Namespace of a namespaced object that states none (kubectl does the same)."""


class Secret(msgspec.Struct, frozen=True):
    """That a Secret exists. Its data is never here: whoever needs it has it read by a one-shot reader.

    `version` changes with the data; `file` is the manifest that holds it, empty in a cluster.
    """

    namespace: str
    name: str
    version: str = ""
    file: str = ""


class ConfigMap(msgspec.Struct, frozen=True):
    """A ConfigMap: the texts by their keys. `problem` says why there are none, if it could not be read."""

    namespace: str
    name: str
    data: Mapping[str, str]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What there is. `nodes` and `namespaces` map a name to its annotations, `node_addresses` that of a node to the IP
    addresses in its status; `secrets` is keyed (namespace, name);
    `policies` are in `InspectionPolicy.order`; `invalid_policies` maps (namespace, name), with an empty namespace for
    those of the cluster, to the reason why a document that is there could not be parsed. `namespace_labels` are as
    written; `labels_of` is what selectors see. `config_maps` are those that policies name, keyed like Secrets.
    """

    pods: Mapping[PodKey, Pod] = field(default_factory=dict)
    services: tuple[Service, ...] = ()
    secrets: Mapping[tuple[str, str], Secret] = field(default_factory=dict)
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    nodes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    node_addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    workloads: Mapping[WorkloadKey, Workload] = field(default_factory=dict)
    policies: tuple[InspectionPolicy, ...] = ()
    invalid_policies: Mapping[tuple[str, str], str] = field(default_factory=dict)
    namespace_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    config_maps: Mapping[tuple[str, str], ConfigMap] = field(default_factory=dict)
    _index: InventoryIndex | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def index(self) -> InventoryIndex:
        """Lookups that do not go through everything; built when it is first asked for."""
        if self._index is None:
            # The one field that is set later: it holds nothing that is not in the others.
            object.__setattr__(self, "_index", InventoryIndex(self.pods, self.services, self.workloads))
        assert self._index is not None  # noqa: S101 - set above
        return self._index

    def services_of(self, pod: Pod) -> tuple[Service, ...]:
        """Services that select the pod, ordered by name. A Service without selector selects nothing."""
        return self.index.services_of(pod)

    def secret(self, namespace: str, name: str) -> Secret | None:
        """The Secret, or None when there is none of this name."""
        return self.secrets.get((namespace, name))

    def namespace_annotations(self, namespace: str) -> Mapping[str, str]:
        """Annotations of a namespace; empty when it is unknown."""
        return self.namespaces.get(namespace, {})

    def labels_of(self, namespace: str) -> Mapping[str, str]:
        """Labels of a namespace, with the one that the API server gives to each: its name."""
        return {**self.namespace_labels.get(namespace, {}), NAME_LABEL: namespace}

    def addresses_of_node(self, name: str) -> tuple[str, ...]:
        """IP addresses that the Node object says the node has; empty when it is unknown."""
        return self.node_addresses.get(name, ())

    def node_annotations(self, name: str = "") -> Mapping[str, str]:
        """Annotations of the named node; without a match, those of the only node there is, else nothing."""
        if name in self.nodes:
            return self.nodes[name]
        return next(iter(self.nodes.values())) if not name and len(self.nodes) == 1 else {}
