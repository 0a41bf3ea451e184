"""Conditions as Kubernetes Events: each is told once when it has stood for a moment, and once when it is over.

The moment keeps out what comes and goes while a pod starts. An Event that cannot be written is lost: the condition is
still in `status`, in the resource and in the log. At most `BURST` Events at once and one every `PERIOD` seconds after
that, so that a thousand bad annotations do not become a load on the API server.
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

SETTLED = 2.0
"""Seconds that a condition must have stood."""
AGAIN = 600.0
"""Seconds after which a condition that comes back is told again."""
BURST = 40
PERIOD = 5.0

_SUBJECT = re.compile(r"(pod|intercept|wiretap) ([^ /]+)/([^ ]+)(?: .*)?")


class Announcer:
    """Posts Events about what `conditions` holds. `inventory` is asked for the UIDs of pods."""

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
        """Tell what there is to tell, until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            await self.once()

    async def once(self) -> None:
        """Look at the conditions now."""
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
            if now - began >= SETTLED and condition not in self._told and await self._post(condition, over=False):
                self._told[condition] = now
                self._open.add(condition)

    async def _post(self, condition: Condition, *, over: bool) -> bool:
        """False when it must wait for its turn."""
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
            # A Node's Events carry its name as UID: that is what `kubectl describe node` asks for.
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
