"""Checks EVE records of a pod proxy, which is not trusted, and says whose they are.

A record is decoded into the types that `protocols.eve_records` has and encoded again by the daemon: nothing of what a
proxy sent reaches a log but texts and numbers in the places where they belong. What a proxy could lie about is replaced
by what the daemon knows: whose traffic it is, the number and text of an alert, a time that is not now. What names a
policy or a rule that does not apply to the pod, or has not the form of its type, is refused.

A proxy that was taken over can still tell of requests of its own pod that nobody made, and keep quiet about others.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec

from sidestep.model.errors import PeerError
from sidestep.protocols import eve
from sidestep.protocols.eve_records import Alert, FileInfo, Kubernetes, Record, RecordedAction

if TYPE_CHECKING:
    from sidestep.model.pod import Pod

SKEW: Final = 60_000_000_000
"""Nanoseconds by which a record may be older or newer than the moment at which it arrives."""
MAX_NUMBER: Final = 1 << 63
"""Numbers in records are below, as readers of JSON expect at most."""

Rules = Mapping[str, Collection[str]]
"""The names of policies that apply to a pod (`InspectionPolicy.display`), and those of their rules."""

_TIMESTAMP: Final = re.compile(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]\.[0-9]{6}\+0000")
_ADDRESS: Final = re.compile(r"[0-9a-fA-F:.]{2,45}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_WORD: Final = re.compile(r"[a-z0-9-]{1,64}")
_ACTIONS: Final = frozenset((None, *(action.value for action in RecordedAction)))
_ALERTS: Final = frozenset((RecordedAction.ALERT, RecordedAction.WOULD_BLOCK, RecordedAction.BLOCK))
_ALL: Final = ("http", "alert", "tls", "anomaly", "flow", "fileinfo", "stats")
_objects: Final = attrgetter(*_ALL)
_OBJECTS: Final = {
    "http": ["http"],
    "alert": ["http", "alert"],
    "tls": ["tls"],
    "anomaly": ["anomaly"],
    "flow": ["flow"],
    "fileinfo": ["http", "fileinfo"],
}
"""The types that a proxy may send, each with the objects that a record of it has, in the order of `_ALL`. `stats` are
the daemon's own."""
_OF_CONNECTION: Final = ["alert"]
"""What an alert has of which the connection that the pod makes is the subject, and no request."""
_HOST: Final = re.compile(r"[!-~]{1,253}")
_NO_NAMES: Final[Mapping[int, str]] = {}
_DECODER: Final = msgspec.msgpack.Decoder(Record)


def whose(pod: Pod, node: str) -> Kubernetes:
    """Whose traffic records of a pod's proxy are about."""
    workload = f"{pod.owners[-1].kind}/{pod.owners[-1].name}" if pod.owners else None
    return Kubernetes(pod.key.namespace, pod.key.name, workload, node)


def decode(data: bytes) -> Record:
    """The record that a proxy sent. Raises PeerError for what is none."""
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"a record that cannot be read: {str(error)[:200]}") from None


def checked(
    record: Record, *, rules: Rules, kubernetes: Kubernetes, now: int, names: Mapping[int, str] = _NO_NAMES
) -> Record | None:
    """The record as it may be written, None if it may not. `now` is in nanoseconds since 1970.

    `names` are what rules of the Core Rule Set say, by id.
    """
    if not (_has_form(record) and _is_named(record, rules)):
        return None
    made: dict[str, object] = {"kubernetes": kubernetes}
    if abs(_nanoseconds(record.timestamp, now) - now) > SKEW:
        made["timestamp"] = eve.timestamp(now)
    decided = record.sidestep
    if record.alert is not None and decided is not None and decided.policy and decided.rule:
        blocked = record.alert.action == "blocked"
        alert: Alert | None = eve.alert(decided.policy, decided.rule, blocked=blocked)
        if decided.rule == eve.FIREWALL:
            alert = eve.firewall_alert(decided.policy, decided.pattern, names, blocked=blocked)
        if alert is None:
            return None
        made["alert"] = alert
    return msgspec.structs.replace(record, **made)


def _has_form(record: Record) -> bool:
    """Whether a record is one of a type that proxies send, with the objects and values that it has."""
    outbound = record.sidestep is not None and record.sidestep.direction is not None
    wanted = _OBJECTS.get(record.event_type)
    told = [name for name, value in zip(_ALL, _objects(record), strict=True) if value is not None]
    is_bare = outbound and record.event_type == "alert" and told == _OF_CONNECTION
    if wanted is None or (told != wanted and not is_bare):
        return False
    return (
        record.proto == "TCP"
        and _is_end(record.src_ip, record.src_port)
        and _is_end(record.dest_ip, record.dest_port)
        and (record.flow_id is None or 0 <= record.flow_id < MAX_NUMBER)
        and (record.tx_id is None or 0 <= record.tx_id < MAX_NUMBER)
        and (record.app_proto is None or _WORD.fullmatch(record.app_proto) is not None)
        and (record.fileinfo is None or _is_file(record.fileinfo))
    )


def _is_end(address: str | None, port: int | None) -> bool:
    """Whether these are the address and port of an end of a connection."""
    return address is not None and port is not None and 0 <= port < 1 << 16 and _ADDRESS.fullmatch(address) is not None


def _is_file(told: FileInfo) -> bool:
    """Whether size, number and hash of a body can be those of one."""
    numbers = (told.size, told.tx_id)
    is_hashed = told.sha256 is not None
    return (
        all(0 <= number < MAX_NUMBER for number in numbers)
        and (told.sha256 is None or _HASH.fullmatch(told.sha256) is not None)
        and (told.state == "CLOSED") is is_hashed
    )


def _is_named(record: Record, rules: Rules) -> bool:
    """Whether what a record says of policies can be true."""
    decided = record.sidestep
    # Gaps, and what an IDS found, are told by the daemon alone.
    if decided is None or decided.gap is not None or decided.engine is not None:
        return False
    if decided.host is not None and (decided.direction is None or not _HOST.fullmatch(decided.host)):
        return False
    if decided.action not in _ACTIONS or (decided.reason is not None and not _WORD.fullmatch(decided.reason)):
        return False
    if record.alert is not None and decided.action not in _ALERTS:
        return False
    if decided.policy is None and decided.rule is None:
        return record.alert is None
    return decided.policy is not None and decided.rule in rules.get(decided.policy, ())


def _nanoseconds(timestamp: str, now: int) -> int:
    """The time that a record says; far from `now` if it says none."""
    second = _second(timestamp[:19]) if _TIMESTAMP.fullmatch(timestamp) else None
    return now + 2 * SKEW if second is None else second * 1_000_000_000


@lru_cache(maxsize=64)
def _second(text: str) -> int | None:
    """Seconds since 1970 of a time up to its second, None if there is none such. Records of one second are many."""
    try:
        return int(dt.datetime.fromisoformat(text + "+00:00").timestamp())
    except ValueError:
        return None
