"""Caches surveys of pods for as long as what they are made of is the same.

Most changes of a node concern one pod or one intercept, and the author of a pod decides how much there is to survey. A
survey is made again when the pod itself, a Service that selects it, the annotations of its namespace or of the node, or
an undeclared port that somebody asked for changes. The same survey is the same object, so that whatever is derived from
it can be compared by identity.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from sidestep.policy.survey import PodSurvey, survey

if TYPE_CHECKING:
    from sidestep.model.inventory import Inventory
    from sidestep.model.pod import ContainerPort, Pod, PodKey, Service


class _Origin(msgspec.Struct, frozen=True):
    """What a survey is made of."""

    pod: Pod
    services: tuple[Service, ...]
    namespace: Mapping[str, str]
    node: Mapping[str, str]
    undeclared: frozenset[ContainerPort]


class Surveys:
    """A cache with at most one survey for each pod."""

    def __init__(self) -> None:
        self._known: dict[PodKey, tuple[_Origin, PodSurvey]] = {}

    def of(
        self,
        pod: Pod,
        inventory: Inventory,
        *,
        node_annotations: Mapping[str, str],
        extra_ports: Collection[ContainerPort] = (),
        keep: bool = True,
    ) -> PodSurvey:
        """As `survey`. `keep` it for the next question, or only use what is kept."""
        undeclared = frozenset(extra_ports)
        if undeclared:
            declared = {(port.number, port.transport) for port in pod.ports}
            undeclared = frozenset(each for each in undeclared if (each.number, each.transport) not in declared)
        origin = _Origin(
            pod,
            inventory.services_of(pod),
            inventory.namespace_annotations(pod.key.namespace),
            node_annotations,
            undeclared,
        )
        known = self._known.get(pod.key)
        if known is not None and known[0] == origin:
            return known[1]
        made = survey(pod, inventory, node_annotations=node_annotations, extra_ports=undeclared)
        if keep:
            self._known[pod.key] = (origin, made)
        return made

    def keep_only(self, pods: Iterable[PodKey]) -> None:
        """Forget the surveys of all other pods."""
        for key in self._known.keys() - set(pods):
            del self._known[key]
