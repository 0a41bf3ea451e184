"""Posts conditions as Kubernetes Events: once after a condition has existed for a moment, and once when it has ended.
Alerts of inspection are Events of their pods, as seldom as `node.records.alert_notes` says.

The delay filters out conditions that come and go while a pod starts. An Event that cannot be posted is lost; the
condition remains in `sidestep status`, in the resource and in the log. At most `BURST` Events are posted at once, then
one every `PERIOD` seconds, so that a thousand invalid annotations do not load the API server. Where more waits than may
be posted, namespaces take turns, so that none keeps another's Events back.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable

import msgspec

from sidestep.kube.api import Api
from sidestep.kube.events import EventSubject, post
from sidestep.kube.resource_fields import GROUP, VERSION
from sidestep.kube.session_specs import DEFINITIONS
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import ClusterError
from sidestep.model.intercept import SessionKind
from sidestep.model.inventory import Inventory
from sidestep.model.pod import PodKey
from sidestep.model.text import harmless
from sidestep.node.conditions import Conditions
from sidestep.node.records.alert_notes import AlertKey, AlertNotes
from sidestep.node.sessions.resources import SessionResources
from sidestep.observability.logs import get_logger

STABLE_FOR = 2.0
"""Seconds for which a condition must exist before it is posted."""
AGAIN = 600.0
"""Seconds after which a condition that returns is posted again."""
ALERT = "InspectionAlert"
"""Reason of an Event about alerts of inspection."""
BURST = 40
PERIOD = 5.0
IN_A_STATUS = frozenset({ConditionType.POLICY_INVALID, ConditionType.IDS_RULES_INVALID})
"""Conditions that every node has alike, and that the status of a resource says once: no Events."""

_SUBJECT = re.compile(r"(pod|intercept|wiretap|capture|inspection) ([^ /]+)/([^ ]+)(?: .*)?")


class _News(msgspec.Struct, frozen=True):
    """Something to post: about a condition that stands or is over, or about alerts."""

    namespace: str
    """Of its subject; empty for the node's own."""
    about: Condition | AlertKey
    over: bool = False


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
        alerts: AlertNotes | None = None,
    ) -> None:
        self._alerts = alerts
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
        self._posted: dict[str, int] = {}
        """Namespace -> the number of the last Event that was posted for it."""
        self._number = 0
        self._log = get_logger("events")

    async def run(self) -> None:
        """Post Events until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            await self.once()

    async def once(self) -> None:
        """Compare the current conditions with those posted, and post the differences."""
        now = self._now()
        standing = {each for each in self._conditions.all() if each.type not in IN_A_STATUS}
        self._told = {each: when for each, when in self._told.items() if each in standing or now - when < AGAIN}
        self._since = {each: self._since.get(each, now) for each in standing}
        news = [_News(_namespace(each), each, over=True) for each in sorted(self._open - standing, key=_order)]
        stable = [each for each in standing - self._told.keys() if now - self._since[each] >= STABLE_FOR]
        news += [_News(_namespace(each), each) for each in sorted(stable, key=_order)]
        if self._alerts is not None:
            news += [_News(key.pod.namespace, key) for key in self._alerts.due(now)]
        self._allowance = min(float(BURST), self._allowance + (now - self._filled) / PERIOD)
        self._filled = now
        for each in self._in_turns(news)[: int(self._allowance)]:
            self._allowance -= 1.0
            self._number += 1
            self._posted[each.namespace] = self._number
            await self._post(each, now)

    def _in_turns(self, news: list[_News]) -> list[_News]:
        """One of each namespace, then the second of each; the namespace that has waited longest first."""
        waiting = {each.namespace for each in news}
        self._posted = {name: number for name, number in self._posted.items() if name in waiting}
        ranks: Counter[str] = Counter()
        keys = []
        for at, each in enumerate(news):
            keys.append((ranks[each.namespace], self._posted.get(each.namespace, 0), at))
            ranks[each.namespace] += 1
        return [news[at] for _, _, at in sorted(keys)]

    async def _post(self, news: _News, now: float) -> None:
        """Post one Event, if its subject is known; either way it counts as told."""
        if isinstance(news.about, AlertKey):
            assert self._alerts is not None  # noqa: S101 - they made the key
            text = self._alerts.tell(news.about, now)
            subject = self._pod(news.about.pod)
            if text and subject is not None:
                await self._write(subject, reason=ALERT, message=text, warning=True)
            return
        condition = news.about
        if news.over:
            self._open.discard(condition)
        else:
            self._told[condition] = now
            self._open.add(condition)
        subject = self._subject(condition)
        if subject is not None:
            reason = f"{condition.type.value}Resolved" if news.over else condition.type.value
            _, words, port = condition.subject.partition(" port ")
            text = f"{words.strip()} {port}: {condition.text}" if words else condition.text
            await self._write(subject, reason=reason, message=text, warning=not news.over)

    async def _write(self, subject: EventSubject, *, reason: str, message: str, warning: bool) -> None:
        try:
            await post(self._api, subject, reason=reason, message=harmless(message), node=self._node, warning=warning)
        except ClusterError as error:
            about = f"{subject.kind} {subject.namespace}/{subject.name}"
            self._log.warning("event not written", subject=about, reason=str(error))

    def _subject(self, condition: Condition) -> EventSubject | None:
        match = _SUBJECT.fullmatch(condition.subject)
        if match is None:
            # Events of a Node have its name as UID, which `kubectl describe node` looks for.
            return EventSubject("v1", "Node", "", self._node, self._node)
        kind, namespace, name = match.groups()
        if kind == "pod":
            return self._pod(PodKey(namespace, name))
        for resource in self._resources.all():
            metadata = resource.latest.metadata
            if (resource.latest.kind, metadata.namespace, metadata.name) == (SessionKind(kind), namespace, name):
                return EventSubject(
                    f"{GROUP}/{VERSION}", DEFINITIONS[resource.latest.kind].kind, namespace, name, resource.uid
                )
        return None

    def _pod(self, key: PodKey) -> EventSubject | None:
        pod = self._inventory().pods.get(key)
        return EventSubject("v1", "Pod", key.namespace, key.name, pod.uid) if pod is not None else None


def _order(condition: Condition) -> tuple[str, str, str]:
    return condition.subject, condition.type.value, condition.text


def _namespace(condition: Condition) -> str:
    match = _SUBJECT.fullmatch(condition.subject)
    return match.group(2) if match is not None else ""
