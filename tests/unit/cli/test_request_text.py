"""Requests and their answers as text and JSON."""

import json
import os

import click
import pytest

from sidestep.cli.report import request_line
from sidestep.cli.request_text import (
    RequestText,
    StatusType,
    answer_text,
    duration,
    event_line,
    is_wanted,
    size,
    uses_colour,
)
from sidestep.tunnel.messages import Answer, Request


def request(**more):
    return Request(
        time=0.0,
        pod="shop/orders-1",
        port=80,
        client="10.0.0.1",
        client_port=4,
        method="GET",
        path="/",
        authority="a",
        **more,
    )


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, ""),
        (Answer(200, "app", "", 0.0123, 0, 3174), "200 by app, 12 ms, 3.1 KiB"),
        (Answer(204, "handler", "shop/dev", 61.5, 5, 0), "204 by handler of shop/dev, 1 min 1 s, 0 B, sent 5 B"),
        (Answer(502, "sidestep", "", 0.0004, 0, 10), "502 by Sidestep, 0.4 ms, 10 B"),
        (Answer(200, "app", "", 2.5, 0, 1 << 31, whole=False), "200 by app, 2.5 s, 2.0 GiB, broken off"),
        (Answer(0, "", "", 4.0), "no answer, 4.0 s"),
        (Answer(0, ""), "no answer"),
    ],
)
def test_an_answer_as_text(answer, text):
    assert answer_text(answer) == text


@pytest.mark.parametrize(
    ("statuses", "answer", "wanted"),
    [
        ((), None, True),
        (("5xx",), None, False),
        (("5xx",), Answer(503, "app"), True),
        (("5xx", "404"), Answer(404, "app"), True),
        (("5xx", "404"), Answer(405, "app"), False),
        (("none",), Answer(0, ""), True),
        (("none",), Answer(200, "app"), False),
        (("2xx",), Answer(0, ""), False),
    ],
)
def test_which_statuses_are_wanted(statuses, answer, wanted):
    assert is_wanted(answer, statuses) is wanted


@pytest.mark.parametrize("text", ["404", "5xx", "5XX", "none"])
def test_statuses_that_can_be_asked_for(text):
    assert StatusType().convert(text, None, None) == text.lower()


@pytest.mark.parametrize("text", ["", "6xx", "40", "4x", "x", "0xx", "1000", "\uff15xx", "404\n"])
def test_other_texts_are_no_statuses(text):
    with pytest.raises(click.BadParameter, match="such as 404"):
        StatusType().convert(text, None, None)


def test_a_line_without_colours_has_what_is_known():
    plain = RequestText(coloured=False)
    later = request(number=1, trace="ab")
    line = request_line(plain, later, "GET /", "from 10.0.0.1:4", late=False)
    assert line.split("  ")[1:] == ["GET /", "not answered yet", "from 10.0.0.1:4", "pod shop/orders-1", "trace ab"]
    line = request_line(plain, request(answer=Answer(200, "app")), "GET /", "from x", late=True)
    assert "answered late: 200 by app" in line


def test_text_of_the_network_cannot_colour_a_line():
    text = RequestText(coloured=True)
    hostile = "\x1b[31mred\x1b[0m"
    line = text.line("12:00:00", hostile, hostile, hostile, status=500)
    assert line.count("\x1b[") == 4
    assert "\x1b[31m\\x1b[31mred" in line
    assert "\x1b" not in RequestText(coloured=False).line("12:00:00", hostile, hostile, hostile, status=500)


@pytest.mark.parametrize(("status", "colour"), [(200, 32), (302, 36), (404, 33), (503, 31), (0, 35), (None, 2)])
def test_each_class_of_status_has_its_colour(status, colour):
    assert f"\x1b[{colour}manswer\x1b[0m" in RequestText(coloured=True).line("t", "r", "answer", "x", status=status)


@pytest.mark.parametrize(
    ("no_color", "environment", "terminal", "coloured"),
    [
        (False, {}, True, True),
        (False, {}, False, False),
        (True, {}, True, False),
        (False, {"NO_COLOR": "1"}, True, False),
        (False, {"NO_COLOR": ""}, True, True),
        (False, {"TERM": "dumb"}, True, False),
    ],
)
def test_when_lines_are_coloured(monkeypatch, no_color, environment, terminal, coloured):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "isatty", lambda descriptor: terminal and descriptor == 1)
    assert uses_colour(no_color=no_color, descriptor=1) is coloured


def test_json_has_the_fields_of_the_answer():
    event = request(answer=Answer(200, "app", head="Server: x: y\r\nX-Empty:\r\n\x1b[31m: 1"))
    found = json.loads(event_line(event))
    assert found["event"] == "request"
    assert found["answer"]["fields"] == [["server", "x: y"], ["x-empty", ""], ["\x1b[31m", "1"]]
    assert "head" not in found["answer"]
    assert "\x1b" not in event_line(event)
    assert json.loads(event_line(request()))["answer"] is None


def test_sizes_and_durations():
    assert [size(each) for each in (0, 1023, 1024, 1 << 20)] == ["0 B", "1023 B", "1.0 KiB", "1.0 MiB"]
    assert [duration(each) for each in (0.0, 0.5, 59.94)] == ["", "500 ms", "59.9 s"]
