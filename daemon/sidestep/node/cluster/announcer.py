"""Posts conditions as Kubernetes Events: once after a condition has existed for a moment, and once when it has ended.

The delay filters out conditions that come and go while a pod starts. An Event that cannot be posted is lost; the
condition remains in `sidestep status`, in the resource and in the log. At most `BURST` Events are posted at once, then
one every `PERIOD` seconds, so that a thousand invalid annotations do not load the API server.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from sidestep.kube.api import Api
from sidestep.kube.events import EventSubject, post
from sidestep.kube.resources import GROUP, KINDS, VERSION
from sidestep.model.condition import Condition
from sidestep.model.errors import ClusterError
from sidestep.model.intercept import Kind
from sidestep.model.inventory import Inventory
from sidestep.model.pod import PodKey
from sidestep.model.text import harmless
from sidestep.node.conditions import Conditions
from sidestep.node.sessions.resources import SessionResources
from sidestep.observability.logs import get_logger

STABLE_FOR = 2.0
"""Seconds for which a condition must exist before it is posted."""
AGAIN = 600.0
"""Seconds after which a condition that returns is posted again."""
BURST = 40
PERIOD = 5.0

_SUBJECT = re.compile(r"(pod|intercept|wiretap) ([^ /]+)/([^ ]+)(?: .*)?")


class Announcer:
    """Posts Events about the conditions in `conditions`. `inventory` provides the UIDs of pods."""

    def __init__(
        self,
        api: Api,
        *,
        node: str,
        conditions: Conditions,
        inventory: Callable[[], Inventory],
        resources: SessionResources,
        now: Callable[[], float],
    ) -> None:
        self._api = api
        self._node = node
        self._conditions = conditions
        self._inventory = inventory
        self._resources = resources
        self._now = now
        self._since: dict[Condition, float] = {}
        self._told: dict[Condition, float] = {}
        self._open: set[Condition] = set()
        self._allowance = float(BURST)
        self._filled = now()
        self._log = get_logger("events")

    async def run(self) -> None:
        """Post Events until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            await self.once()

    async def once(self) -> None:
        """Compare the current conditions with those posted, and post the differences."""
        now = self._now()
        standing = set(self._conditions.all())
        self._told = {each: when for each, when in self._told.items() if each in standing or now - when < AGAIN}
        for condition in [each for each in self._since if each not in standing]:
            del self._since[condition]
            if condition in self._open:
                self._open.discard(condition)
                await self._post(condition, over=True)
        for condition in sorted(standing, key=lambda each: (each.subject, each.type.value, each.text)):
            began = self._since.setdefault(condition, now)
            if now - began >= STABLE_FOR and condition not in self._told and await self._post(condition, over=False):
                self._told[condition] = now
                self._open.add(condition)

    async def _post(self, condition: Condition, *, over: bool) -> bool:
        """Post one Event; returns False when the rate limit delays it."""
        now = self._now()
        self._allowance = min(float(BURST), self._allowance + (now - self._filled) / PERIOD)
        self._filled = now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        subject = self._subject(condition)
        if subject is None:
            return True
        reason = f"{condition.type.value}Resolved" if over else condition.type.value
        text = (
            condition.text
            if condition.subject.split(" port ")[0] == condition.subject
            else (
                f"{condition.subject.partition(' port ')[1].strip()} {condition.subject.partition(' port ')[2]}: "
                f"{condition.text}"
            )
        )
        try:
            await post(self._api, subject, reason=reason, message=harmless(text), node=self._node, warning=not over)
        except ClusterError as error:
            self._log.warning("event not written", subject=condition.subject, reason=str(error))
        return True

    def _subject(self, condition: Condition) -> EventSubject | None:
        match = _SUBJECT.fullmatch(condition.subject)
        if match is None:
            # Events of a Node have its name as UID, which `kubectl describe node` looks for.
            return EventSubject("v1", "Node", "", self._node, self._node)
        kind, namespace, name = match.groups()
        if kind == "pod":
            pod = self._inventory().pods.get(PodKey(namespace, name))
            return EventSubject("v1", "Pod", namespace, name, pod.uid) if pod is not None else None
        for resource in self._resources.all():
            metadata = resource.latest.metadata
            if (resource.latest.kind, metadata.namespace, metadata.name) == (Kind(kind), namespace, name):
                return EventSubject(f"{GROUP}/{VERSION}", KINDS[resource.latest.kind], namespace, name, resource.uid)
        return None
