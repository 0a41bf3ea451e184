"""The name of a session that was given none."""

import pytest

from sidestep.tunnel.messages import SessionSpec
from sidestep.tunnel.session_names import base_name


@pytest.mark.parametrize(
    ("workload", "wants", "name"),
    [
        ("orders", {}, "orders"),
        ("deploy/orders", {}, "orders"),
        ("orders", {"kind": "wiretap"}, "orders"),
        ("orders", {"kind": "wiretap", "heads_only": True}, "orders-flows"),
        ("orders", {"kind": "wiretap", "capture": "heads"}, "orders-capture"),
        ("orders", {"kind": "wiretap", "records": "all"}, "orders-inspect"),
        ("pod/a.b", {}, "a.b"),
        ("x" * 250, {"kind": "wiretap", "heads_only": True}, "x" * 200 + "-flows"),
    ],
)
def test_it_is_that_of_the_workload_and_tells_what_is_no_copy(workload, wants, name):
    assert base_name(SessionSpec(namespace="shop", workload=workload, port="1", **wants)) == name
