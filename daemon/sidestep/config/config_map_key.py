"""Parses `rulesFrom`: where a policy has rules for an IDS, or for a web application firewall."""

from __future__ import annotations

import re
from typing import Final

from sidestep.config.field_error import FieldError
from sidestep.config.object_values import LABEL_NAME, NAME, check_name
from sidestep.config.policy_fields import PolicyFields
from sidestep.model.config_map_key import ConfigMapKey

_KEY: Final = re.compile(r"[-._a-zA-Z0-9]{1,253}")


class ConfigMapFields(PolicyFields, frozen=True):
    """`rulesFrom.configMapRef`."""

    name: str
    key: str
    namespace: str | None = None


class RulesFromFields(PolicyFields, frozen=True):
    """`rulesFrom`."""

    config_map_ref: ConfigMapFields


def config_map_key(read: RulesFromFields, path: str, namespace: str) -> ConfigMapKey:
    """Where the rules are. Policies of the cluster say in which namespace, all others have one. Raises FieldError."""
    path, named = f"{path}.rulesFrom.configMapRef", read.config_map_ref
    if namespace and named.namespace is not None:
        raise FieldError(f"{path}.namespace", "only a ClusterInspectionPolicy names one")
    if not namespace and named.namespace is None:
        raise FieldError(f"{path}.namespace", "is missing: a ClusterInspectionPolicy belongs to none")
    check_name(named.name, f"{path}.name", NAME)
    if not _KEY.fullmatch(named.key):
        raise FieldError(f"{path}.key", f"{named.key[:64]!r} is no key of a ConfigMap")
    if named.namespace is not None:
        check_name(named.namespace, f"{path}.namespace", LABEL_NAME)
    return ConfigMapKey(named.namespace or namespace, named.name, named.key)
