"""What `sidestep list` prints for people."""

from __future__ import annotations

import pytest

from sidestep.cli.listing import _text
from sidestep.tunnel.views import PortView, WorkloadView

PORT = PortView(8443, "tcp", "https", "always", "probe", "port name https")


@pytest.mark.parametrize("in_cluster", [False, True])
def test_connections_that_pods_make_have_a_line_of_their_own(in_cluster):
    view = WorkloadView(
        "shop", "deployment", "orders", ("orders-1",), (PORT,),
        intercepts=("shop/mine", "shop/listens"), egress=("shop/out (Enforce)",), listening=("shop/listens",),
    )  # fmt: skip
    head, port, outbound, elsewhere = _text([view], in_cluster=in_cluster)
    assert head.split()[-2:] == ["INSPECTED", "BY"]
    assert "8443/tcp" in port
    assert shown(outbound) == ["outbound", "shop/listens", "shop/out", "(Enforce)"]
    assert shown(elsewhere) == ["shop/mine"]


def shown(line):
    """The words of a line, without those that stand for nothing."""
    return [word for word in line.split() if word != "-"]


def test_without_any_there_is_no_such_line():
    view = WorkloadView("shop", "deployment", "orders", ("orders-1",), (PORT,))
    assert not [line for line in _text([view], in_cluster=False) if "outbound" in line]
