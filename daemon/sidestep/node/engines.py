"""What the engines beside pod proxies share on a node: the rules of policies for them, and what makes inspectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sidestep.aio.tasks import Tasks
from sidestep.inspector.rules import Location
from sidestep.node.ids_rules import IdsRuleStore
from sidestep.node.inspectors.inspectors import Inspectors
from sidestep.node.waf_rules import WafRuleStore
from sidestep.observability.logs import get_logger

if TYPE_CHECKING:
    from sidestep.model.inventory import Inventory
    from sidestep.node.conditions import Conditions
    from sidestep.node.planning.inspection import Policies


class Engines:
    """See the module. `on_change` is called when policies say something else than before.

    `crs` is the folder of a Core Rule Set, None for Debian's. Raises ConfigurationError for a folder that has none.
    """

    def __init__(self, *, conditions: Conditions, on_change: Callable[[], None], crs: Path | None = None) -> None:
        self._log = get_logger("inspector")
        folder = None if crs is None else str(crs)
        if folder is not None:
            Location.find(folder)
        self.inspectors = Inspectors(self._say, folder)
        self.ids_rules = IdsRuleStore(conditions=conditions)
        self._waf_rules = WafRuleStore(self.inspectors, conditions=conditions, on_change=on_change)

    def offer(self, policies: Policies, inventory: Inventory) -> None:
        """Take the policies in force, and the ConfigMaps that there are."""
        written = [each.policy for each in policies]
        self.ids_rules.offer(written, inventory.config_maps)
        self._waf_rules.offer(written, inventory.config_maps)

    def complete(self, policies: Policies) -> Policies:
        """As `WafRuleStore.complete`."""
        return self._waf_rules.complete(policies)

    def names(self) -> Mapping[int, str]:
        """As `Inspectors.names`."""
        return self.inspectors.names

    def start(self, tasks: Tasks) -> None:
        """Judge rules, and keep what makes inspectors alive, from now on."""
        tasks.start(self.ids_rules.run(), name="rules of IDS")
        tasks.start(self._waf_rules.run(), name="rules of firewalls")
        tasks.start(self.inspectors.run(), name="inspectors")

    async def aclose(self) -> None:
        """End what makes inspectors."""
        await self.inspectors.aclose()

    def _say(self, line: str) -> None:
        self._log.warning("inspector output", line=line)
