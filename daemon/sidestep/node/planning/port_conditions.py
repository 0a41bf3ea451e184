"""Conditions about ports that are not steered, from the reasons in `port_state`. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from sidestep.model.condition import Condition, ConditionType
from sidestep.node.planning.port_state import Availability, Unsteered
from sidestep.policy.survey import port_subject

if TYPE_CHECKING:
    from sidestep.model.pod import PodKey
    from sidestep.node.planning.port_state import PortState

_OVERLOADED = "connections come faster than the pod proxy takes them; the port is left to the app for a while"
_NO_APP = "nothing listens there, so nothing is steered; it will be as soon as an app does"


def about_proxy(
    pod: PodKey, number: int, *, reasons: Collection[Unsteered | None], proxy: Availability
) -> list[Condition]:
    """The conditions for which the listener or the proxy is the reason that families of a port are not steered."""
    subject = port_subject(pod, number)
    conditions = []
    if Unsteered.OVERLOADED in reasons:
        conditions.append(Condition(ConditionType.OVERLOADED, subject, _OVERLOADED))
    whys = [why.value for why in (Unsteered.LISTENER_DEAD, Unsteered.REFUSED) if why in reasons]
    if Unsteered.HINDERED in reasons:
        whys += [why for why in dict.fromkeys(proxy.hindrance.values()) if why]
    for why in whys:
        text = f"{why}; the app serves meanwhile, and it is tried again"
        conditions.append(Condition(ConditionType.PROXY_NOT_READY, subject, text))
    return conditions


def about_app(pod: PodKey, port: PortState) -> list[Condition]:
    """The condition that a port is not steered because no app listens."""
    if not port.waits_for_app:
        return []
    return [Condition(ConditionType.NO_APP, port_subject(pod, port.plan.number), _NO_APP)]
