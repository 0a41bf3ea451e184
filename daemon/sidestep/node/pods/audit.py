"""Compares each target with the kernel every `PERIOD` seconds, and repairs what differs.

Checked are that the link is attached and that the map holds exactly the expected entries. (The reconciler's tick checks
namespace and pod several times a second.) A missing or superfluous entry is corrected in place; when the link is gone,
the target is made anew. Differences are counted, and stated as conditions until the next audit finds none.
"""

from __future__ import annotations

import asyncio

from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import SidestepError
from sidestep.node.certificates.swap import ADVICE, swap_devices
from sidestep.node.conditions import Conditions, Source
from sidestep.node.pods.reconciler import Reconciler
from sidestep.observability.logs import get_logger

PERIOD = 10.0
"""Seconds between two audits."""


class Audit:
    """Compares all targets; `repaired` counts the differences found since the daemon began."""

    def __init__(self, reconciler: Reconciler, conditions: Conditions, *, node: str) -> None:
        self._node = node
        self._reconciler = reconciler
        self._conditions = conditions
        self._log = get_logger("audit")
        self.repaired = 0

    async def run(self) -> None:
        """Audit until cancelled."""
        while True:
            self._look_for_swap()
            await asyncio.sleep(PERIOD)
            self.once()

    def _look_for_swap(self) -> None:
        devices = swap_devices()
        stated = []
        if devices:
            text = f"the node has swap ({', '.join(devices[:4])}): {ADVICE}"
            stated.append(Condition(ConditionType.SWAP_ENABLED, f"node {self._node}", text))
        self._conditions.state(Source("swap"), stated)

    def once(self) -> None:
        """Compare everything now."""
        for target in self._reconciler.targets():
            if not target.attached:
                continue
            key = target.pod.key
            try:
                found = target.drift()
            except SidestepError as error:
                found = [str(error)]
                self._reconciler.redo(key)
            self.repaired += len(found)
            for text in found:
                self._log.warning("drift", pod=str(key), text=text)
            stated = [Condition(ConditionType.DRIFT_REPAIRED, f"pod {key}", f"{text}; put right") for text in found]
            self._conditions.state(Source("audit", key), stated)
