"""Connections that are relayed while the policies of their port are edited: each request is judged by the newest."""

from __future__ import annotations

from random import Random

import pytest

from sidestep.engine.http1.inspected_requests import InspectedRouter
from sidestep.engine.http2.head import Head
from sidestep.engine.http2.inspected_streams import InspectedStreams
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.inspection.judged import Judged
from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import Action, Match, Rule
from sidestep.policy.inspection_match import ConnectionFacts
from sidestep.policy.route import Route, SteeredPort
from sidestep.protocols.http1 import Http1Limits
from sidestep.protocols.http2 import HEADERS
from tests.unit.engine.http2.talk import Talk
from tests.unit.engine.http2_peers import request
from tests.unit.engine.inspection.inspecting import (
    ENFORCE,
    FAIL,
    NO_SECRET,
    SECRET,
    Inspected,
    Recorder,
    answer,
    gate,
    get,
    inspection,
    post,
)

MODES = [pytest.param(ENFORCE, id="ignore"), pytest.param(FAIL, id="fail")]


def blocking(*prefixes: str) -> list[Rule]:
    return [
        Rule(f"r{number}", Action.BLOCK, match=Match(Filter(paths=(PathCondition(PathTest.PREFIX, prefix),))))
        for number, prefix in enumerate(prefixes)
    ]


class Edited:
    """The policies of a port, edited while connections run."""

    def __init__(self, *prefixes: str, **policy) -> None:
        self._policy = policy
        self.blocked = prefixes
        self.now = inspection(*blocking(*prefixes), **policy)

    def edit(self, *prefixes: str) -> None:
        newer = inspection(*blocking(*prefixes), **self._policy)
        self.now.give_way(newer)
        self.now, self.blocked = newer, prefixes

    def blocks(self, path: bytes) -> bool:
        return path.decode().startswith(self.blocked)


PATHS = (b"/a", b"/b", b"/c", b"/b/%61")


@pytest.mark.parametrize("policy", MODES)
def test_requests_of_one_http1_connection(policy):
    random = Random(7)
    edited = Edited("/a", **policy)
    shell = Inspected(inspected=edited.now)
    expected_app = b""
    refused = 0
    for _ in range(200):
        if random.random() < 0.2:
            edited.edit(*random.sample(("/a", "/b", "/c"), random.randint(1, 2)))
        path = random.choice(PATHS)
        shell.client(get(path))
        if edited.blocks(path):
            refused += 1
        else:
            expected_app += get(path)
            shell.app(answer())
        assert shell.to_app == expected_app
    assert refused
    assert shell.to_client.count(b"HTTP/1.1 403") == refused
    assert shell.to_client.count(b"HTTP/1.1 200") == 200 - refused


@pytest.mark.parametrize("policy", MODES)
def test_streams_of_one_http2_connection(policy):
    random = Random(7)
    edited = Edited("/a", **policy)
    seen = Recorder()
    talk = Talk(relay=lambda port: Http2Relay(port, tls=True, gate=gate(edited.now, seen)))
    expected = []
    for stream in range(1, 161, 2):
        if random.random() < 0.2:
            edited.edit(*random.sample(("/a", "/b", "/c"), random.randint(1, 2)))
        path = random.choice(PATHS)
        # The same block again and again: its head is decoded once.
        talk.send(talk.head(stream, request(path), ends=True))
        if not edited.blocks(path):
            expected.append(stream)
            talk.from_app(talk.respond(stream))
        assert bool(talk.app.of(HEADERS, stream)) is not edited.blocks(path)
    assert 10 < len(expected) < 70
    assert len(seen.records) == 80 - len(expected)


@pytest.mark.parametrize("policy", MODES)
def test_a_request_that_is_held_meanwhile_is_judged_by_the_policies_it_began_with(policy):
    first = inspection(NO_SECRET, **policy)
    shell = Inspected(inspected=first)
    whole = post(b"x" * 100 + SECRET)
    shell.client(whole[:-1])
    first.give_way(inspection(*blocking("/p"), **policy))
    shell.client(whole[-1:])
    assert shell.to_client.startswith(b"HTTP/1.1 403")
    assert shell.to_app == b""


def test_nothing_is_judged_once_the_port_has_no_policies():
    edited = Edited("/a", **ENFORCE)
    shell = Inspected(inspected=edited.now)
    shell.client(get(b"/a"))
    assert shell.to_client.startswith(b"HTTP/1.1 403")
    edited.now.give_way(None)
    for _ in range(3):
        shell.client(get(b"/a"))
        shell.app(answer())
    assert shell.to_app == get(b"/a") * 3


def test_a_head_that_comes_again_is_remembered_until_the_policies_are_edited():
    edited = Edited("/a", **ENFORCE)
    router = InspectedRouter(gate(edited.now, Recorder()), SteeredPort(8443, Route()), Http1Limits())
    memory = edited.now.connection(ConnectionFacts()).clean
    for known in (0, 1, 1):
        assert router.plain_request(get(b"/b")) is not None
        assert len(memory) == known
    for number in range(3):
        assert router.plain_request(get(b"/c/%d" % number)) is not None
    assert len(memory) == 1
    edited.edit("/b")
    assert router.plain_request(get(b"/b")) is None


def test_a_block_that_comes_again_is_judged_once_until_the_policies_are_edited():
    edited = Edited("/a", **ENFORCE)
    made = gate(edited.now, Recorder())
    streams = InspectedStreams(made)
    head = Head(((b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"shop"), (b":path", b"/b")))
    assert streams.judge(1, head, diverts=False, ends=True) is None
    assert head.cleared is made.token
    edited.edit("/b")
    assert head.cleared is not made.token
    judged = streams.judge(3, head, diverts=False, ends=True)
    assert isinstance(judged, Judged)
    assert judged.refusal
