"""Parses `spec.egress` of inspection policies; `config.inspection` parses the rules in it.

A destination that is decrypted needs an issuer, and `trust` one that is opened: a policy that could never do what it
says is refused. A rule that looks at requests holds where they are read: in HTTP that is clear, and in TLS that is
opened. So it is refused where every destination is only observed, and at port 443 only; so are `log`, `ids` and `waf`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sidestep.config.config_map_key import config_map_key
from sidestep.config.field_error import FieldError
from sidestep.config.names_and_networks import networks, server_names
from sidestep.config.object_values import LABEL_NAME, NAME, check_name
from sidestep.config.waf import waf
from sidestep.model.egress import EVERYTHING, HTTPS, Destination, EgressMode, SecretRef
from sidestep.model.inspection import Egress, Rule

if TYPE_CHECKING:
    from sidestep.config import inspection_fields as fields

_FINGERPRINT: Final = re.compile(r"[0-9a-f]{32}|t[0-9a-z]{9}_[0-9a-f]{12}_[0-9a-f]{12}")
"""JA3, as the MD5 that it is, or JA4 over TCP (`protocols.ja4`)."""


def egress(read: fields.EgressFields, rules: tuple[Rule, ...], namespace: str) -> Egress:
    """Convert the block of a policy of this namespace, "" for one of the cluster, with its rules. Raises FieldError."""
    chosen = EVERYTHING
    if read.destinations is not None:
        chosen = tuple(
            _destination(each, f"spec.egress.destinations[{at}]") for at, each in enumerate(read.destinations)
        )
    _check_names(chosen)
    modes = {each.mode for each in chosen}
    if modes == {EgressMode.OBSERVE} and all(each.ports == (HTTPS,) for each in chosen):
        _check_reads_nothing(read, rules)
    return Egress(
        chosen,
        rules,
        read.failure_policy,
        read.quic,
        _issuer(read.issuer, modes, namespace),
        _trust(read.trust, modes, namespace),
        read.log.sample_percent,
        None if read.ids is None else config_map_key(read.ids.rules_from, "spec.egress.ids", namespace),
        None if read.waf is None else waf(read.waf, namespace, "spec.egress.waf"),
    )


def _check_reads_nothing(read: fields.EgressFields, rules: tuple[Rule, ...]) -> None:
    """Refuse what looks at requests, where none is read. Raises FieldError."""
    wanting = [(f"spec.egress.rules[{at}]", not rule.of_connection) for at, rule in enumerate(rules)]
    wanting += [
        ("spec.egress.log.samplePercent", read.log.sample_percent > 0),
        ("spec.egress.ids", read.ids is not None),
        ("spec.egress.waf", read.waf is not None),
    ]
    for path, looks in wanting:
        if looks:
            raise FieldError(
                path, "looks at requests or responses, and every destination has mode Observe and port 443 only"
            )


def fingerprints(read: Sequence[str], path: str) -> tuple[str, ...]:
    """Convert the fingerprints of a match. Raises FieldError."""
    for at, text in enumerate(read):
        if not _FINGERPRINT.fullmatch(text):
            raise FieldError(f"{path}[{at}]", f"{text[:64]!r} is no JA3 (32 hexadecimal digits) and no JA4 over TCP")
    return tuple(dict.fromkeys(read))


def _destination(read: fields.DestinationFields, path: str) -> Destination:
    if not LABEL_NAME.fullmatch(read.name):
        raise FieldError(f"{path}.name", f"{read.name[:64]!r} is no name (lower-case letters, digits and '-')")
    return Destination(
        read.name,
        read.mode,
        server_names(read.names, f"{path}.names"),
        networks(read.networks, f"{path}.networks"),
        tuple(dict.fromkeys(read.ports)),
    )


def _check_names(chosen: Sequence[Destination]) -> None:
    earlier: set[str] = set()
    for at, each in enumerate(chosen):
        if each.name in earlier:
            raise FieldError(f"spec.egress.destinations[{at}].name", f"{each.name} is the name of an earlier one")
        earlier.add(each.name)


def _issuer(read: fields.SecretFields | None, modes: set[EgressMode], namespace: str) -> SecretRef | None:
    path = "spec.egress.issuer"
    if (read is not None) != (EgressMode.DECRYPT in modes):
        reason = "is missing: a destination has mode Decrypt" if read is None else "no destination has mode Decrypt"
        raise FieldError(path, reason)
    return None if read is None else _secret(read, path, namespace)


def _trust(read: fields.SecretFields | None, modes: set[EgressMode], namespace: str) -> SecretRef | None:
    if read is None:
        return None
    path = "spec.egress.trust"
    if modes == {EgressMode.OBSERVE}:
        raise FieldError(path, "every destination has mode Observe, in which servers are verified by the pod alone")
    return _secret(read, path, namespace)


def _secret(read: fields.SecretFields, path: str, namespace: str) -> SecretRef:
    path, named = f"{path}.secretRef", read.secret_ref
    if namespace and named.namespace is not None:
        raise FieldError(f"{path}.namespace", "only a ClusterInspectionPolicy names one")
    if not namespace and named.namespace is None:
        raise FieldError(f"{path}.namespace", "is missing: a ClusterInspectionPolicy belongs to none")
    check_name(named.name, f"{path}.name", NAME)
    if named.namespace is not None:
        check_name(named.namespace, f"{path}.namespace", LABEL_NAME)
    return SecretRef(named.namespace or namespace, named.name)
