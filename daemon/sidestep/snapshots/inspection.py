"""What a pod proxy has to know of the inspection policies of a port.

A policy travels as it was written, but for what only the planner needs: which pods and ports it selects.
`policy.inspection_rows` translates policies to these structs and back.
"""

from __future__ import annotations

import msgspec

from sidestep.snapshots.filter_row import FilterRow


class MatchSnapshot(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """The conditions of a match or an exception (`model.inspection.Match`)."""

    conditions: tuple[FilterRow, ...] = ()
    """Headers, methods and paths."""
    parameters: tuple[FilterRow, ...] = ()
    """Query parameters: `part` "parameter"."""
    server_names: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    """Networks, as text."""
    client_certificates: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    """Networks that a pod connects to, as text."""
    ports: tuple[int, ...] = ()
    fingerprints: tuple[str, ...] = ()


class InspectionRuleSnapshot(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One rule (`model.inspection.Rule`)."""

    name: str
    action: str
    direction: str
    match: MatchSnapshot
    exception: MatchSnapshot | None
    patterns: tuple[tuple[str, str], ...]
    """(name of a built-in pattern, "") or ("", regex)."""
    threshold: tuple[int, float] | None
    """(count, period in seconds)."""
    rate_limit: tuple[int, float] | None
    """The same."""


class PolicySnapshot(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One policy (`model.inspection.InspectionPolicy`); `namespace` is empty for one of the cluster."""

    name: str
    namespace: str
    mode: str
    failure_policy: str
    existing_connections: str
    sample_percent: float
    rules: tuple[InspectionRuleSnapshot, ...]
    redacts_queries: bool = True
    redacted_headers: tuple[str, ...] = ()
    ids: bool = False
    """An IDS is fed the connections."""
    waf: bytes = b""
    """Tells its settings of a web application firewall from others; empty without one. `PortSnapshot.waf` has them."""

    @property
    def closes(self) -> bool:
        """Whether what cannot be inspected is closed: it enforces, and fails closed (`InspectionPolicy.closes`)."""
        return self.mode == "Enforce" and self.failure_policy == "Fail"
