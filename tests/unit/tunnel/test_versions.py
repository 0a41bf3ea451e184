"""A command line and a daemon of different versions: what an earlier release recorded, and how it reads today's."""

import contextlib
import json
import socket
from pathlib import Path

import msgspec
import pytest

from sidestep import __version__
from sidestep.model.errors import RefusedError
from sidestep.tunnel import messages
from sidestep.tunnel.cli_end import CliEnd
from sidestep.tunnel.connection import Connection
from sidestep.tunnel.daemon_end import DaemonEnd, read_all
from sidestep.tunnel.messages import (
    VERSION,
    ConditionText,
    Dropped,
    Ended,
    HeaderSpec,
    Hello,
    HelloAnswer,
    Lost,
    Moving,
    PathSpec,
    PodState,
    Request,
    SessionSpec,
    State,
    decode,
    decode_event,
    encode,
)
from sidestep.tunnel.versions import check_answer, common_version, difference
from tests.unit.tunnel.ends import asynchronous, attach, eventually, tunnel
from tests.unit.tunnel.recorded import messages_1

RECORDED = json.loads((Path(__file__).parent / "recorded" / "version_1.json").read_text())
UID = json.loads(RECORDED["messages"]["hello"])["intercept"]
POST = (
    (":method", "POST"), (":scheme", "https"), (":authority", "session"), (":path", "/v1/hello"),
    ("content-type", "application/json"),
)  # fmt: skip


def recorded(name):
    return RECORDED["messages"][name].encode()


@contextlib.asynccontextmanager
async def command_line():
    """Today's command line, and a connection on which a recorded daemon speaks."""
    left, right = socket.socketpair()
    daemon, heard = Connection(), []
    end = CliEnd(dial=None, on_hello=heard.append, on_event=heard.append)
    await attach(left, daemon)
    await attach(right, end.connection)
    try:
        yield daemon, end, heard
    finally:
        daemon.close()
        await daemon.wait_closed()
        end.connection.close()
        await end.run()


async def ask(daemon, hello):
    """Send a hello as a daemon does; the answer's body."""
    stream = daemon.open(POST)
    await stream.write(hello)
    await stream.write_eof()
    await stream.response()
    return await read_all(stream, 65536)


@asynchronous
async def test_a_recorded_daemon_meets_todays_command_line():
    async with command_line() as (daemon, end, heard):
        body = await ask(daemon, recorded("hello"))
        answer = messages_1.decode(body, messages_1.HelloAnswer, what="the answer")
        assert (answer.version, answer.serves, end.refusal) == (messages_1.VERSION, (UID,), None)
        assert heard == [decode(recorded("hello"), Hello, what="the hello")]
        events = daemon.open((*POST[:3], (":path", "/v1/events"), POST[4]))
        names = ("state", "request", "lost", "dropped", "moving", "ended")
        for name in names:
            await events.write(recorded(name) + b"\n")
        await events.write(b'{"event":"of a later version","more":1}\n')
        await events.write_eof()
        await eventually(lambda: len(heard) == 1 + len(names), what="the events")
        assert [type(each) for each in heard[1:]] == [State, Request, Lost, Dropped, Moving, Ended]
        assert heard[2].path == "/api/orders"


@asynchronous
async def test_a_recorded_command_line_meets_todays_daemon():
    async def serve(stream):
        body = await read_all(stream, 65536)
        hello = messages_1.decode(body, messages_1.Hello, what="the hello")
        assert hello.version == messages_1.VERSION
        stream.respond(200)
        await stream.write(recorded("helloanswer"))
        await stream.write_eof()

    async with tunnel(serve) as (client, _server):
        answer = await DaemonEnd(client).hello(Hello(VERSION, __version__, "n1", "00", UID, "shop", "orders"))
        assert (answer.version, answer.software) == (1, "")


def test_a_recorded_command_line_asks_for_what_today_is_understood():
    spec = decode(recorded("sessionspec"), SessionSpec, what="the spec")
    assert (spec.workload, spec.headers, spec.paths) == (
        "deployment/orders", (HeaderSpec("x-dev", "exact", "ada"),), (PathSpec("prefix", "/api/"),),
    )  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        Hello(1, __version__, "n1", "5f" * 32, UID, "shop", "orders", 1.5),
        HelloAnswer(1, (UID,), software=__version__),
        SessionSpec("shop", "orders", "https", claimed_owner="ada", headers=(HeaderSpec("x-dev", "exact", "ada"),)),
        State((PodState("shop/orders-1", "active"),), (ConditionText("NoApp", "pod a/b", "text"),)),
        Request(1.5, "shop/orders-1", 8443, "10.0.0.7", 5000, "GET", "/", "orders", fields=(("x-dev", "ada"),)),
        Lost("shop/orders-1", 8443, 3, "room"),
        Dropped(7),
        Moving("the node daemon is replaced"),
        Ended("ended by root"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_today_is_sent_is_read_by_the_release_before(message):
    """Its fields keep their values, whatever fields have come since."""
    kind = getattr(messages_1, type(message).__name__)
    line = encode(message)
    event = isinstance(message, messages.Event)
    read = messages_1.decode_event(line) if event else messages_1.decode(line, kind, what="it")
    assert type(read) is kind
    for field in msgspec.structs.fields(kind):
        assert encode_field(getattr(read, field.name)) == encode_field(getattr(message, field.name))
    if event:
        assert decode_event(line) == message


def encode_field(value):
    return msgspec.json.encode(value)


@pytest.mark.parametrize(
    ("ours", "daemon", "used"),
    [(1, 1, 1), (2, 2, 2), (2, 1, 1), (2, 3, 2), (3, 1, None), (1, 3, None), (5, 4, 4), (4, 5, 4)],
)
def test_the_version_that_both_speak_is_used(monkeypatch, ours, daemon, used):
    monkeypatch.setattr(messages, "VERSION", ours)
    if used is None:
        with pytest.raises(RefusedError, match=f"speaks version {daemon} of the tunnel, this command {ours}"):
            common_version(daemon)
        return
    assert common_version(daemon) == used
    monkeypatch.setattr(messages, "VERSION", daemon)
    check_answer(used)


@pytest.mark.parametrize("version", [0, 3, 5, -1])
def test_a_daemon_refuses_an_answer_in_a_version_that_it_does_not_speak(monkeypatch, version):
    monkeypatch.setattr(messages, "VERSION", 2)
    with pytest.raises(RefusedError, match=f"the session speaks version {version} of the tunnel, this node 2"):
        check_answer(version)


@pytest.mark.parametrize("later", [1, 2])
@asynchronous
async def test_a_later_daemon(later):
    async with command_line() as (daemon, end, heard):
        hello = msgspec.structs.replace(decode(recorded("hello"), Hello, what="it"), version=VERSION + later)
        if later == 1:
            answer = decode(await ask(daemon, encode(hello)), HelloAnswer, what="the answer")
            assert (answer.version, heard) == (VERSION, [hello])
            return
        stream = daemon.open(POST)
        await stream.write(encode(hello))
        await stream.write_eof()
        await end.run()
        assert str(end.refusal).endswith("; use the sidestep command that belongs to the daemon")
        assert heard == []


def test_the_difference_is_one_line():
    assert difference(__version__) == ""
    said = difference("9.0.0" + "x" * 100)
    assert said.startswith("The node daemon is sidestep 9.0.0")
    assert f"this command {__version__}" in said
    assert len(said) < 180
    assert "\n" not in said
