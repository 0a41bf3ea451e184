"""Where a policy has texts of its own: rules for an IDS, or for a web application firewall."""

from __future__ import annotations

import msgspec


class ConfigMapKey(msgspec.Struct, frozen=True):
    """A text in a ConfigMap. `namespace` is the policy's own, unless a ClusterInspectionPolicy names one."""

    namespace: str
    name: str
    key: str
