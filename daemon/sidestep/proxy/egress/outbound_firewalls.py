"""The firewalls of policies about connections that a pod makes, joined for each set of them that applies to a request.

Which apply depends on where a request goes, so they are joined when they are first asked for, and `changed` is called:
the inspector has to be told of them before it is asked. Those of each policy alone are there from the beginning, and
when policies change those of the sets that were asked for since the last change. Beyond MAX_OUTWARD the rules of all
of them judge a request, and whether it is blocked is said by those that apply.

What `of` returns is known to the inspector until the next `replace`: whoever keeps it asks again then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from sidestep.policy.egress import EgressPolicy
from sidestep.policy.waf import strictest
from sidestep.snapshots.waf import MAX_OUTWARD, PortWaf


class OutboundFirewalls:
    """See the module."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._alone: dict[str, PortWaf] = {}
        """By the display of the policy, in the order of policies."""
        self._joined: dict[frozenset[str], PortWaf] = {}
        self._asked: dict[frozenset[str], None] = {}
        """Those of `_joined` that were asked for."""

    @property
    def known(self) -> tuple[PortWaf, ...]:
        """What the inspector is told of."""
        return tuple(self._joined.values())

    def replace(self, policies: Sequence[EgressPolicy]) -> None:
        """These policies apply from now on. `changed` is not called."""
        self._alone = {each.policy.display: each.waf for each in policies if each.waf is not None}
        self._joined = {frozenset((name,)): waf for name, waf in self._alone.items()}
        if len(self._alone) > 1:
            self._joined[frozenset(self._alone)] = strictest([*self._alone.values()])
        asked, self._asked = self._asked, {}
        for names in asked:
            wanted = names.intersection(self._alone)
            if wanted and wanted not in self._joined and len(self._joined) < MAX_OUTWARD:
                self._joined[wanted] = self._join(wanted)

    def of(self, names: frozenset[str]) -> PortWaf | None:
        """What applies where the policies of these names do; None if none of them has a firewall."""
        wanted = names.intersection(self._alone)
        if not wanted:
            return None
        found = self._joined.get(wanted)
        if found is None:
            found = self._join(wanted)
            if len(self._joined) >= MAX_OUTWARD:
                profile = self._joined[frozenset(self._alone)].profile
                return msgspec.structs.replace(found, profile=profile)
            self._joined[wanted] = found
            self._changed()
        self._asked[wanted] = None
        return found

    def _join(self, names: frozenset[str]) -> PortWaf:
        return strictest([waf for name, waf in self._alone.items() if name in names])

    def bound(self, policies: Iterable[EgressPolicy]) -> PortWaf | None:
        """What a relay has to be made for where any of these policies may apply to a request; None: for no firewall."""
        settings = [each.waf for each in policies if each.waf is not None]
        if not settings:
            return None
        return msgspec.structs.replace(strictest(settings), body_bytes=max(each.body_bytes for each in settings))
