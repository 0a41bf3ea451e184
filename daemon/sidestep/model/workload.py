"""Workloads, the controllers of pods, and the selectors by which they choose them."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec


class SelectorOperator(enum.StrEnum):
    """Operators of a label selector's matchExpressions (Kubernetes: LabelSelectorRequirement)."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class LabelRequirement(msgspec.Struct, frozen=True):
    """One matchExpression. `values` is empty for EXISTS and DOES_NOT_EXIST."""

    key: str
    operator: SelectorOperator
    values: frozenset[str] = frozenset()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels fulfils the requirement. NotIn holds where the label is absent."""
        present = self.key in labels
        match self.operator:
            case SelectorOperator.IN:
                return present and labels[self.key] in self.values
            case SelectorOperator.NOT_IN:
                return not present or labels[self.key] not in self.values
            case SelectorOperator.EXISTS:
                return present
            case SelectorOperator.DOES_NOT_EXIST:
                return not present


class LabelSelector(msgspec.Struct, frozen=True):
    """A workload's selector: labels and expressions are AND-ed. An empty selector selects nothing here."""

    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    expressions: tuple[LabelRequirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        if not self.labels and not self.expressions:
            return False
        return labels_match(self.labels, labels) and all(each.holds(labels) for each in self.expressions)


def labels_match(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether every wanted label is there with the wanted value."""
    return all(labels.get(key) == value for key, value in wanted.items())


class OwnerReference(msgspec.Struct, frozen=True):
    """A reference to an owner; `kind` in lower case."""

    kind: str
    name: str


class WorkloadKey(msgspec.Struct, frozen=True, order=True):
    """Identity of a workload; `kind` in lower case ("deployment")."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class Workload(msgspec.Struct, frozen=True):
    """A controller of pods: Deployment, StatefulSet, DaemonSet, ReplicaSet or Job."""

    key: WorkloadKey
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)
    selector: LabelSelector = msgspec.field(default_factory=LabelSelector)
    owners: tuple[OwnerReference, ...] = ()
