"""Conditions about ports that are not steered, from the reasons in `port_state`. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from sidestep.model.condition import Condition, ConditionType
from sidestep.node.planning.inspection_times import REASONS
from sidestep.node.planning.port_state import Availability, Unsteered
from sidestep.policy.survey import port_subject

if TYPE_CHECKING:
    from sidestep.model.pod import PodKey
    from sidestep.node.planning.port_state import PortState

_OVERLOADED = "connections come faster than the pod proxy takes them"
_CLOSED = (
    "clients, and the kubelet's probes, are refused until connections can be inspected again, because an inspection "
    "policy of the port enforces and has failurePolicy Fail"
)
_NO_APP = "nothing listens there, so nothing is steered; it will be as soon as an app does"


def about_proxy(
    pod: PodKey, number: int, *, reasons: Collection[Unsteered | None], proxy: Availability, closes: bool = False
) -> list[Condition]:
    """The conditions for which the listener or the proxy is the reason that families of a port are not steered.

    `closes`: connections that are not steered are refused.
    """
    subject = port_subject(pod, number)
    meanwhile = "clients are refused" if closes else "the app serves"
    conditions = []
    if Unsteered.OVERLOADED in reasons:
        text = f"{_OVERLOADED}; {meanwhile} meanwhile, and it is tried again"
        conditions.append(Condition(ConditionType.OVERLOADED, subject, text))
    if closes and Unsteered.NO_PROXY in reasons:
        conditions.append(Condition(ConditionType.PORT_CLOSED, subject, f"{proxy.absence}; {_CLOSED}"))
    elif closes and REASONS.keys() & set(reasons):
        conditions.append(Condition(ConditionType.PORT_CLOSED, subject, _CLOSED))
    whys = [why.value for why in (Unsteered.LISTENER_DEAD, Unsteered.REFUSED) if why in reasons]
    if Unsteered.HINDERED in reasons:
        whys += [why for why in dict.fromkeys(proxy.hindrance.values()) if why]
    for why in whys:
        text = f"{why}; {meanwhile} meanwhile, and it is tried again"
        conditions.append(Condition(ConditionType.PROXY_NOT_READY, subject, text))
    return conditions


def about_app(pod: PodKey, port: PortState) -> list[Condition]:
    """The condition that a port is not steered because no app listens."""
    if not port.waits_for_app:
        return []
    return [Condition(ConditionType.NO_APP, port_subject(pod, port.plan.number), _NO_APP)]
