"""What comes before an answer: informational heads (1xx), and the upgrade to HTTP/2 in the clear."""

from __future__ import annotations

import hpack
import pytest

from sidestep.model.filter import Filter, HeaderCondition, HeaderTest
from sidestep.model.inspection import Action, Direction, Match, Pattern, Rule
from sidestep.policy.route import Route
from sidestep.protocols.http2 import DATA, END_STREAM, PREFACE, frame, header_frames, rst_stream, settings
from tests.unit.engine.http2_peers import MATCH, request
from tests.unit.engine.inspection.eve_lines import assert_told
from tests.unit.engine.inspection.inspecting import (
    DETECT,
    ENFORCE,
    MODES,
    NO_LEAK,
    SECRET,
    Inspected,
    answer,
    get,
    inspection,
)
from tests.unit.engine.inspection.test_http2 import Inspected as InspectedTalk
from tests.unit.engine.shell import everything

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </" + SECRET + b">\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
WITHOUT_MARK = Rule(
    "marked",
    Action.BLOCK,
    Direction.RESPONSE,
    exception=Match(Filter(headers=(HeaderCondition("x-mark", HeaderTest.PRESENT),))),
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", [1 << 20, 1])
@pytest.mark.parametrize("by", ["app", "handler"])
def test_an_informational_head_is_searched(mode, cut, by):
    shell = Inspected(NO_LEAK, route=Route((everything(),)) if by == "handler" else Route(), **MODES[mode])
    shell.client(get())
    said = CONTINUE + HINTS + answer(b"ok")
    leg = shell.handlers[0] if by == "handler" else shell.relay.app
    for at in range(0, len(said), cut):
        if not leg.ending and not shell.relay.done:
            shell.receive(leg, said[at : at + cut])
    [record] = shell.seen.records
    assert (record.rule, record.in_response) == ("no-leak", True)
    assert_told(shell.seen, inspection(NO_LEAK, **MODES[mode]))
    if mode == "Detect":
        assert shell.to_client == said
    else:
        assert shell.to_client.startswith(CONTINUE + b"HTTP/1.1 403 ")
        assert SECRET not in shell.to_client
    assert not shell.seen.reasons


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("by", ["app", "handler"])
def test_an_informational_head_over_http2_is_searched(mode, by):
    talk = InspectedTalk(NO_LEAK, **MODES[mode])
    talk.send(talk.head(1, request(b"/d", MATCH) if by == "handler" else request(b"/")))
    encoder = hpack.Encoder()
    hints = header_frames(1, encoder.encode([(b":status", b"103"), (b"link", SECRET)]), end_stream=False)
    rest = header_frames(1, encoder.encode([(b":status", b"200")]), end_stream=True)
    if by == "handler":
        talk.open_handler()
        talk.from_handler(hints + rest)
    elif mode == "Detect":
        talk.from_app(hints + rest)
    else:
        talk.open_second()
        talk.second_says(hints + rest)
    assert [record.rule for record in talk.seen.records] == ["no-leak"]
    if mode != "Detect":
        assert talk.refused(1).startswith(b"sidestep: policy shop/p")


def test_a_rule_without_patterns_is_about_the_final_head():
    shell = Inspected(WITHOUT_MARK, **ENFORCE)
    shell.client(get())
    marked = answer(b"ok", b"X-Mark: 1")
    shell.app(CONTINUE + b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + marked)
    assert shell.to_client.endswith(marked)
    assert not shell.seen.records


def test_a_rule_applies_once_to_an_exchange():
    shell = Inspected(NO_LEAK, **DETECT)
    shell.client(get())
    shell.app(HINTS + HINTS + answer(SECRET))
    assert len(shell.seen.records) == 1


# --- h2c --------------------------------------------------------------------------------------------------------------

UPGRADE = get(
    b"/", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"
)
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
ALERTS = Rule("see", Action.ALERT, Direction.RESPONSE, patterns=(Pattern(regex="attack at dawn"),))


def upgraded(*rules, **policy) -> Inspected:
    shell = Inspected(*rules, tls=False, **policy)
    shell.client(UPGRADE)
    shell.app(SWITCHING)
    assert shell.relay.successor is not None
    shell.relay = shell.relay.successor
    shell.client(PREFACE + settings({}))
    assert not shell.seen.records
    return shell


def first_answer(body: bytes, flags: int = END_STREAM, *more: tuple[str, str]) -> bytes:
    head = hpack.Encoder().encode([(":status", "200"), *more])
    return settings({}) + header_frames(1, head, end_stream=False) + frame(DATA, flags, 1, body)


@pytest.mark.parametrize(("rule", "policy"), [(NO_LEAK, DETECT), (ALERTS, DETECT), (ALERTS, ENFORCE)])
def test_the_answer_to_an_upgrade_to_http2_is_read(rule, policy):
    shell = upgraded(rule, **policy)
    shell.app(first_answer(SECRET))
    assert SECRET in shell.to_client
    assert [record.rule for record in shell.seen.records] == [rule.name]
    assert not shell.relay.gate.unfinished
    assert not shell.seen.reasons


def test_its_head_is_read_too_and_so_is_the_part_of_one_that_is_broken_off():
    shell = upgraded(ALERTS, **DETECT)
    shell.app(first_answer(b"", 0, ("x-note", SECRET.decode())))
    assert len(shell.seen.records) == 1
    shell = upgraded(ALERTS, **DETECT)
    shell.app(first_answer(SECRET, 0))
    assert not shell.seen.records
    shell.app(rst_stream(1, 0))
    assert len(shell.seen.records) == 1


def test_where_a_rule_would_block_that_answer_it_is_counted_because_it_cannot_be_held():
    shell = upgraded(NO_LEAK, **ENFORCE)
    assert shell.seen.reasons == [("h1-h2c-upgrade", False)]
    shell.app(first_answer(SECRET))
    assert SECRET in shell.to_client
    assert not shell.seen.records


def test_without_a_rule_about_answers_nothing_of_it_is_said():
    shell = upgraded(Rule("path", Action.ALERT, patterns=(Pattern(regex="zzz"),)), **DETECT)
    shell.app(first_answer(SECRET))
    assert not shell.seen.reasons
    assert not shell.seen.records
