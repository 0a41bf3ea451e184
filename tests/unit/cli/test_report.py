"""What a running session tells people."""

from __future__ import annotations

import asyncio

import pytest

from sidestep.cli import report
from sidestep.cli.flows import FlowReport
from sidestep.cli.har_file import HarFile
from sidestep.cli.report import JsonReport, Report
from sidestep.cli.saved_requests import SavedRequests
from sidestep.tunnel.messages import VERSION, Hello, Lost
from tests.unit.cli.test_joined_requests import answered, request
from tests.unit.cli.test_saved_requests import entries


class Lines:
    """A writer that keeps its lines."""

    def __init__(self):
        self.written = []

    def line(self, text):
        self.written.append(text)


def test_copies_that_were_held_back_are_told_at_once_and_then_summed(monkeypatch):
    lines = Lines()
    told = Report(lines, description="all requests", noun="Wiretap")
    for count in (3, 4, 5):
        told.event(Lost(pod="shop/orders-1", port=8080, count=count, reason="handler"))
    told.event(Lost(pod="shop/orders-1", port=8080, count=1, reason="budget"))
    assert len(lines.written) == 2
    assert lines.written[0].startswith("3 copies were not made of requests to pod shop/orders-1: the handler refuses")
    assert lines.written[1].startswith("1 copy was not made")
    monkeypatch.setattr(report, "_REPEAT", 0.0)
    told.event(Lost(pod="shop/orders-1", port=8080, count=6, reason="handler"))
    assert lines.written[2].startswith("15 copies were not made")


def registered(told, name):
    told.registered(Hello(VERSION, "0.1.0", "n1", "", "uid", "shop", name))


def test_a_session_says_its_name_where_another_has_the_one_that_it_would_have():
    lines = Lines()
    told = Report(lines, description="all requests", expected="orders")
    registered(told, "orders")
    assert lines.written == []
    told = Report(lines, description="all requests", noun="Wiretap", expected="orders")
    registered(told, "orders-2")
    registered(told, "orders-2")
    assert lines.written == ["This is wiretap/orders-2: another session has the name orders."]


def test_a_handler_that_nobody_has_started_is_a_warning():
    lines = Lines()
    Report(lines, description="all").handler_absent("no handler answers at 127.0.0.1:9: connection refused")
    assert lines.written == [
        "Warning: no handler answers at 127.0.0.1:9: connection refused; nothing is diverted until one does."
    ]
    JsonReport(lines).handler_absent("nobody")
    assert lines.written[1:] == ['{"event":"warning","text":"nobody"}']


@pytest.mark.parametrize(
    "make",
    [
        lambda lines, saved: Report(lines, description="all", saved=saved),
        lambda lines, saved: JsonReport(lines, saved=saved),
        lambda lines, saved: FlowReport(lines, "", output="text", saved=saved),
    ],
    ids=["text", "JSON", "flows"],
)
def test_an_answer_of_the_next_tunnel_is_of_no_request_of_the_last_one(tmp_path, make):
    async def run():
        saved = SavedRequests(HarFile(tmp_path / "x.har"))
        told = make(lines, saved)
        told.event(request(1))
        told.interrupted("the tunnel broke")
        told.event(answered(1))
        told.close()

    lines = Lines()
    asyncio.run(run())
    assert [each["response"]["status"] for each in entries(tmp_path / "x.har")] == [0]
    assert not [line for line in lines.written if "  200" in line]
