"""What a port's snapshot names."""

from __future__ import annotations

import msgspec

from sidestep.snapshots.filter_row import FilterRow
from sidestep.snapshots.ports import PortSnapshot, RuleSnapshot

RULE = RuleSnapshot("r", "d", "intercept", (FilterRow("header", "exact", "x-user", "alice"),), divert_probes=False)
OPENED = PortSnapshot(
    1,
    "tcp",
    "probe",
    "probe",
    (RULE,),
    identity="i",
    client_trust="ct",
    upstream_identity="ui",
    upstream_trust="ut",
)
WHOLE = PortSnapshot(2, "tcp", "never", "never", (), global_uid="g", global_taps=("t",))


def test_credentials_and_their_kinds():
    assert OPENED.credentials == {"i": "identity", "ui": "identity", "ct": "trust", "ut": "trust"}
    assert WHOLE.credentials == {}


def test_uids_of_all_rules():
    assert OPENED.uids == {"r"}
    assert WHOLE.uids == {"g", "t"}


def test_a_port_without_its_credentials_is_otherwise_the_same():
    bare = OPENED.without_credentials()
    assert bare.credentials == {}
    assert (bare.number, bare.rules, bare.tls) == (1, (RULE,), "probe")


def test_a_snapshot_survives_the_channel():
    encoded = msgspec.msgpack.encode(OPENED)
    assert msgspec.msgpack.decode(encoded, type=PortSnapshot) == OPENED
