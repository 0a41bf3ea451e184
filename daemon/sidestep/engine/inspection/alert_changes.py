"""From the records of one exchange to the changes of policies that except it (`policy.exceptions`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from sidestep.model.errors import RefusedError
from sidestep.model.inspection import InspectionPolicy
from sidestep.model.secret_fields import REDACTED
from sidestep.policy.exceptions import AlertFacts, By, Change, changes
from sidestep.protocols.eve import FIREWALL
from sidestep.protocols.eve_records import Record
from sidestep.protocols.eve_redaction import CUT

_REDACTED = REDACTED.decode()
SHOWN: Final = 3
"""Pods that a refusal names."""


def changes_of(
    records: Iterable[Record], policies: Callable[[Record], tuple[Sequence[InspectionPolicy], bool]], *, by: By
) -> list[Change]:
    """The changes for all rules that applied, each once. `policies` returns those of the port of a record, as far as
    they are known, and whether those are all."""
    made: list[Change] = []
    for record in records:
        facts = facts_of(record)
        if facts is not None:
            known, is_whole = policies(record)
            made += [each for each in changes(facts, known, by=by, is_whole=is_whole) if each not in made]
    return made


def of_one_exchange(records: Iterable[Record], policy: str, *, by_workload: bool = False) -> tuple[Record, ...]:
    """Choose among records with the same id those of one exchange: `policy` is what its client was told, "" if unknown.

    Pod proxies make the ids, so several pods may tell the same one. Raises RefusedError where that leaves several; it
    says how to choose among them. `by_workload`: a workload may be named, and none is.
    """
    exchanges: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        pod = record.kubernetes
        exchanges.setdefault((pod.namespace, pod.pod, record.flow_id or 0), []).append(record)
    found = [each for each in exchanges.values() if not policy or any(_is_of(record, policy) for record in each)]
    if len(found) > 1:
        pods = sorted({f"{each[0].kubernetes.namespace}/{each[0].kubernetes.pod}" for each in found})
        shown = ", ".join(pods[:SHOWN]) + (", ..." if len(pods) > SHOWN else "")
        ways = [] if policy else ["the whole line that the client was told"]
        ways += ["one --workload"] if by_workload and len(pods) > 1 else []
        ways += ["the records of one of them with --eve"]
        raise RefusedError(f"{len(found)} requests, of {shown}, have this id: give {' or '.join(ways)}")
    return tuple(found[0]) if found else ()


def _is_of(record: Record, policy: str) -> bool:
    return record.sidestep is not None and record.sidestep.policy == policy


def facts_of(record: Record) -> AlertFacts | None:
    """What a record tells of an alert; None for one that is about something else."""
    decided, http = record.sidestep, record.http
    if decided is None or http is None or decided.policy is None or decided.rule is None:
        return None
    return AlertFacts(
        policy=decided.policy,
        rule=decided.rule,
        is_of_firewall=decided.rule == FIREWALL,
        found=decided.pattern or "",
        method=http.http_method,
        path=_path(http.url),
        source=record.src_ip or "",
        destination=record.dest_ip or "",
        is_answered=http.status is not None,
        is_outward=decided.direction is not None,
    )


def _path(url: str) -> str | None:
    """The path of a URL that is told; None if it is not told as it was sent."""
    path = url.partition("?")[0]
    whole = path.startswith("/") and _REDACTED not in path and "\\" not in path
    return path if whole and not path.endswith(CUT) else None
