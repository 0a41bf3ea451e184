"""What sessions may ask of connections that pods make."""

from __future__ import annotations

import pytest

from sidestep.model.errors import RefusedError
from sidestep.model.filter import Filter
from sidestep.model.intercept import Intercept, Kind, Live, Snap, WorkloadRef
from sidestep.policy.outbound_sessions import check_egress

GETS = Filter(methods=("GET",))


def session(**wants):
    fields = {"kind": Kind.WIRETAP, "port": "", "egress": True, **wants}
    return Intercept(uid="u", namespace="shop", name="n", workload=WorkloadRef("orders"), **fields)


@pytest.mark.parametrize(
    "wants",
    [
        {"heads_only": True},
        {"heads_only": True, "filter": GETS},
        {"records": Live.ALL},
        {"records": Live.ALERTS, "filter": GETS},
        {"capture": Snap.ALL},
        {"egress": False, "kind": Kind.INTERCEPT, "port": "80", "reset_existing": True},
    ],
)
def test_who_listens_is_served(wants):
    check_egress(session(**wants))


@pytest.mark.parametrize(
    ("wants", "reason"),
    [
        ({}, "no copies"),
        ({"kind": Kind.INTERCEPT}, "no copies"),
        ({"heads_only": True, "port": "443"}, "leave the port out"),
        ({"records": Live.ALL, "reset_existing": True}, "cannot be reset"),
        ({"capture": Snap.HEADS}, "--snap all"),
        ({"capture": Snap.ALL, "filter": GETS}, "no filter"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(wants, reason):
    with pytest.raises(RefusedError, match=reason):
        check_egress(session(**wants))
